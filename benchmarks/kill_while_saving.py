"""Kill programs with SIGKILL while they save, at random moments: is the newest checkpoint they reported still there?

A program is forked, saves one checkpoint after the other, reports each when its save is over, and is killed. Then the
newest reported checkpoint, or a newer one, must load with the right content; every checkpoint under its own name must
be whole; and after what the next start does first, no byte of a half-written one may be left.

    python benchmarks/kill_while_saving.py                          # 200 kills, with TMPDIR here and elsewhere
    python benchmarks/kill_while_saving.py --kills 1000 --seed 7 --folder /mnt/disk --tmpdir /dev/shm
    python benchmarks/kill_while_saving.py --quick
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fulmen.fabric.checkpoint_io import (
    AsyncCheckpointIO,
    TorchCheckpointIO,
    clean_leftovers,
    load_sharded,
    save_sharded,
)
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel

Report = Callable[[int], None]
NUM_VALUES = 500_000  # of each checkpoint: 2 MB
MAX_WAIT_S = 0.25
TMPDIRS = ("same file system", "another one")


def state_of(step: int) -> dict[str, Any]:
    """What a checkpoint of this step holds."""
    return {"step": step, "weight": torch.full((NUM_VALUES,), float(step))}


def is_right(state: dict[str, Any]) -> bool:
    """Is it whole, and of one step?"""
    return bool((state["weight"] == float(state["step"])).all()) and state["weight"].numel() == NUM_VALUES


# ---- what is killed: each is given a folder and reports the steps that it has saved


def save_file(folder: Path, report: Report) -> None:
    """One file, replaced each time."""
    for step in count(1):
        TorchCheckpointIO().save_checkpoint(state_of(step), folder / "a.ckpt")
        report(step)


def save_files(folder: Path, report: Report) -> None:
    """A new file each time; the one before is removed."""
    io = TorchCheckpointIO()
    for step in count(1):
        io.save_checkpoint(state_of(step), folder / f"{step}.ckpt")
        report(step)
        io.remove_checkpoint(folder / f"{step - 1}.ckpt")


def save_folder(folder: Path, report: Report) -> None:
    """A folder of shards, replaced each time."""
    for step in count(1):
        save_sharded(folder / "a.ckpt", state_of(step))
        report(step)


class Net(BoringModel):
    """Has a buffer that says which step it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(NUM_VALUES))

    def on_train_batch_start(self, *_: Any) -> None:
        self.get_buffer("weight").fill_(float(self.trainer.global_step + 1))


