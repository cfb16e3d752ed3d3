"""Faces: what a type checker sees is what a program gets, and nothing is loaded before it is asked for."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIBRARIES = {"fabric": (), "trainer": ("fabric",), "tuner": ("fabric", "trainer"), "cli": ("fabric", "trainer")}
# What works without them must not load them, and what needs them loads them when it is used.
OPTIONAL = {"deepspeed", "fsspec", "matplotlib", "omegaconf", "pandas", "rich", "sklearn", "tensorboard", "torch_xla"}
OPTIONAL |= {"torchmetrics", "torchvision", "tqdm", "yaml", "jsonargparse", "torch._dynamo", "torch.distributed.fsdp"}
OPTIONAL |= {"bitsandbytes", "psutil", "transformer_engine"}
NEEDED = {"cli": {"jsonargparse", "yaml"}}  # its modules are subclasses of the parser's


def faces() -> dict[str, Path]:
    found = {}
    for library in LIBRARIES:
        source = REPOSITORY / "packages" / library / "src"
        for path in sorted(source.rglob("*.py")):
            if "= lazy_face(" in path.read_text():
                parts = path.relative_to(source).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FACES = faces()


def seen_by_type_checkers(tree: ast.Module) -> dict[str, str]:
    """Public name to place, as the imports under TYPE_CHECKING say."""
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: place(node.module or "", alias.name, alias.asname or alias.name)
        for node in imports
        for alias in node.names
    }


def place(module: str, attribute: str, public_name: str) -> str:
    return module if attribute == public_name else f"{module}:{attribute}"


def seen_by_programs(face: str) -> dict[str, str]:
    """Public name to place, as the table given to `lazy_face` says."""
    module = importlib.import_module(face)
    return dict(inspect.getclosurevars(module.__getattr__).nonlocals["places"])


def test_every_package_has_a_face():
    assert {f"fulmen.{library}" for library in LIBRARIES} <= set(FACES)


@pytest.mark.parametrize("face", FACES)
def test_a_type_checker_sees_what_a_program_gets(face):
    tree = ast.parse(FACES[face].read_text())
    assert seen_by_type_checkers(tree) == seen_by_programs(face)


@pytest.mark.parametrize("face", FACES)
def test_every_name_resolves_and_is_listed(face):
    module = importlib.import_module(face)
    table = seen_by_programs(face)
    for name in table:
        assert getattr(module, name) is not None
        assert not (FACES[face].parent / f"{name}.py").exists(), f"{name} is a submodule too"
    assert set(table) <= set(dir(module))
    # What a face defines itself, such as `__version__`, need not be in the table.
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_package_is_imported_whole_without_those_above_it_and_without_optional_packages(library):
    allowed = [f"fulmen.{name}" for name in (*LIBRARIES[library], library)]
    source = REPOSITORY / "packages" / library / "src"
    modules = [
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(source.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    program = f"""
import importlib, sys, torch, torch.distributed, torch.utils.data
before = set(sys.modules)  # what torch loads is not our doing
for name in {modules!r}:
    importlib.import_module(name)
loaded = set(sys.modules) - before
print(sorted({OPTIONAL - NEEDED.get(library, set())!r} & loaded))
print(sorted(n for n in loaded if n.count(".") == 1 and n.startswith("fulmen.") and n not in {allowed!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"]
