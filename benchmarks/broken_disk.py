"""Break a disk while programs save to it: is the error clear, and is all still there that was reported?

The disks are real ones in files (loop devices), and what they answer comes from the kernel:

- ext4 that is shut down answers every call with EIO (the ioctl of `power_cut.py`);
- ext4 on a disk that is shut down takes what is written, and answers EIO when it is waited for;
- Btrfs with a quota answers EDQUOT. Needs `mkfs.btrfs`; without it there is no such row.

A program saves without end, and the disk is broken at a random moment. The program must end by itself, with an error
that names the path, the reason and the bytes. Then the disk is healed and looked at as in `kill_while_saving.py`.

Needs root, Linux, and loop devices; where one of these is missing it says so and ends with 0.

    python benchmarks/broken_disk.py                     # 63 times
    python benchmarks/broken_disk.py --times 400 --seed 7
    python benchmarks/broken_disk.py --quick
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from kill_while_saving import WRITERS, Found, Report, fit, look, start_again, state_of, tell
from power_cut import NUM_MEGABYTES, Disk, mount_for_nobody_else

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import sync_dir

MAX_WAIT_S = 0.3
MAX_END_S = 60
EIO, EROFS, EDQUOT = "Input/output error", "Read-only file system", "Disk quota exceeded"
# <linux/btrfs.h>: _IOWR(0x94, 40, 16 bytes), _IOR(0x94, 43, 48 bytes); the flag for a limit of what is referenced.
BTRFS_IOC_QUOTA_CTL, BTRFS_IOC_QGROUP_LIMIT = 0xC0109428, 0x8030942B
MAX_RFER = 1
# _IOW(0x94, 14, 4096 bytes), and the number that the first subvolume gets.
BTRFS_IOC_SUBVOL_CREATE, FIRST_SUBVOLUME = 0x5000940E, 256


# ---- more programs


def in_background(save: Callable[[AsyncCheckpointIO, Path, int], None], folder: Path, report: Report) -> None:
    """Report what is on the disk, as a loop does that never waits for it."""
    io = AsyncCheckpointIO()
    for step in count(1):
        save(io, folder / "a.ckpt", step)
        io.wait()
        for _ in io.poll():
            report(step)


def background_file(io: AsyncCheckpointIO, path: Path, step: int) -> None:
    """One file."""
    io.save_checkpoint(state_of(step), path)


def background_folder(io: AsyncCheckpointIO, path: Path, step: int) -> None:
    """A folder of shards."""
    io.save_sharded(path, state_of(step))


PROGRAMS: dict[str, Callable[[Path, Report], Any]] = {
    **WRITERS,
    "a file, in the background": partial(in_background, background_file),
    "a folder, in the background": partial(in_background, background_folder),
}


# ---- disks that break


class ShutDown:
    """Every call fails."""

    reasons = (EIO, EROFS)

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder)
        self.place = self.disk.place

    def fail(self) -> None:
        """From now on."""
        self.disk.cut()

    def heal(self) -> None:
        """It is mounted again: what had not come to the disk is gone."""
        self.disk.unmount()
        self.disk.mount()

    def remove(self) -> None:
        """Leave nothing of it."""
        self.disk.remove()


class BrokenBelow:
    """What is written is taken, and lost below."""

    reasons = (EIO, EROFS)

    def __init__(self, folder: Path) -> None:
        self.below = Disk(folder, num_megabytes=2 * NUM_MEGABYTES)
        try:
            self.disk = Disk(self.below.place)
        except OSError:
            self.below.remove()
            raise
        self.place = self.disk.place

    def fail(self) -> None:
        """From now on."""
        self.below.cut()

    def heal(self) -> None:
        """Both are mounted again."""
        self.disk.detach()
        self.below.unmount()
        self.below.mount()
        self.disk.attach()

    def remove(self) -> None:
        """Leave nothing of it."""
        self.disk.remove()
        self.below.remove()


class Quota:
    """There is room, and not for everybody."""

    reasons = (EDQUOT,)

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder, ("mkfs.btrfs", "-q"), "defaults")
        # A part of it is limited: where the limit is reached, it could not be raised again.
        self.place = self.disk.place / "limited"
        self._call(BTRFS_IOC_SUBVOL_CREATE, struct.pack("q4088s", 0, b"limited"))
        self._call(BTRFS_IOC_QUOTA_CTL, struct.pack("QQ", 1, 0))

    def fail(self) -> None:
        """From now on: more is used already."""
        self._limit(2**20)

    def heal(self) -> None:
        """No limit any more."""
        self._limit(2**63)

    def remove(self) -> None:
        """Leave nothing of it."""
        self.disk.remove()

    def _limit(self, num_bytes: int) -> None:
        self._call(BTRFS_IOC_QGROUP_LIMIT, struct.pack("6Q", FIRST_SUBVOLUME, MAX_RFER, num_bytes, 0, 0, 0))

    def _call(self, number: int, argument: bytes) -> None:
        handle = os.open(self.disk.place, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, number, bytearray(argument))
        finally:
            os.close(handle)


Breaking = ShutDown | BrokenBelow | Quota
DISKS: dict[str, Callable[[Path], Breaking]] = {
    "EIO from every call": ShutDown,
    "EIO from below": BrokenBelow,
    "EDQUOT": Quota,
}


# ---- breaking them


@dataclass(slots=True)
class Row:
    """What came of the programs of one kind on one disk."""

    found: Found = field(default_factory=Found)
    unclear: list[str] = field(default_factory=list)


def in_a_process(program: Callable[[Path, Report], Any], folder: Path, sender: int) -> None:
    """Save until that fails, and say with what."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        program(folder, partial(tell, sender))
    except BaseException as error:
        os.write(sender, b"!" + json.dumps([isinstance(error, CheckpointError), str(error)]).encode())
    finally:
        os._exit(0)


