"""When one process of a run fails, how long until none is left, and what is said last?

Each case starts a run of two processes that train with Fabric; in its sixth step one of them raises, ends by itself
(`os._exit`), or kills itself (SIGKILL), while the other waits for it in a collective. Just before, it writes the time
of the machine's monotonic clock to a file; another process waits for the end of each of them. Looked at are: how long
until no process is left, the one that started the others included; the exit code; whether the first one's traceback is
the last thing said; and whether anything is left.

    python benchmarks/fail_fast.py                        # 36 cases, some minutes
    python benchmarks/fail_fast.py --only script,fork
    python benchmarks/fail_fast.py --quick                # one of them
    python benchmarks/fail_fast.py --busy 8               # beside 8 processes that compute
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import DDPStrategy

LIMIT_S = 5.0
START_WITHIN_S = 300.0
NUM_PROCESSES = 2
FAILING_STEP = 5
LAST_WORDS = {"raises": "Broken: this rank is wrong", "exits": "exit code 3", "is killed": "SIGKILL"}
EXIT_CODES = {"raises": 1, "exits": 3, "is killed": 128 + signal.SIGKILL}
STARTED_BY = ("script", "fulmen-fabric run", "fork", "spawn", "forkserver", "torchrun")


class Broken(ValueError):
    """What the failing process raises."""


@dataclass(frozen=True)
class Case:
    """Who starts the processes, and which one fails how."""

    started: str
    rank: int
    how: str


def cases() -> Iterator[Case]:
    """All of them; rank 0 of a script is the process that has started the other."""
    for started in STARTED_BY:
        yield from (Case(started, rank, how) for rank in (0, 1) for how in LAST_WORDS)


# ---- the run


def train(fabric: Fabric, folder: Path, case: Case) -> None:
    """A loop that two processes run, and one of them leaves."""
    import torch

    torch.set_num_threads(1)
    (folder / f"rank-{fabric.global_rank}-{os.getpid()}").touch()
    linear = torch.nn.Linear(4, 1)
    model, optimizer = fabric.setup(linear, torch.optim.SGD(linear.parameters(), lr=0.1))
    for step in range(FAILING_STEP + 1):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).sum()
        if step == FAILING_STEP and fabric.global_rank == case.rank:
            fail(folder, case.how)
        fabric.backward(loss)
        optimizer.step()


def fail(folder: Path, how: str) -> None:
    """In the way that is asked for, after a look at the clock."""
    (folder / "failed").write_text(str(time.monotonic()))
    if how == "raises":
        raise Broken("this rank is wrong")
    if how == "exits":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def run_case(folder: Path, started: str, rank: str, how: str) -> None:
    """What the program does that a case starts."""
    case = Case(started, int(rank), how)
    if started in ("fulmen-fabric run", "torchrun"):
        fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES)
        fabric.launch()
        train(fabric, folder, case)
        return
    method: Any = "popen" if started == "script" else started
    fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy=DDPStrategy(start_method=method))
    fabric.launch(train, folder, case)


def command_of(case: Case, folder: Path) -> list[str]:
    """The command that a user would type."""
    python, program = [sys.executable], [__file__, "--train", str(folder), case.started, str(case.rank), case.how]
    if case.started == "fulmen-fabric run":
        return [*python, "-m", "fulmen.fabric.command", "run", f"--devices={NUM_PROCESSES}", *program]
    if case.started == "torchrun":
        options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_PROCESSES}"]
        return [*python, *options, *program]
    return [*python, *program]


# ---- how it is watched


@dataclass(frozen=True)
class End:
    """How a case ended."""

    took_s: float
    exit_code: int
    printed: str
    left: list[int]


def watch(case: Case, folder: Path) -> End:
    """Start the case and wait until nothing of it is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(folder / "printed", "wb") as printed:
        # A session of its own: what is left can be found, and ended.
        process = subprocess.Popen(
            command_of(case, folder), stdout=printed, stderr=printed, env=environment, start_new_session=True
        )
    try:
        began = time.monotonic()
        watched = {os.pidfd_open(process.pid)}
        while len(watched) <= NUM_PROCESSES and process.poll() is None and time.monotonic() - began < START_WITHIN_S:
            pids = sorted(int(path.name.split("-")[2]) for path in folder.glob("rank-*"))
            if len(pids) == NUM_PROCESSES:
                watched |= {descriptor for descriptor in map(descriptor_of, pids) if descriptor is not None}
                break
            time.sleep(0.005)
        gone = wait_for_all(watched)
        code = process.wait()
        # Python's own helpers (the fork server, the tracker of resources) end when nobody is left whom they could help.
        all_done = gone
        while (left := session(process.pid)) and time.monotonic() - gone < LIMIT_S:
            time.sleep(0.01)
            all_done = time.monotonic()
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
    mark = folder / "failed"
    failed_at = float(mark.read_text()) if mark.exists() else began
    return End(all_done - failed_at, code, (folder / "printed").read_text(), left)


