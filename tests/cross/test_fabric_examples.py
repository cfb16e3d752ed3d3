"""The examples in examples/fabric run, and learn what they set out to."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

from fulmen.fabric.environments import LightningEnvironment
from fulmen.fabric.launchers import SpawnLauncher

EXAMPLES = Path(__file__).parents[2] / "examples" / "fabric"
# File, number of processes, and the last number that it prints in such a line: at least, or at most.
CASES = {
    "plain_loop.py": (1, r"accuracy (\S+)", 0.9, 1.0),
    "gan.py": (1, r"after:  gap (\S+)", 0.0, 0.15),
    "k_fold.py": (1, r"accuracy (\S+), give or take", 0.95, 1.0),
    "gpt.py": (1, r"step 200: loss (\S+)", 0.0, 2.8),
    "gradient_accumulation.py": (2, r"largest difference of a weight: (\S+)", 0.0, 1e-14),
    "own_parts.py": (2, r"epoch 3: loss (\S+)", 0.0, 0.6),
    "fsdp.py": (2, r"loaded:  loss (\S+)", 0.0, 0.5),
    "mesh.py": (4, r"epoch 3: accuracy (\S+)", 0.9, 1.0),
    "pipeline.py": (2, r"epoch 3: accuracy (\S+)", 0.9, 1.0),
    "tensor_parallel.py": (2, r"epoch 2: loss \S+, accuracy (\S+)", 0.9, 1.0),
}


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """What the examples import: loaded once, and not in each of their processes."""
    for name in ("sklearn.datasets", "sklearn.model_selection", "torch._dynamo", "torch.distributed.fsdp"):
        importlib.import_module(name)
    importlib.import_module("torch.distributed.tensor.parallel")
    importlib.import_module("torch.distributed.pipelining")


def run(path: str) -> None:
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("name", CASES)
def test_an_example_learns(name, capfd, monkeypatch, tmp_path):
    num_processes, line, lowest, highest = CASES[name]
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # Processes of its own, so that seeds and threads stay as they are here; each finds that it is there already.
    SpawnLauncher(LightningEnvironment(), num_processes, start_method="fork").launch(run, str(EXAMPLES / name))
    printed = capfd.readouterr().out
    found = re.findall(line, printed)
    assert len(found) == 1, printed  # printed once, whatever the number of processes
    assert lowest <= float(found[0]) <= highest, printed


def test_every_example_is_short_and_here():
    files = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(files) == {*CASES, "ddp.py"}  # which test_fabric_digits.py runs
    assert {name: len(text.splitlines()) for name, text in files.items() if len(text.splitlines()) > 100} == {}
    index = (EXAMPLES / "README.md").read_text()
    assert [name for name in files if f"[{name}]({name})" not in index] == []
