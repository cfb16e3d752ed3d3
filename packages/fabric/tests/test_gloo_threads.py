"""Processes end with 0 although a thread of gloo is still letting go of what the last collective held."""

import json
import os
import subprocess
import sys
import time

import pytest

from fulmen.fabric.gloo_threads import close_group, come_to_rest

# Each case is a pair of processes, forked from one that has imported torch. In the first, gloo's thread holds the last
# reference to an object that takes half a second to go.
_PAIRS = """
import gc, json, os, signal, sys, threading, time
import torch
import torch.distributed as dist
from fulmen.fabric.collectives import process_group
from fulmen.fabric.environments.default import LightningEnvironment

torch.set_num_threads(1)
letting_go = threading.Event()

class SlowToGo:
    def __del__(self):
        letting_go.set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

def leave_a_thread_at_work(store):
    tensor = torch.ones(3)
    tensor.kept = SlowToGo()
    work = dist.all_reduce(tensor, async_op=True)
    del work, tensor
    store.set("go", "1")
    assert letting_go.wait(100)

def first(case, store):
    process_group.init_distributed(LightningEnvironment(), "gloo")
    # What DDP makes, and what outlives the group with it. DDP itself would import torch's compiler.
    parameter = torch.nn.Parameter(torch.ones(2))
    reducer = dist.Reducer([parameter], [[0]], [1], dist.group.WORLD, [False]) if "reducer" in case else None
    leave_a_thread_at_work(store)
    if "closed" in case:
        process_group.close()
    if "destroyed" in case:
        dist.destroy_process_group()
    if "then goes" in case:
        del reducer
        gc.collect()
    if "lives on" in case:
        globals()["lasting"] = reducer

def second(case, store):
    process_group.init_distributed(LightningEnvironment(), "gloo")
    if "reducer" in case:
        dist.Reducer([torch.nn.Parameter(torch.ones(2))], [[0]], [1], dist.group.WORLD, [False])
    store.get("go")
    dist.all_reduce(torch.ones(3))
    time.sleep(100)  # until it is killed

def run(case, rank, ports):
    if rank == 0:
        server = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False, multi_tenant=True)
        os.write(ports[1], str(server.port).encode())
        port = server.port
    else:
        port = int(os.read(ports[0], 20))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ.update(LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True")
    store = dist.PrefixStore("case", dist.TCPStore("127.0.0.1", port, 2, is_master=False))
    (first, second)[rank](case, store)

def code_of(case):
    ports = os.pipe()
    processes = []
    for rank in range(2):
        process = os.fork()
        if process == 0:
            run(case, rank, ports)
            sys.exit(0)  # Python ends as it does in a program
        processes.append(process)
    deadline = time.monotonic() + 40
    status = 0, 0
    while not status[0] and time.monotonic() < deadline:
        time.sleep(0.02)
        status = os.waitpid(processes[0], os.WNOHANG)
    if not status[0]:
        os.kill(processes[0], signal.SIGKILL)
        os.waitpid(processes[0], 0)
    os.kill(processes[1], signal.SIGKILL)
    os.waitpid(processes[1], 0)
    return os.waitstatus_to_exitcode(status[1]) if status[0] else "hangs"

codes = {case: code_of(case) for case in json.loads(sys.argv[1])}
with open(sys.argv[2], "w") as file:
    json.dump(codes, file)
"""
CASES = (
    "the group stays open",
    "destroyed by the user",
    "closed, and a reducer lives on",
    "closed, and a reducer then goes",
)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = tmp_path_factory.mktemp("codes") / "codes.json"
    subprocess.run(
        [sys.executable, "-c", _PAIRS, json.dumps(CASES), str(path)], check=True, timeout=170, env=environment
    )
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_process_ends_well_while_a_thread_of_gloo_lets_go(codes, case):
    assert codes[case] == 0


def test_without_a_group_there_is_nothing_to_wait_for():
    start = time.perf_counter()
    assert come_to_rest(within_s=1000.0)
    close_group()
    assert time.perf_counter() - start < 500
