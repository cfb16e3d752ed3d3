"""What this repository can be asked to do: `nox --list` names it, `nox -s NAME` does it.

Every session gets its own environment, with the packages as built wheels and never as source folders: what is not in
a wheel is missed at once. `tests(fabric)` has nothing of ours installed but fabric, and so on up the floors.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import nox

ROOT = Path(__file__).parent
# For each distribution those that it stands on, the lowest first.
BELOW = {
    "fabric": (),
    "trainer": ("fabric",),
    "tuner": ("fabric", "trainer"),
    "cli": ("fabric", "trainer"),
    "fulmen": ("fabric", "trainer", "tuner", "cli"),
}
LIBRARIES = ("fabric", "trainer", "tuner", "cli")
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "numpy")
# A real mpiexec, for the one environment that cannot be told by variables.
MPI = ("mpi4py; sys_platform == 'linux'", "mpich; sys_platform == 'linux'")
# An S3 server on loopback, and the client that fsspec takes for s3://.
S3 = ("moto[s3]", "flask", "flask-cors", "s3fs")
# Exported modules are run, and served, for real.
ONNX = ("onnx", "onnxscript", "onnxruntime")
SERVER = ("fastapi", "uvicorn")
# Those that are light enough for every run; `nox -s trackers` has all of them, and MLflow whole, with its server.
LIGHT_TRACKERS = ("mlflow-skinny", "wandb", "pillow")
TRACKERS = ("mlflow", "wandb", "pillow", "comet_ml", "neptune", "litlogger")
TEST_TOOLS_OF = {
    "fabric": (*MPI, *S3, "bitsandbytes", "psutil", "tensorboard"),
    "trainer": (*ONNX, *SERVER, *LIGHT_TRACKERS, "bitsandbytes", "psutil", "rich", "tensorboard"),
    "tuner": ("matplotlib", "scikit-learn"),
    "cli": ("omegaconf", "scikit-learn"),
}
LINT_TOOLS = ("ruff",)
LAYER_TOOLS = ("import-linter",)
TYPE_TOOLS = ("mypy", "types-PyYAML", "types-tqdm", "nox")
# What the examples and the pictures need.
EXTRAS = ("scikit-learn", "matplotlib")
# Promised names that are another package's where it is there; a loader that keeps its own state, met for real.
MET = ("rich", "torchdata")
# Its source distribution is built without compiling an operator: see `with_deepspeed`.
DEEPSPEED = ("deepspeed>=0.19", "ninja")
# Those that `nox -s bench` measures beside ours.
PEERS = ("lightning", "accelerate", "pytorch-ignite", "transformers", "skorch", "keras")
# What a run of lightning-cli leaves, and where.
RESULTS = {"checkpoint": "**/*.ckpt", "metrics": "*.csv", "configuration": "config.yaml", "curves": "*.png"}
CHECKED = (*(f"packages/{library}/src" for library in LIBRARIES), "tools", "benchmarks", "noxfile.py")

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # our tests start processes: two threads each would fight
if "PIP_FIND_LINKS" in os.environ:  # uv does not read what pip is told
    os.environ.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))


def digest_of_sources() -> str:
    """A name for the state of everything that goes into the distributions."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "packages").rglob("*")):
        if path.is_file() and not {"__pycache__", "tests", "changelog.d", ".hypothesis"} & set(path.parts):
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# Taken once: all sessions of one run of nox test the same wheels, also when somebody edits meanwhile.
WHEELS = ROOT / "build" / "wheels" / digest_of_sources()


def install(session: nox.Session, *requirements: str) -> None:
    """Install into the environment of `session`, by uv.

    It links the files that pip would copy for each environment anew: 900 MB for torch alone. Where nox itself has no
    uv, each environment gets one.
    """
    arguments = ("--constraint", "constraints.txt", *requirements)
    if session.venv_backend == "uv":
        session.install(*arguments)
    else:
        session.install("uv")
        session.run("uv", "pip", "install", *arguments, silent=True)


def install_ours(session: nox.Session, *names: str, tools: tuple[str, ...] = ()) -> None:
    """Install our distributions with what they declare and some tools; nothing else."""
    wheels = [str(wheel) for name in names for wheel in WHEELS.glob(f"{wheel_name(name)}-*.whl")]
    install(session, *wheels, *tools)


