"""When one process of a run fails, all of them end within seconds, and its traceback is the last thing that is said.

The others are each in a collective that never ends: rank 0 waits for the last rank, and that one for rank 0.
"""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ProcessFailedError
from fulmen.fabric.launchers.spawn import SpawnLauncher

# How long it takes is measured by benchmarks/fail_fast.py. Here processes that nobody ends wait for half an hour, and a
# test that waits for them fails long before.

# Each process leaves its id in a file and then waits; the one that is to fail does so when all have come.
_PROGRAM = """
import os, signal, sys
import torch, torch.distributed as dist
from fulmen.fabric.collectives.process_group import init_distributed
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment

class Broken(ValueError):
    pass

def fail(how):
    if how == "raise":
        raise Broken("this rank is wrong")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)

def work(folder, who, how):
    under_torchrun = TorchElasticEnvironment.detect()
    init_distributed(TorchElasticEnvironment() if under_torchrun else LightningEnvironment(), "gloo")
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    with open(os.path.join(folder, f"{rank}-{os.getpid()}"), "w") as mark:
        mark.write(str(rank))
    dist.barrier()
    if rank == who:
        fail(how)
    others = [other for other in range(last + 1) if other != who]
    if len(others) == 1:
        dist.all_reduce(torch.ones(1))
    else:
        dist.recv(torch.ones(1), src=others[1 - others.index(rank)])
"""

_SCRIPT = (
    _PROGRAM
    + """
if __name__ == "__main__":
    from fulmen.fabric.launchers.script import ScriptLauncher
    folder, num, who, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    launcher = ScriptLauncher(environment, num)
    launcher.launch(work, folder, who, how)
"""
)
_SAID = {"raise": "Broken: this rank is wrong", "exit": "exit code 3", "kill": "SIGKILL"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "marks").mkdir()
    return tmp_path


def _pids(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in (folder / "marks").glob("*-*")]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _check_that_all_are_gone(folder: Path, num_processes: int) -> None:
    pids = _pids(folder)
    assert len(pids) == num_processes
    assert not any(map(_is_running, pids))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The function that each process runs, where new Pythons can import it."""
    name = f"fails_fast_{os.getpid()}_{time.monotonic_ns()}"
    (tmp_path / f"{name}.py").write_text(_PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name).work


@pytest.mark.parametrize(
    ("start_method", "num_processes", "who", "how"),
    [
        *(("fork", num, who, how) for num, who in ((2, 0), (2, 1), (3, 1)) for how in _SAID),
        *(("forkserver", 3, 1, how) for how in _SAID),
        ("forkserver", 3, 0, "raise"),
    ],
)
def test_started_as_a_function(folder, work, start_method, num_processes, who, how):
    launcher = SpawnLauncher(LightningEnvironment(), num_processes, start_method=start_method)
    with pytest.raises((ValueError, ProcessFailedError)) as caught:
        launcher.launch(work, str(folder / "marks"), who, how)
    _check_that_all_are_gone(folder, num_processes)
    said = caught.value.__notes__[-1] if how == "raise" else str(caught.value)
    assert f"Rank {who} of {num_processes} failed first" in said
    assert _SAID[how] in said.rstrip().splitlines()[-1]
    assert (type(caught.value).__name__ == "Broken") == (how == "raise")


def test_started_as_a_script_the_one_that_started_the_others_fails(folder):
    # The others fail in test_script.py and test_command.py.
    (folder / "script.py").write_text(_SCRIPT)
    command = [sys.executable, "script.py", str(folder / "marks"), "2", "0", "raise"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170, env=_environment())
    _check_that_all_are_gone(folder, 2)
    assert done.returncode == 1, done.stderr
    assert _SAID["raise"] in done.stderr.rstrip().splitlines()[-1]
    assert done.stderr.count("Traceback") == 1


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_started_by_torchrun(folder):
    (folder / "script.py").write_text(_SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    command = [sys.executable, *torchrun, "script.py", str(folder / "marks"), "3", "1", "raise"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170, env=_environment())
    assert done.returncode == 1, done.stderr
    _check_that_all_are_gone(folder, 3)
    # torchrun itself has the last word, and ends it with what it was told.
    root_cause = done.stderr.rpartition("Root Cause")[2]
    assert "rank      : 1 " in root_cause
    assert root_cause.strip(" =\n").endswith("Broken: this rank is wrong")
