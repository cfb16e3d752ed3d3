import dataclasses
import errno
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import torch

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, ProcessFailedError
from fulmen.fabric.launchers import spawn
from fulmen.fabric.launchers.base import GATHER_S, TERMINATE_S
from fulmen.fabric.launchers.spawn import SpawnLauncher, _Globals


def _forks(num_processes: int = 2) -> SpawnLauncher:
    return SpawnLauncher(LightningEnvironment(), num_processes, start_method="fork")


def _place() -> tuple[str, ...]:
    return tuple(os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"))


def test_rank_zero_hands_its_result_back_and_the_parent_stays_as_it_was():
    before = dict(os.environ)

    def run(scale, *, bias):
        module = torch.nn.Linear(2, 2)
        return {"place": _place(), "value": torch.ones(3, requires_grad=True) * scale + bias, "module": module}

    result = _forks().launch(run, 2.0, bias=1.0)
    assert result["place"] == ("0", "0", "2", "0")
    assert torch.equal(result["value"], torch.full((3,), 3.0))
    assert isinstance(result["module"], torch.nn.Linear)
    assert dict(os.environ) == before
    assert _forks().launch(lambda: None) is None


def test_what_a_process_changes_in_place_stays_there():
    module = torch.nn.Linear(1, 1)
    before = module.weight.detach().clone()

    def run():
        with torch.no_grad():
            module.weight.add_(1.0)
        return module.state_dict()

    state = _forks().launch(run)
    assert torch.equal(module.weight, before)
    assert torch.equal(state["weight"], before + 1.0)


def test_forked_processes_survive_threads_of_the_parent():
    # OpenMP's threads are gone after a fork, and a parallel region would wait for them for ever.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        matrix = torch.randn(400, 400)
        _ = matrix @ matrix
        assert _forks().launch(lambda: (matrix @ matrix).shape[0]) == 400
    finally:
        torch.set_num_threads(threads)


def test_the_error_of_the_first_process_that_failed_comes_back_and_the_others_end(tmp_path):
    def run():
        if os.environ["RANK"] == "1":
            raise KeyError("wrong in rank one")
        time.sleep(60)
        (tmp_path / "went on").touch()

    launcher = _forks(3)
    with pytest.raises(KeyError, match="wrong in rank one") as caught:
        launcher.launch(run)
    assert not (tmp_path / "went on").exists()
    assert caught.value.__notes__[-1].rstrip().endswith("KeyError: 'wrong in rank one'")
    assert "Rank 1 of 3 failed first" in caught.value.__notes__[-1]


def test_a_long_error_and_one_that_does_not_pickle_come_back_too():
    class Local(Exception):
        pass

    def run(error):
        raise error

    with pytest.raises(ValueError, match="xxx"):
        _forks().launch(run, ValueError("x" * 300_000))
    with pytest.raises(ProcessFailedError, match="Local: only here"):
        _forks().launch(run, Local("only here"))


def test_a_killed_process_is_named():
    def run():
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(ProcessFailedError, match=r"Rank 1 of 2 failed first.*killed by SIGKILL"):
        _forks().launch(run)


def test_a_result_that_does_not_pickle_is_refused():
    with pytest.raises(ArgumentTypeError, match="cannot be sent back"):
        _forks(1).launch(lambda: lambda: None)


def test_a_result_goes_another_way_where_the_folder_for_temporary_files_is_full(tmp_path, monkeypatch):
    write = spawn._write_aside

    def full(folder, content):
        if folder in refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, content)

    monkeypatch.setattr(spawn, "_write_aside", full)
    monkeypatch.chdir(tmp_path)
    refused = {tempfile.gettempdir()}
    assert _forks().launch(_rank) == 0
    assert os.listdir(tmp_path) == []
    refused |= {"/dev/shm", str(tmp_path)}
    with pytest.raises(ProcessFailedError, match=r"rank 0, \d+ bytes, .*No space left on device.*set TMPDIR"):
        spawn._save_result({"weights": torch.ones(3)})


