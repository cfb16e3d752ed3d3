"""Where the processes of a run meet: a place that no other run can take."""

import os
import signal
import sys

import pytest
import torch.distributed as dist

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.launchers.base import host_store, process_variables

_NUM_RUNS = 20


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for variable in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(variable, raising=False)


def _meet_oneself(number: int) -> int:
    """What is found at the port that this run tells its processes."""
    environment = LightningEnvironment()
    port = process_variables(environment, 0, 1, 1)["MASTER_PORT"]
    store = host_store(environment, 1)
    client = dist.TCPStore("127.0.0.1", int(port), 1, is_master=False, wait_for_workers=False)
    client.set(f"run{number}", str(number))
    found = [other for other in range(_NUM_RUNS) if store.check([f"run{other}"])]
    return found[0] if len(found) == 1 else -1


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_runs_that_start_at_the_same_moment_meet_each_at_a_place_of_its_own():
    gate, opener = os.pipe()
    pids = []
    for number in range(_NUM_RUNS):
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(120)
                os.close(opener)
                os.read(gate, 1)  # until all are there
                os._exit(0 if all(_meet_oneself(number) == number for _ in range(3)) else 1)
            finally:
                os._exit(2)
        pids.append(pid)
    os.close(gate)
    os.close(opener)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * _NUM_RUNS


def test_a_second_launch_meets_at_the_same_place_and_finds_nothing_of_the_first():
    environment = LightningEnvironment()
    for _ in range(2):
        store = host_store(environment, 1)
        assert store.port == environment.main_port
        assert not store.check(["left over"])
        store.set("left over", "x")
        del store


def test_a_port_that_the_user_names_and_somebody_has_is_refused(monkeypatch):
    taken = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(taken.port))
    with pytest.raises(ConfigurationError, match=rf"MASTER_PORT={taken.port} cannot be used to meet"):
        host_store(LightningEnvironment(), 1)


def test_only_the_first_node_keeps_the_store(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert host_store(LightningEnvironment(), 2) is None
