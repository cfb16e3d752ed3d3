import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fulmen.fabric.collectives import process_group
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment
from fulmen.fabric.errors import ConfigurationError, ProcessFailedError
from fulmen.fabric.launchers.spawn import SpawnLauncher


def test_the_backend_follows_the_device():
    assert process_group.default_backend(torch.device("cpu")) == "gloo"
    assert process_group.default_backend(torch.device("cuda", 0)) == "nccl"


def test_alone_there_is_nobody_to_wait_for():
    assert not process_group.is_initialized()
    process_group.barrier()
    process_group.close()
    thing = object()
    assert process_group.broadcast_object(thing) is thing


def test_who_has_come_waits_until_all_have_and_says_how_many_are_missing():
    alone, met = dist.HashStore(), dist.HashStore()
    with pytest.raises(ProcessFailedError, match="Only 1 of 2 processes have come"):
        process_group._await_all(alone, 2, timedelta(milliseconds=10))
    process_group._await_all(alone, 2, timedelta(seconds=50))  # as the second one
    process_group._await_all(met, 1, timedelta(seconds=50))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer sends signals here")
def test_who_waits_for_the_others_to_come_hears_signals():
    def hear(number, frame):
        raise InterruptedError("heard")

    before = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(InterruptedError, match="heard"):
            process_group._await_all(dist.HashStore(), 2, timedelta(seconds=50))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _open_twice_and_once_more_after_closing():
    environment = LightningEnvironment()
    for _ in range(2):
        for _ in range(2):
            process_group.init_distributed(environment, "gloo")
            process_group.barrier(torch.device("cpu"))
        assert process_group.broadcast_object({"rank": environment.global_rank()}, src=1) == {"rank": 1}
        process_group.close()
    process_group.init_distributed(environment, "gloo")
    environment.set_world_size(3)
    with pytest.raises(ConfigurationError, match="a process group of 2 is open"):
        process_group.init_distributed(environment, "gloo")
    return "done"


def _forks_with_a_group():
    environment = LightningEnvironment()
    environment.set_global_rank(environment.local_rank())
    process_group.init_distributed(environment, "gloo")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            process_group.init_distributed(environment, "gloo")
        except ConfigurationError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as said:
        return said.read()


def test_a_group_from_before_a_fork_is_not_used():
    launcher = SpawnLauncher(LightningEnvironment(), 1, start_method="fork")
    assert "forked from one that had a process group open" in launcher.launch(_forks_with_a_group)


def test_a_group_is_opened_once_and_a_closed_one_leaves_no_keys_behind():
    launcher = SpawnLauncher(LightningEnvironment(), 2, start_method="fork")
    assert launcher.launch(_open_twice_and_once_more_after_closing) == "done"


def test_without_a_launcher_rank_zero_keeps_the_store(monkeypatch):
    # What torchrun's processes of an old attempt left in the store must not be read by the next.
    monkeypatch.setenv("MASTER_PORT", "0")  # any
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    hook = sys.excepthook
    try:
        process_group.init_distributed(LightningEnvironment(), "gloo")
        assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    finally:
        process_group.close()
        sys.excepthook = hook


def _attempt():
    environment = TorchElasticEnvironment()
    process_group.init_distributed(environment, "gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt == 0 and environment.global_rank() == 1:
        raise ValueError("first attempt")
    dist.barrier()
    return attempt, int(total)


def test_after_a_failure_under_torchrun_the_next_attempt_finds_its_peers():
    # The agent is torchrun's own, and its processes are forked: new ones would take long to import torch.
    config = LaunchConfig(
        1,
        1,
        2,
        run_id="attempts",
        rdzv_backend="c10d",  # as torchrun --standalone has it
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.05,
        start_method="fork",
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        results = elastic_launch(config, _attempt)()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert results == {0: (1, 2), 1: (1, 2)}


# Fails while it has an unfinished collective, for which it would wait when Python exits.
_FAILS = """
import torch, torch.distributed as dist
from fulmen.fabric.collectives.process_group import init_distributed
from fulmen.fabric.environments.default import LightningEnvironment
init_distributed(LightningEnvironment(), "gloo")
dist.all_reduce(torch.ones(10), async_op=True)
raise ValueError("while the others wait")
"""


def test_a_process_that_fails_ends_soon_although_others_have_not_come(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    waiting = os.fork()
    if waiting == 0:
        os.environ.update(variables | {"RANK": "0", "LOCAL_RANK": "0"})
        process_group._Opened.num_groups = 0  # a new process has opened none
        process_group.init_distributed(LightningEnvironment(), "gloo")
        time.sleep(600)
        os._exit(0)
    try:
        failed = subprocess.run(
            [sys.executable, "-c", _FAILS],
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1", "RANK": "1", "LOCAL_RANK": "1"},
            capture_output=True,
            text=True,
            timeout=170,
        )
    finally:
        os.kill(waiting, signal.SIGKILL)
        os.waitpid(waiting, 0)
    assert failed.returncode == 1
    assert "ValueError: while the others wait" in failed.stderr
