"""Send signals to runs, however they were started: do all processes end soon, together, with a checkpoint?

Each case starts a run, of two processes unless it says "alone", waits until all of them train, and sends a signal to
the whole group, to one process, or to the one that started the others. Looked at are: how long until no process is
left; the exit code; whether all processes stopped at the same batch; whether a checkpoint of that batch was kept and
loads; and what loggers were told at the end.

    python benchmarks/signal_cases.py                     # 50 cases, some minutes
    python benchmarks/signal_cases.py --only alone,fork
    python benchmarks/signal_cases.py --quick             # three of them
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.loggers import CSVLogger
from fulmen.trainer.strategies import DDPStrategy

LIMIT_S = 5.0  # beside the batch in work and the save
BATCH_S = 0.05
LONG_BATCH_S = 60.0
START_WITHIN_S = 240.0
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Case:
    """One of them: who starts the processes, what is sent to whom, and while what goes on."""

    started: str
    signum: int
    target: str
    during: str = "training"


def cases() -> Iterator[Case]:
    """All 50."""
    term, interrupt, hangup, usr1 = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
    targets = ("group", "rank 1", "launcher")
    yield from (Case("alone", number, "group") for number in (term, interrupt, hangup))
    yield from (Case("alone", term, "group", during) for during in ("validation", "a background save"))
    yield Case("alone", interrupt, "group", "a long batch, twice")
    for started in ("fork", "torchrun"):
        yield from (Case(started, number, target) for number in (term, interrupt, hangup) for target in targets)
    yield from (Case("fork", term, target, "validation") for target in targets)
    yield from (Case("fork", term, target, "a background save") for target in targets)
    yield Case("fork", interrupt, "group", "a long batch, twice")
    yield Case("torchrun", term, "rank 1", "a background save")
    yield from (Case("script", number, target) for number in (term, interrupt) for target in targets)
    yield Case("script", hangup, "group")
    yield from (Case("spawn", term, target) for target in targets)
    yield Case("spawn", interrupt, "group")
    yield from (Case("srun", number, target) for number in (usr1, term) for target in ("group", "rank 1"))
    yield from (Case("fork", 0, "rank 1", during) for during in ("it raises", "it dies", "it hangs"))


# ---- the run


class Notes(Callback):
    """Each process writes down what it has done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, trainer: Any, line: str) -> None:
        with open(self.folder / f"rank-{trainer.global_rank}", "a") as file:
            file.write(line + "\n")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.note(trainer, f"batch {trainer.global_step} {os.getpid()}")
        time.sleep(BATCH_S)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        time.sleep(BATCH_S)


class Net(BoringModel):
    """Does what the case asks for after a few batches."""

    def __init__(self, during: str, folder: Path) -> None:
        super().__init__()
        self.during, self.folder = during, folder

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 6 and self.global_rank == self.trainer.world_size - 1:
            if self.during == "it raises":
                raise ValueError("as asked for")
            if self.during == "it dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.during == "it hangs":
                time.sleep(1000)
        if self.trainer.global_step == 6 and self.during.startswith("a long batch"):
            (self.folder / "long").touch()
            time.sleep(LONG_BATCH_S)
        return super().training_step(batch, batch_idx)


class Told(CSVLogger):
    """Writes down how the run ended, by what it was told."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        with open(Path(self.save_dir) / "status", "a") as file:
            file.write(status + "\n")


def train(folder: Path, started: str, during: str) -> None:
    """Until a signal comes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    method: Any = {"fork": "fork", "spawn": "spawn"}.get(started, "popen")
    timeout = timedelta(seconds=TIMEOUT_S) if during == "it hangs" else timedelta(minutes=30)
    strategy: Any = "auto" if started == "alone" else DDPStrategy(start_method=method, timeout=timeout)
    background = during == "a background save"
    checkpoint = ModelCheckpoint(folder / "kept", every_n_train_steps=2 if background else 10**9)
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if started == "alone" else 2,
        strategy=strategy,
        max_epochs=-1,
        limit_val_batches=20 if during == "validation" else 0,
        val_check_interval=4,
        callbacks=[Notes(folder), checkpoint],
        logger=Told(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[AsyncCheckpointIO()] if background else None,
    )
    trainer.fit(Net(during, folder))