class Reports(Callback):
    """Tells what is on the disk."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_checkpoint_saved(self, trainer: Any, pl_module: Any, path: str) -> None:
        if "step=" in os.path.basename(path):
            self.report(int(path.rpartition("step=")[2].partition(".")[0]))


def fit(folder: Path, report: Report, io: Any = None, **flags: Any) -> Trainer:
    """Save after each step of a fit, keep one and a `last`; go on from what is there."""
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last="link")
    trainer = Trainer(
        **{"accelerator": "cpu", "max_steps": -1, "max_epochs": -1, "limit_val_batches": 0, "logger": False, **flags},
        callbacks=[checkpoint, Reports(report)],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[io] if io is not None else None,
    )
    trainer.fit(Net(), ckpt_path="auto")
    return trainer


def fit_in_background(folder: Path, report: Report) -> None:
    """The same, saved in the background."""
    fit(folder, report, AsyncCheckpointIO())


WRITERS: dict[str, Callable[[Path, Report], Any]] = {
    "a file, replaced": save_file,
    "files, the last one kept": save_files,
    "a folder, replaced": save_folder,
    "a fit": fit,
    "a fit, in the background": fit_in_background,
}


# ---- killing


@dataclass(slots=True)
class Found:
    """What was left by the programs of one kind."""

    kills: int = 0
    during_a_save: int = 0
    lost: list[str] = field(default_factory=list)
    leaked_bytes: int = 0


def tell(sender: int, step: int) -> None:
    """Report a step to whoever reads at the other end."""
    os.write(sender, b"%d\n" % step)


def start_one(writer: Callable[[Path, Report], Any], folder: Path) -> tuple[int, int]:
    """A process that saves without end. Returns its number, and where to read what it reports."""
    reader, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            writer(folder, partial(tell, sender))
        finally:
            os._exit(1)  # it never ends by itself
    os.close(sender)
    return pid, reader


def kill_one(writer: Callable[[Path, Report], Any], folder: Path, wait_s: float) -> int:
    """Let it save and kill it `wait_s` after the first report. Returns the newest step that it reported."""
    pid, reader = start_one(writer, folder)
    said = os.read(reader, 1)
    time.sleep(wait_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while more := os.read(reader, 1 << 16):
        said += more
    os.close(reader)
    if not said or not os.WIFSIGNALED(status):
        raise SystemExit(f"The program to be killed ended by itself (status {status}), after {said!r}.")
    return int(said.decode().rpartition("\n")[0].rpartition("\n")[2])


def load(path: Path) -> dict[str, Any]:
    """A checkpoint of any of the programs, verified."""
    if path.is_dir():
        state = state_of(0)
        load_sharded(path, state)
        return state
    saved = TorchCheckpointIO().load_checkpoint(path)
    if "state_dict" in saved:
        return {"step": saved["global_step"], "weight": saved["state_dict"]["weight"]}
    return saved


def look(folder: Path, reported: int, seed: str, found: Found) -> None:
    """Is everything there that was reported, and nothing else?"""
    found.kills += 1
    found.during_a_save += any(name.endswith(".tmp") for name in os.listdir(folder))
    steps = []
    for path in folder.glob("*.ckpt"):
        if path.is_symlink() and not path.exists():
            found.lost.append(f"{seed}: {path.name} points to nothing")
            continue
        try:
            state = load(path)
            if not is_right(state):
                raise ValueError("its content is not of one step")
            steps.append(state["step"])
        except Exception as error:
            found.lost.append(f"{seed}: {path.name}: {error}")
    if max(steps, default=0) < reported:
        found.lost.append(f"{seed}: step {reported} was reported, and the newest that loads is {max(steps, default=0)}")


def start_again(name: str, folder: Path, reported: int, seed: str, found: Found) -> None:
    """What the next start does; for a fit, in a process of its own."""
    if not name.startswith("a fit"):
        clean_leftovers(folder)
    else:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                trainer = fit(folder, lambda _: None, max_steps=1)
                code = 0 if trainer.global_step >= reported else 2
            finally:
                os._exit(code)
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            found.lost.append(f"{seed}: the next fit did not go on from step {reported} (exit code {code})")
    for left in folder.rglob("*"):
        if not left.name.endswith(".ckpt") and left.parent == folder:
            found.leaked_bytes += sum(part.stat().st_size for part in [left, *left.rglob("*")] if part.is_file()) + 1


@contextmanager
def temporary_folder(tmpdir: str) -> Iterator[None]:
    """Inside, files without a place of their own go to `tmpdir`."""
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), tmpdir
    tempfile.tempdir = None
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None


def main() -> int:
    """Command line; 1 if anything was lost or leaked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed")
    parser.add_argument("--folder", default=None, help="where to save; by default in the folder for temporary files")
    parser.add_argument("--tmpdir", default="/dev/shm", help="TMPDIR of every second kill")
    parser.add_argument("--quick", action="store_true", help="5 kills")
    options = parser.parse_args()
    kills = 5 if options.quick else options.kills
    if kills < 1:
        parser.error(f"--kills {options.kills} is too few")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    elsewhere = options.tmpdir if os.path.isdir(options.tmpdir) else tempfile.gettempdir()
    root = Path(tempfile.mkdtemp(prefix="kills-", dir=options.folder))
    found = {(name, place): Found() for name in WRITERS for place in TMPDIRS}
    try:
        fit(root / "warm", lambda _: None, max_steps=1)  # what the forked ones need is imported once
        for number in range(kills):
            name = list(WRITERS)[number % len(WRITERS)]
            place = TMPDIRS[number // len(WRITERS) % 2]
            folder = root / str(number)
            folder.mkdir()
            here = found[name, place]
            with temporary_folder(elsewhere if place == TMPDIRS[1] else str(root)):
                one = f"seed {seed}, kill {number}"
                reported = kill_one(WRITERS[name], folder, random.Random(f"{seed} {number}").random() * MAX_WAIT_S)
                look(folder, reported, one, here)
                start_again(name, folder, reported, one, here)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    return show(found)


def show(found: dict[tuple[str, str], Found]) -> int:
    """Print the table."""
    print("| saved | TMPDIR on | kills | during a save | lost | leaked bytes | |\n|---|---|---:|---:|---:|---:|---|")
    failed = False
    for (name, place), one in found.items():
        if one.kills:
            bad = bool(one.lost or one.leaked_bytes)
            failed |= bad
            cells = (
                name,
                place,
                one.kills,
                one.during_a_save,
                len(one.lost),
                one.leaked_bytes,
                "fail" if bad else "pass",
            )
            print("| " + " | ".join(map(str, cells)) + " |")
    for one in found.values():
        print(*one.lost, sep="\n", end="\n" if one.lost else "")
    return int(failed)


if __name__ == "__main__":
    if sys.platform == "win32":
        sys.exit("There is no SIGKILL on this system.")
    sys.exit(main())