def descriptor_of(pid: int) -> int | None:
    """To wait for a process that is not our child; None if it is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def wait_for_all(watched: set[int]) -> float:
    """When the last of the processes was gone, by the monotonic clock."""
    poll = select.poll()
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    gone, rest, deadline = time.monotonic(), set(watched), time.monotonic() + START_WITHIN_S
    while rest and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(1000):
            gone = time.monotonic()
            poll.unregister(descriptor)
            rest.discard(descriptor)
    for descriptor in watched:
        os.close(descriptor)
    return gone if not rest else time.monotonic()


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def judge(case: Case, end: End) -> list[str]:
    """What is wrong with how it ended."""
    wrong = []
    if end.took_s > LIMIT_S:
        wrong.append("too late")
    if end.left:
        wrong.append(f"left: {end.left}")
    lines = end.printed.rstrip(" =\n").splitlines() or [""]
    starts_again = case.started in ("script", "fulmen-fabric run")
    if starts_again and case.rank == 0 and case.how != "raises":
        # The process that has started the other is gone at once: its end is for the shell to tell.
        code = -signal.SIGKILL if case.how == "is killed" else EXIT_CODES[case.how]
        return wrong if end.exit_code == code else [*wrong, f"exit code {end.exit_code}"]
    # Where a function is run, its caller gets an error, which may be caught; torchrun ends with 1, whatever happened.
    if end.exit_code != (EXIT_CODES[case.how] if starts_again else 1):
        wrong.append(f"exit code {end.exit_code}")
    # torchrun ends with a block of lines about the first failure.
    said = "\n".join(lines[-12:]).replace("exitcode  : ", "exit code ") if case.started == "torchrun" else lines[-1]
    if LAST_WORDS[case.how] not in said:
        wrong.append(f"said last: {lines[-1]}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(STARTED_BY), help="who starts them: " + ", ".join(STARTED_BY))
    parser.add_argument("--quick", action="store_true", help="one case")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N processes that compute")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.train:
        run_case(Path(given.train[0]), *given.train[1:])
        return 0
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(STARTED_BY):
        parser.error(f"--only {', '.join(sorted(unknown))} is unknown. Pass some of: {', '.join(STARTED_BY)}.")
    chosen = [case for case in cases() if case.started in wanted]
    if given.quick:
        chosen = [Case("fork", 1, "raises")]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    root = Path(tempfile.mkdtemp(prefix="fail-fast-"))
    num_failed = 0
    try:
        print("| started by | who | how | s until all are gone | exit code | |")
        print("| --- | --- | --- | ---: | ---: | --- |", flush=True)
        for number, case in enumerate(chosen):
            folder = root / str(number)
            folder.mkdir()
            end = watch(case, folder)
            wrong = judge(case, end)
            num_failed += bool(wrong)
            verdict = "; ".join(wrong).replace("|", "/") or "pass"
            row = f"| {case.started} | rank {case.rank} | {case.how} | {end.took_s:.2f} | {end.exit_code} | {verdict} |"
            print(row, flush=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        shutil.rmtree(root)
    print(f"\n{len(chosen) - num_failed} of {len(chosen)} cases pass.")
    return int(num_failed > 0)


if __name__ == "__main__":
    if not hasattr(os, "pidfd_open"):
        sys.exit("This waits for processes as only Linux can.")
    sys.exit(main())