def wheel_name(name: str) -> str:
    """How the file of a wheel begins."""
    return name if name == "fulmen" else f"fulmen_{name}"


def run_pytest(session: nox.Session, *folders: str, report: str) -> None:
    """Run pytest on some folders; what comes after `--` goes to pytest too."""
    # Not `python -m pytest`: that would put the repository's root on the path.
    arguments = (*folders, f"--junitxml=build/reports/{report}.xml", *session.posargs)
    session.run("pytest", *arguments, env={"FULMEN_WHEELS": str(WHEELS)})


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the five distributions, unless those of the same sources are there."""
    if WHEELS.is_dir():
        session.log(f"{WHEELS.relative_to(ROOT)} is up to date")
        return
    install(session, "hatchling")
    WHEELS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WHEELS.parent, prefix=".") as scratch:
        made = Path(scratch) / "made"
        for name in BELOW:
            with session.chdir(ROOT / "packages" / name):
                session.run("hatchling", "build", "--directory", str(made), silent=True)
        if not WHEELS.is_dir():  # two runs of nox may build at the same time
            made.rename(WHEELS)
    for old in WHEELS.parent.iterdir():
        if old != WHEELS and time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    session.log(f"built into {WHEELS.relative_to(ROOT)}")


@nox.session(requires=["build"], default=False)
def demo(session: nox.Session) -> None:
    """Train a classifier of handwritten digits through lightning-cli, and say where everything is."""
    install_ours(session, *BELOW, tools=EXTRAS)
    folder = ROOT / "demo_run"
    folder.mkdir(exist_ok=True)
    config = ("--config", os.path.join("..", "examples", "digits", "config.yaml"))
    with session.chdir(folder):
        session.run("lightning-cli", "fit", *config)
        session.run("lightning-cli", "test", *config, "--ckpt_path", "best")
    run = max(folder.glob("lightning_logs/version_*/checkpoints"), key=os.path.getmtime).parent
    for what, pattern in RESULTS.items():
        for path in sorted(run.glob(pattern)):
            session.log(f"{what}: {path.relative_to(ROOT)}")


@nox.session(requires=["build"])
@nox.parametrize("part", [nox.param(part, id=part) for part in ("checks", *LIBRARIES, "together")])
def tests(session: nox.Session, part: str) -> None:
    """All that CI runs: the checks, each package alone on its floor, all packages together."""
    if part == "checks":
        install_ours(session, *LIBRARIES, tools=(*LINT_TOOLS, *LAYER_TOOLS, *TYPE_TOOLS))
        run_lint(session)
        run_layers(session)
        run_types(session)
    elif part == "together":
        run_together(session, "tests", report="together")
        session.notify("deepspeed")
    else:
        install_ours(session, *BELOW[part], part, tools=(*TEST_TOOLS, *TEST_TOOLS_OF.get(part, ())))
        run_pytest(session, f"packages/{part}/tests", report=part)


def run_together(session: nox.Session, where: str, *, report: str) -> None:
    """Run tests with all packages installed."""
    install_ours(session, *BELOW, tools=(*TEST_TOOLS, *EXTRAS, *MET, *MPI))
    run_pytest(session, where, report=report)


@nox.session(requires=["build"], default=False)
def cross(session: nox.Session) -> None:
    """Promises that the packages keep together."""
    run_together(session, "tests/cross", report="cross")


@nox.session(requires=["build"], default=False)
def properties(session: nox.Session) -> None:
    """Laws that hold for every input."""
    run_together(session, "tests/properties", report="properties")


@nox.session(requires=["build"], default=False)
def lightning(session: nox.Session) -> None:
    """Checkpoints of Lightning go on here, and ours there."""
    install_ours(session, *BELOW["trainer"], "trainer", tools=("pytest", "pytest-timeout", "lightning"))
    run_pytest(session, "tests/lightning", report="lightning")


@nox.session(requires=["build"], default=False)
def xla(session: nox.Session) -> None:
    """Train on XLA devices, which PJRT has on every CPU: one, and four in one process. Installs several gigabytes."""
    wheels = [
        str(wheel) for name in (*BELOW["trainer"], "trainer") for wheel in WHEELS.glob(f"{wheel_name(name)}-*.whl")
    ]
    # Not the constraints of the others: torch-xla runs with the torch of its own number only.
    packages = (*wheels, "torch==2.9.0", "torch-xla==2.9.0", *TEST_TOOLS)
    if session.venv_backend == "uv":
        session.install(*packages)
    else:
        session.install("uv")
        session.run("uv", "pip", "install", *packages, silent=True)
    for devices, file in (("1", "test_one_device"), ("4", "test_four_devices")):
        env = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": devices}
        report = f"--junitxml=build/reports/xla-{devices}.xml"
        session.run("pytest", f"tests/xla/{file}.py", "--timeout=600", report, *session.posargs, env=env)


@nox.session(requires=["build"], default=False)
def trackers(session: nox.Session) -> None:
    """Loggers with all their packages: an MLflow server that dies and comes back, what others write offline."""
    install_ours(session, *BELOW["trainer"], "trainer", tools=(*TEST_TOOLS, *TRACKERS))
    run_pytest(session, "packages/trainer/tests/loggers", report="trackers")


@nox.session(requires=["build"], default=False)
def torchao(session: nox.Session) -> None:
    """Training in 8 bits by torchao, on the CPU."""
    install_ours(session, "fabric", tools=(*TEST_TOOLS, "torchao>=0.18"))
    run_pytest(session, "packages/fabric/tests/precision/test_torchao.py", report="torchao")


def with_deepspeed(session: nox.Session) -> None:
    """Install DeepSpeed beside ours; its operators are compiled where they are used, which is nowhere in our tests."""
    session.env.update(DS_BUILD_OPS="0", DS_ACCELERATOR="cpu", PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    session.env["UV_BUILD_CONSTRAINT"] = session.env["UV_CONSTRAINT"] = session.env["PIP_CONSTRAINT"]
    install_ours(session, *BELOW["trainer"], "trainer", tools=(*TEST_TOOLS, *DEEPSPEED))


@nox.session(requires=["build"], default=False)
def deepspeed(session: nox.Session) -> None:
    """DeepSpeed on the CPU: all stages of ZeRO, precisions, offload and checkpoints, in real processes."""
    with_deepspeed(session)
    folders = [f"packages/{name}/tests/strategies/test_deepspeed.py" for name in ("fabric", "trainer")]
    run_pytest(session, *folders, report="deepspeed")


@nox.session(requires=["build"], default=False)
def repository(session: nox.Session) -> None:
    """The repository about itself: faces, files, fragments, wheels, documents."""
    run_together(session, "tests/repository", report="repository")


@nox.session(requires=["build"], default=False)
def docs(session: nox.Session) -> None:
    """Run the code in README.md and docs/, and follow their links."""
    run_together(session, "tests/repository/test_documents.py", report="docs")


def run_lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


def run_layers(session: nox.Session) -> None:
    """import-linter, on the installed wheels."""
    session.run("lint-imports")


def run_types(session: nox.Session) -> None:
    """Mypy, on the sources."""
    session.run("mypy", *CHECKED)


@nox.session(default=False)
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    install(session, *LINT_TOOLS)
    run_lint(session)


@nox.session(requires=["build"], default=False)
def layers(session: nox.Session) -> None:
    """Floors, circles and the pure core, by import-linter."""
    install_ours(session, *LIBRARIES, tools=LAYER_TOOLS)
    run_layers(session)


@nox.session(requires=["build"], default=False)
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    install_ours(session, *LIBRARIES, tools=TYPE_TOOLS)
    run_types(session)


@nox.session(requires=["build"], default=False)
def bench(session: nox.Session) -> None:
    """Time everything against plain torch, and against the peers; arguments after `--` go to benchmarks/everything.py.

    `nox -s bench -- --write docs/performance.md` renews the numbers of that page and its picture.
    """
    install_ours(session, *BELOW, tools=(*EXTRAS, *PEERS, "tensorboard", "psutil"))
    session.run("python", "benchmarks/everything.py", *session.posargs)