def test_a_function_that_a_new_python_cannot_import_is_refused_before_anything_starts():
    launcher = SpawnLauncher(LightningEnvironment(), 2, start_method="spawn")
    with pytest.raises(ArgumentTypeError, match="top level of a module"):
        launcher.launch(lambda: None)


def test_inside_an_existing_process_the_function_runs_there(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _forks().launch(os.getpid) == os.getpid()
    with pytest.raises(ConfigurationError, match="devices=3"):
        _forks(3).launch(os.getpid)


def test_an_unknown_start_method_is_refused():
    with pytest.raises(ConfigurationError, match="start_method='thread'"):
        SpawnLauncher(LightningEnvironment(), 2, start_method="thread")


GARBAGE = """
import gc, os, sys
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.spawn import SpawnLauncher

class Circle:
    def __init__(self):
        self.me = self
    def __del__(self):
        os.write(1, f"collected by {os.getpid()}\\n".encode())

gc.disable()
Circle()
SpawnLauncher(LightningEnvironment(), 1, start_method="fork").launch(gc.collect)
os.write(1, f"I am {os.getpid()}\\n".encode())
gc.collect()
"""


def test_garbage_of_the_parent_is_not_collected_by_a_fork():  # in a process of its own: conftest says the same to ours
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, timeout=100, check=True)
    me, collected = done.stdout.splitlines()
    assert me.removeprefix("I am ") == collected.removeprefix("collected by ")


def test_only_fork_is_for_notebooks():
    assert _forks().is_interactive_compatible
    assert not SpawnLauncher(LightningEnvironment(), 2).is_interactive_compatible


def test_a_fork_after_cuda_was_used_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigurationError, match=r"after CUDA was used.*Move no tensor to a GPU before"):
        _forks().launch(os.getpid)


