"""Cut the power of a disk while programs save to it: is the newest checkpoint they reported still there?

The disk is an ext4 file system in a file (a loop device), mounted with `noauto_da_alloc`, so that nothing is written
earlier than it has to be. The cut is EXT4_IOC_SHUTDOWN without flushing the journal: what no fsync had brought to the
disk is gone, as it is when a machine loses its power. Then the disk is mounted again, and looked at as in
`kill_while_saving.py`. The last row is a plain `torch.save` and `os.replace`, to see what a cut does to them.

Needs root, Linux, and loop devices; where one of these is missing it says so and ends with 0.

    python benchmarks/power_cut.py                     # 40 cuts
    python benchmarks/power_cut.py --cuts 400 --seed 7
    python benchmarks/power_cut.py --quick
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from kill_while_saving import WRITERS, Found, Report, fit, look, start_again, start_one, state_of

from fulmen.fabric.filesystem import sync_dir

# <linux/ext4.h>: _IOR('X', 125, __u32), and the flag that leaves the journal as it is on the disk.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
NUM_MEGABYTES = 256
MAX_WAIT_S = 0.5
BUSY_AT_MOST_S = 20.0
PLAIN = "torch.save, os.replace"


def save_plainly(folder: Path, report: Report) -> None:
    """Nothing is waited for."""
    for step in count(1):
        torch.save(state_of(step), folder / "aside")
        os.replace(folder / "aside", folder / "a.ckpt")
        report(step)


class Disk:
    """A file system in a file.

    Args:
        folder: Where the file is, and the place of what is in it.
        make: The command that makes the file system.
        options: With which it is mounted.
        num_megabytes: Its size.

    Raises:
        OSError: If one cannot be made here, saying why.
    """

    def __init__(
        self,
        folder: Path,
        make: tuple[str, ...] = ("mkfs.ext4", "-q", "-F"),
        options: str = "noauto_da_alloc",
        num_megabytes: int = NUM_MEGABYTES,
    ) -> None:
        self.image, self.place, self._options = folder / "disk", folder / "mounted", options
        self._device = ""
        self.place.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(num_megabytes * 2**20)
        try:
            said(*make, str(self.image))
            self.attach()
        except OSError:
            self.remove()
            raise

    def attach(self) -> None:
        """Make a device of the file, and put it in its place."""
        self._device = said("losetup", "-f", "--show", str(self.image))
        self.mount()

    def detach(self) -> None:
        """Leave the file alone."""
        if os.path.ismount(self.place):
            self.unmount()
        if self._device:
            said("losetup", "-d", self._device)
        self._device = ""

    def mount(self) -> None:
        """Put it in its place; what was begun before a cut is recovered."""
        said("mount", "-o", self._options, self._device, str(self.place))

    def unmount(self) -> None:
        """Take it away."""
        end_s = time.monotonic() + BUSY_AT_MOST_S
        while True:
            try:
                said("umount", str(self.place))
                return
            except OSError as error:  # the system still closes the files of a process that was killed
                if "busy" not in str(error) or time.monotonic() > end_s:
                    raise
            time.sleep(0.1)

    def cut(self) -> None:
        """From now on nothing reaches the disk."""
        handle = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def remove(self) -> None:
        """Leave nothing of it."""
        self.detach()
        self.image.unlink()
        self.place.rmdir()


def said(*command: str) -> str:
    """What a command prints.

    Raises:
        OSError: If it is not here, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise OSError(f"there is no `{command[0]}`") from error
    if done.returncode:
        raise OSError(f"`{' '.join(command)}`: {done.stderr.strip()}")
    return done.stdout.strip()


def mount_for_nobody_else() -> None:
    """What is mounted from now on is seen by this process and its children only.

    A process that copies the table of mounts meanwhile would hold a disk that is to be mounted anew.

    Raises:
        OSError: If the system does not let it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x00020000, 0x00044000  # of <linux/sched.h>, <linux/mount.h>
    if libc.unshare(new_mounts) or libc.mount(None, b"/", None, private, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def cut_one(disk: Disk, writer: Callable[[Path, Report], Any], folder: Path, wait_s: float) -> int:
    """Let it save, and cut the power `wait_s` after the first report. Returns the newest step that was reported."""
    pid, reader = start_one(writer, folder)
    said = os.read(reader, 1)
    time.sleep(wait_s)
    # What is reported after the cut would be a lie of the system: the program stands still meanwhile.
    os.kill(pid, signal.SIGSTOP)
    disk.cut()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reader, 1 << 16):
        said += more
    os.close(reader)
    if not said:
        raise SystemExit("The program to be cut off ended before it had saved anything.")
    disk.unmount()
    disk.mount()
    return int(said.decode().rpartition("\n")[0].rpartition("\n")[2])


def main() -> int:
    """Command line; 1 if anything was lost or leaked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=40, help="in all, without those of the row for comparison")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed")
    parser.add_argument("--quick", action="store_true", help="5 cuts")
    options = parser.parse_args()
    cuts = 5 if options.quick else options.cuts
    if cuts < 1:
        parser.error(f"--cuts {options.cuts} is too few")
    if sys.platform != "linux" or os.geteuid() != 0:
        print("Not measured: cutting a disk off needs Linux, and root.")
        return 0
    root = Path(tempfile.mkdtemp(prefix="cuts-"))
    disk: Disk | None = None
    try:
        try:
            mount_for_nobody_else()
            disk = Disk(root)
            disk.cut()
            disk.unmount()
            disk.mount()
        except OSError as error:
            print(f"Not measured: no disk can be made and cut off here: {error}.")
            return 0
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        print(f"seed {seed}", flush=True)
        return cut_all(disk, root, cuts, seed)
    finally:
        if disk is not None:
            disk.remove()
        shutil.rmtree(root)


def cut_all(disk: Disk, root: Path, cuts: int, seed: int) -> int:
    """All programs in turns, and the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fit(root / "warm", lambda _: None, max_steps=1)
    writers = {**WRITERS, PLAIN: save_plainly}
    found = {name: Found() for name in writers}
    for number in range(-(-cuts * len(writers) // len(WRITERS))):
        name = list(writers)[number % len(writers)]
        folder = disk.place / str(number)
        folder.mkdir()
        sync_dir(disk.place)
        reported = cut_one(disk, writers[name], folder, random.Random(f"{seed} {number}").random() * MAX_WAIT_S)
        one = f"seed {seed}, cut {number}"
        look(folder, reported, one, found[name])
        if name != PLAIN:
            start_again(name, folder, reported, one, found[name])
        shutil.rmtree(folder)
    print("| saved | cuts | lost | leaked bytes | |\n|---|---:|---:|---:|---|")
    failed = False
    for name, one_kind in found.items():
        bad = bool(one_kind.lost or one_kind.leaked_bytes)
        failed |= bad and name != PLAIN
        verdict = "for comparison" if name == PLAIN else "fail" if bad else "pass"
        cut_off = len({line.partition(": ")[0] for line in one_kind.lost})
        print(f"| {name} | {one_kind.kills} | {cut_off} | {one_kind.leaked_bytes} | {verdict} |")
    for name, one_kind in found.items():
        if name != PLAIN and one_kind.lost:
            print(*one_kind.lost, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