def start(case: Case, folder: Path) -> None:
    """In a process of its own: start what the case asks for."""
    hear_as_new()
    if case.started == "script":
        os.execv(sys.executable, [sys.executable, __file__, "--train", str(folder), case.started, case.during])
    elif case.started == "torchrun":
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # torchrun's own agent, with forked processes in the place of new Pythons.
        config = LaunchConfig(1, 1, 2, run_id="cases", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
        config.start_method = "fork"
        elastic_launch(config, train_as_new)(folder, case.started, case.during)
    elif case.started == "srun":
        start_as_srun(case, folder)
    else:
        train(folder, case.started, case.during)


def hear_as_new() -> None:
    """Have the signal handlers of a new Python."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def train_as_new(folder: Path, started: str, during: str) -> None:
    """`train`, without the signal handlers that a forked process takes over."""
    hear_as_new()
    train(folder, started, during)


def start_as_srun(case: Case, folder: Path) -> None:
    """Two tasks with the variables of SLURM; `scontrol` is a script."""
    script = folder / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol\n')
    script.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NODEID": "0", "NNODES": "1", "JOB_NAME": "cases", "JOB_ID": "77"}
    os.environ.update({f"SLURM_{name}": value for name, value in usual.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), PATH=f"{script.parent}:{os.environ['PATH']}")
    tasks = []
    for rank in range(2):
        tasks.append(os.fork())
        if tasks[-1] == 0:
            os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            train(folder, case.started, case.during)
            os._exit(0)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # srun hands them on
    codes = [os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks]
    os._exit(max(codes))


# ---- what becomes of it


def alive(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return found


def notes(folder: Path, rank: int) -> list[list[str]]:
    """What a process has written down."""
    path = folder / f"rank-{rank}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def run(case: Case, folder: Path) -> tuple[float, list[str]]:
    """Seconds until nobody was left, and what was wrong."""
    num_ranks = 1 if case.started == "alone" else 2
    pid = os.fork()
    if pid == 0:
        own_code = 0
        try:
            os.setsid()
            with open(folder / "printed", "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            start(case, folder)
        except SystemExit as error:
            own_code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            own_code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # As a program ends, with what is done there.
            with suppress(BaseException):
                import atexit

                atexit._run_exitfuncs()
            os._exit(own_code)
    try:
        if not await_batches(case, folder, num_ranks, pid):
            return 0.0, ["it did not begin: " + (folder / "printed").read_text()[-300:]]
        sent_s = time.monotonic()
        if case.signum:
            send(case, folder, pid)
        allowed_s = LIMIT_S + (TIMEOUT_S if case.during == "it hangs" else 0.0)
        status = None
        while time.monotonic() - sent_s < allowed_s + 60:
            if status is None and (waited := os.waitpid(pid, os.WNOHANG))[0]:
                status = waited[1]
            if status is not None and not alive(pid):
                break
            time.sleep(0.02)
        took_s = time.monotonic() - sent_s
        left = alive(pid)
        code = os.waitstatus_to_exitcode(status) if status is not None else None
    finally:
        for one in alive(pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    wrong = [f"{len(left)} processes are left"] if left else []
    if took_s > allowed_s:
        wrong.append(f"{took_s - allowed_s:.1f} s too late")
    return took_s, wrong + judge(case, folder, num_ranks, code)


def await_batches(case: Case, folder: Path, num_ranks: int, pid: int) -> bool:
    """Until all processes train."""
    deadline = time.monotonic() + START_WITHIN_S
    wanted = 6 if case.signum == 0 or case.during.startswith("a long") else 3
    while time.monotonic() < deadline:
        if all(len(notes(folder, rank)) >= wanted for rank in range(num_ranks)):
            if case.during == "validation":
                time.sleep(0.5)
            if not case.during.startswith("a long") or (folder / "long").exists():
                return True
        # At its very beginning it is still a process of this session.
        if case.signum and os.getsid(pid) == pid and not alive(pid):
            return False
        time.sleep(0.01)
    return False


def send(case: Case, folder: Path, pid: int) -> None:
    """The signal, to whom it is for."""
    if case.target == "group":
        if case.started == "torchrun":  # whose agent would end its processes by SIGKILL at a second signal
            for rank in range(2):
                os.kill(int(notes(folder, rank)[0][2]), case.signum)
        else:
            os.killpg(pid, case.signum)
            if case.during.endswith("twice"):
                time.sleep(0.5)
                os.killpg(pid, case.signum)
    elif case.target == "launcher":
        os.kill(pid, case.signum)
    else:
        os.kill(int(notes(folder, 1)[0][2]), case.signum)


def judge(case: Case, folder: Path, num_ranks: int, code: int | None) -> list[str]:
    """What is wrong with what is left."""
    wrong = []
    printed = (folder / "printed").read_text()
    lost = {"it raises": "ValueError: as asked for", "it dies": "SIGKILL", "it hangs": "Rank 1 of 2 hangs"}
    if case.signum == 0:
        return [] if lost[case.during] in printed[-6000:] and code else [f"exit code {code}: {printed[-200:]}"]
    if case.started != "torchrun" and code != 128 + case.signum:
        wrong.append(f"exit code {code}")
    if case.started == "torchrun" and not code:
        wrong.append("exit code 0")
    told = (folder / "status").read_text().split() if (folder / "status").exists() else []
    if set(told) != {"failed"}:
        wrong.append(f"the loggers were told {told}")
    if case.during.endswith("twice"):
        return wrong
    steps = {int(notes(folder, rank)[-1][1]) for rank in range(num_ranks)}
    if len(steps) > 1:
        wrong.append(f"the processes stopped after {sorted(steps)} batches")
    path = folder / ("hpc_ckpt_1.ckpt" if case.signum == signal.SIGUSR1 else "kept/stopped.ckpt")
    try:
        saved = TorchCheckpointIO().load_checkpoint(path)["global_step"]
        if saved != max(steps):
            wrong.append(f"the checkpoint is of step {saved}, and {max(steps)} were done")
    except Exception as error:
        wrong.append(f"no checkpoint: {error}")
    if case.signum == signal.SIGUSR1 and (folder / "scontrol").read_text() != "requeue 77\n":
        wrong.append("the job was not requeued once")
    if rests := [path.name for path in folder.rglob("*.tmp")]:
        wrong.append(f"left: {rests}")
    return wrong


def main() -> int:
    """Command line; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = list(dict.fromkeys(case.started for case in cases()))
    parser.add_argument("--only", default=",".join(kinds), help="who starts the processes: " + ", ".join(kinds))
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), *options.train[1:])
        return 0
    if unknown := set(options.only.split(",")) - set(kinds):
        parser.error(f"--only {', '.join(unknown)} is unknown")
    chosen = [case for case in cases() if case.started in options.only.split(",")]
    if options.quick:
        chosen = [Case("alone", signal.SIGTERM, "group"), Case("fork", signal.SIGTERM, "rank 1"), chosen[-3]]
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="signals-"))
    failed = 0
    try:
        warm_up(root / "warm")
        print("| started by | signal | to | during | s until all are gone | |\n|---|---|---|---|---:|---|", flush=True)
        for number, case in enumerate(chosen):
            folder = root / str(number)
            folder.mkdir()
            took_s, wrong = run(case, folder)
            failed += bool(wrong)
            sent = signal.Signals(case.signum).name if case.signum else ""
            verdict = "; ".join(wrong).replace("|", "/").replace("\n", " ") or "pass"
            print(f"| {case.started} | {sent} | {case.target} | {case.during} | {took_s:.1f} | {verdict} |", flush=True)
    finally:
        shutil.rmtree(root)
    print(f"\n{len(chosen) - failed} of {len(chosen)} cases pass.")
    return int(failed > 0)


def warm_up(folder: Path) -> None:
    """What the forked processes need is imported once."""
    flags: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    warnings.simplefilter("ignore")
    Trainer(**flags, max_steps=2, limit_val_batches=0, logger=False, default_root_dir=folder).fit(BoringModel())


if __name__ == "__main__":
    if not Path("/proc").is_dir():
        sys.exit("This asks Linux which processes are there.")
    sys.exit(main())