def test_what_every_process_imports_is_imported_once_before_a_fork(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('x')")
    monkeypatch.syspath_prepend(tmp_path)
    launcher = SpawnLauncher(LightningEnvironment(), 2, start_method="fork", preload=["slow_to_import"])
    assert launcher.launch(lambda: "slow_to_import" in sys.modules)
    assert (tmp_path / "imported").read_text() == "x"
    del sys.modules["slow_to_import"]


def test_the_server_that_forks_imports_what_every_process_needs(monkeypatch):
    asked = []
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(type(context), "set_forkserver_preload", lambda self, names: asked.append(names))
    monkeypatch.setattr(type(context), "Process", lambda self, **kwargs: pytest.fail("far enough"))
    launcher = SpawnLauncher(LightningEnvironment(), 2, start_method="forkserver", preload=["torch._dynamo"])
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        launcher.launch(os.getpid)
    assert asked == [
        ["fulmen.fabric.launchers.fork_server", "__main__", "fulmen.fabric.launchers.spawn", "torch._dynamo"]
    ]


# Typed line by line at a prompt, where no program can be run again and no function can be imported.
_TYPED = """
import torch
from fulmen.fabric import Fabric
scale = 10
def train(fabric, start):
    total = fabric.all_reduce(torch.tensor(float(start + fabric.global_rank)), reduce_op="sum")
    return fabric.world_size, scale * total.item()

fabric = Fabric(accelerator="cpu", devices=2)
print("got", fabric.launch(train, 1))
try:
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
except ValueError as error:
    print("refused", error)

"""


def test_from_a_prompt_processes_are_forked():
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=_TYPED,
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "got (2, 30.0)" in done.stdout, done.stderr
    assert "refused Fabric(strategy='ddp_spawn') cannot start processes from an interactive session." in done.stdout


_IMPORTABLE = """
import os, torch

def run(module):
    return os.environ["RANK"], torch.rand(2), module.weight
"""


def test_spawned_processes_get_arguments_by_value_and_the_random_state(tmp_path, monkeypatch):
    (tmp_path / "importable_by_spawned.py").write_text(_IMPORTABLE)
    monkeypatch.syspath_prepend(tmp_path)
    run = importlib.import_module("importable_by_spawned").run
    module = torch.nn.Linear(1, 1)
    rank, drawn, weight = SpawnLauncher(LightningEnvironment(), 1, start_method="spawn").launch(run, module)
    assert rank == "0"
    assert torch.equal(drawn, torch.rand(2))  # what this process would have drawn
    assert torch.equal(weight, module.weight)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_new_python_is_deterministic_where_the_parent_is(deterministic, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **kwargs: calls.append((args, kwargs)))
    dataclasses.replace(_Globals.collect(), deterministic=deterministic, warn_only=True).restore()
    assert calls == ([((True,), {"warn_only": True})] if deterministic else [])


def _start_and_wait(report, run):
    """In a process of its own, the parent of two more; what they write comes through the pipe."""
    parent = os.fork()
    if parent == 0:
        os.dup2(report, 1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            _forks().launch(run)
        finally:
            os._exit(3)
    os.close(report)
    return parent


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes look for their parent once a second")
def test_when_the_parent_is_terminated_the_processes_are_gone_too():
    def run():
        os.write(1, f"{os.getpid()}\n".encode())
        time.sleep(60)

    reader, writer = os.pipe()
    parent = _start_and_wait(writer, run)
    with open(reader) as lines:
        pids = [int(lines.readline()) for _ in range(2)]
        os.kill(parent, signal.SIGTERM)
        _, status = os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert _all_gone(pids, within_s=50)


def test_processes_that_are_asked_to_end_may_take_their_time(tmp_path):
    # As the trainer does it: the parent passes the signal on, and each process ends when it has saved.
    def run(seconds_of_rank_zero):
        def end(number, frame):
            rank = int(os.environ["RANK"])
            time.sleep(0 if rank else seconds_of_rank_zero)
            (tmp_path / f"saved-{rank}").touch()
            raise SystemExit(128 + number)

        signal.signal(signal.SIGTERM, end)
        (tmp_path / os.environ["RANK"]).touch()
        time.sleep(60)

    launcher = _forks()
    asking = threading.Thread(target=_ask_when_ready, args=(launcher, [tmp_path / "0", tmp_path / "1"]))
    asking.start()
    with pytest.raises(SystemExit) as caught:
        launcher.launch(run, GATHER_S + TERMINATE_S + 1.0)
    asking.join()
    assert caught.value.code == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "saved-0", "saved-1"]


def test_a_process_that_is_ended_before_it_listens_costs_the_others_no_time_to_save(monkeypatch):
    monkeypatch.setattr(spawn, "GRACE_S", 90.0)
    began_s = time.monotonic()
    with pytest.raises(ProcessFailedError, match=r"Rank 1 of 2 .* was killed by SIGTERM"):
        _forks().launch(_rank_one_is_ended)
    assert time.monotonic() - began_s < 80


def _rank_one_is_ended():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)


def test_a_signal_that_comes_before_the_processes_are_there_reaches_them_too(monkeypatch):
    launcher = _forks()
    host = spawn.host_store

    def is_told_meanwhile(*args):
        launcher.kill(signal.SIGTERM)
        return host(*args)

    monkeypatch.setattr(spawn, "host_store", is_told_meanwhile)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(ProcessFailedError, match="was killed by SIGTERM"):
            launcher.launch(time.sleep, 60)
        monkeypatch.undo()
        assert launcher.launch(_rank) == 0  # and no process of a later launch
    finally:
        signal.signal(signal.SIGTERM, before)


def _rank():
    return int(os.environ["RANK"])


def _ask_when_ready(launcher, marks):
    while not all(mark.exists() for mark in marks):
        time.sleep(0.02)
    launcher.kill(signal.SIGTERM)


def _all_gone(pids, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(_is_running(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