def break_one(program: Callable[[Path, Report], Any], folder: Path, disk: Breaking, wait_s: float) -> tuple[int, str]:
    """Break the disk `wait_s` after the first report. The newest step that was reported, and what is unclear."""
    reader, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        in_a_process(program, folder, sender)
    os.close(sender)
    heard = os.read(reader, 1)
    time.sleep(wait_s)
    disk.fail()
    deadline = time.monotonic() + MAX_END_S
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        more = os.read(reader, 1 << 16)
        if not more:
            break
        heard += more
    else:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    disk.heal()
    reports, _, failure = heard.decode().partition("!")
    return int(reports.split()[-1]), unclear(failure, folder, disk.reasons)


def unclear(failure: str, folder: Path, reasons: tuple[str, ...]) -> str:
    """What is wrong with what a program said at its end."""
    if not failure:
        return f"it did not end within {MAX_END_S} s, or without a word"
    is_ours, text = json.loads(failure)
    written, why = r"could not be written: {}, after \d+ bytes", f"({'|'.join(reasons)})"
    what = f"({written.format(why)}|could not be removed: {why})"
    if is_ours and re.match(rf"The checkpoint '{re.escape(str(folder))}/[^']+' {what}", text):
        return ""
    return f"it said {text!r}"


def main() -> int:
    """Command line; 1 if anything was lost, leaked or unclear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=63, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed")
    parser.add_argument("--quick", action="store_true", help="each program once on each disk")
    options = parser.parse_args()
    rounds = 1 if options.quick else -(-options.times // (len(DISKS) * len(PROGRAMS)))
    if rounds < 1:
        parser.error(f"--times {options.times} is too few")
    if sys.platform != "linux" or os.geteuid() != 0:
        print("Not measured: breaking a disk needs Linux, and root.")
        return 0
    try:
        mount_for_nobody_else()
    except OSError as error:
        print(f"Not measured: no disk can be mounted here: {error}.")
        return 0
    root = Path(tempfile.mkdtemp(prefix="broken-"))
    try:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        print(f"seed {seed}", flush=True)
        return break_all(root, rounds, seed)
    finally:
        shutil.rmtree(root)


def break_all(root: Path, rounds: int, seed: int) -> int:
    """All programs on all disks, and the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fit(root / "warm", lambda _: None, max_steps=1)
    table: dict[tuple[str, str], Row] = {}
    for kind, make in DISKS.items():
        (place := root / kind.replace(" ", "-")).mkdir()
        try:
            disk = make(place)
        except OSError as error:
            print(f"Not measured: no disk that answers {kind} can be made here: {error}.", flush=True)
            continue
        try:
            for number in range(rounds * len(PROGRAMS)):
                name = list(PROGRAMS)[number % len(PROGRAMS)]
                row = table.setdefault((kind, name), Row())
                folder = disk.place / str(number)
                folder.mkdir()
                sync_dir(folder.parent)
                one = f"{kind}, seed {seed}, {number}"
                wait_s = random.Random(f"{seed} {kind} {number}").random() * MAX_WAIT_S
                reported, wrong = break_one(PROGRAMS[name], folder, disk, wait_s)
                row.unclear += [f"{one}: {wrong}"] if wrong else []
                look(folder, reported, one, row.found)
                start_again(name, folder, reported, one, row.found)
                shutil.rmtree(folder)
        finally:
            disk.remove()
    print("| the disk answers | saved | times | lost | leaked bytes | unclear errors | |")
    print("|---|---|---:|---:|---:|---:|---|")
    for (kind, name), row in table.items():
        found, bad = row.found, bool(row.found.lost or row.found.leaked_bytes or row.unclear)
        lost = len({line.partition(": ")[0] for line in found.lost})
        cells = f"{kind} | {name} | {found.kills} | {lost} | {found.leaked_bytes} | {len(row.unclear)}"
        print(f"| {cells} | {'fail' if bad else 'pass'} |")
    wrong_ones = [line for row in table.values() for line in [*row.found.lost, *row.unclear]]
    print(*wrong_ones, sep="\n")
    return int(bool(wrong_ones) or any(row.found.leaked_bytes for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
