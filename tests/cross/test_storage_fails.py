"""When a disk is full or broken while a run saves, the error says where and how much, and what was saved stays."""

import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO, checkpoint_damage, clean_leftovers
from fulmen.fabric.checkpoint_io.sharded import load_sharded, save_sharded
from fulmen.fabric.errors import CheckpointError
from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:The checkpoint folder", "ignore:Trainer.log_every_n_steps")
NAMED = r"The checkpoint '{path}' could not be written: .*after \d+ bytes.*what was there before is unchanged"


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1000)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Breaks(Callback):
    """Does something at the beginning of an epoch."""

    def __init__(self, epoch: int, act: Any) -> None:
        self.epoch, self.act = epoch, act

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self.act()


def fit(folder: Path, act: Any = None, ckpt_path: Any = None, **kept: Any) -> ModelCheckpoint:
    keeping = ModelCheckpoint(folder, **kept)
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[Breaks(2, act or (lambda: None)), keeping],
        default_root_dir=folder,
        **off,
    )
    trainer.fit(Net(), DataLoader(torch.ones(2, 4)), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return keeping


def assert_the_last_good_one_is_there(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["epoch=1-step=4.ckpt", "last.ckpt"], "nothing is left half-written"
    for name in os.listdir(folder):
        assert checkpoint_damage(folder / name) is None
        assert torch.load(folder / name, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("save_last", [True, "link"])
def test_a_disk_that_fails_costs_the_new_one_only(
    number: int, save_last: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def act() -> None:
        monkeypatch.setattr(os, "fsync", broken)

    with pytest.raises(CheckpointError, match=NAMED.format(path=tmp_path / "c" / "epoch=2-step=6.ckpt")) as caught:
        fit(tmp_path / "c", act, save_last=save_last)
    assert os.strerror(number) in str(caught.value)
    assert "bytes are free" in str(caught.value)
    assert_the_last_good_one_is_there(tmp_path / "c")
    monkeypatch.setattr(os, "fsync", fsync)
    fit(tmp_path / "c", ckpt_path="auto", save_last=save_last)
    assert torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)["epoch"] == 2


def in_a_process(folder: Path) -> None:
    """With a limit for the size of files, as a full disk has one."""

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    torch.set_num_threads(1)  # threads of the parent are not here
    try:
        fit(folder / "c", act, save_last=True)
        seen = {"error": None}
    except CheckpointError as error:
        seen = {"error": str(error)}
    except BaseException:
        seen = {"failed": traceback.format_exc()}  # type: ignore[dict-item]
    (folder / "seen.json").write_text(json.dumps(seen))
    os._exit(0)


def test_a_file_that_may_not_grow_is_told_with_its_bytes(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        in_a_process(tmp_path)
    os.waitpid(pid, 0)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert "failed" not in seen, seen["failed"]
    # What fits into the limit is counted.
    assert f"{tmp_path / 'c' / 'epoch=2-step=6.ckpt'}' could not be written: File too large, after" in seen["error"]
    assert "after 0 bytes" not in seen["error"]
    assert_the_last_good_one_is_there(tmp_path / "c")


def on_a_small_disk(folder: Path) -> None:
    """On a disk of a megabyte, which only this process sees, and which is filled while it trains."""
    seen: dict[str, Any] = {}
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        new_mounts, private = 0x00020000, 0x00044000  # of <linux/sched.h>, <linux/mount.h>
        disk = folder / "disk"
        disk.mkdir()
        if (
            libc.unshare(new_mounts)
            or libc.mount(None, b"/", None, private, None)
            or libc.mount(b"disk", os.fsencode(disk), b"tmpfs", 0, b"size=1m")
        ):
            seen["skip"] = os.strerror(ctypes.get_errno())
            return

        def act() -> None:
            (disk / "rest").write_bytes(b"x" * (shutil.disk_usage(disk).free - 40_000))

        torch.set_num_threads(1)
        try:
            fit(disk / "c", act, save_last=True)
        except CheckpointError as error:
            seen["error"] = str(error)
        assert_the_last_good_one_is_there(disk / "c")
        before = sorted(os.listdir(disk))
        save_sharded(disk / "sharded.ckpt", {"weights": torch.ones(1000)})
        try:
            save_sharded(disk / "sharded.ckpt", {"weights": torch.zeros(200_000)})
        except CheckpointError as error:
            seen["sharded"] = str(error)
        assert sorted(os.listdir(disk)) == sorted([*before, "sharded.ckpt"]), "nothing is left half-written"
        assert checkpoint_damage(disk / "sharded.ckpt") is None
    except BaseException:
        seen["failed"] = traceback.format_exc()
    finally:
        (folder / "seen.json").write_text(json.dumps(seen))
        os._exit(0)


@pytest.mark.skipif(os.getuid() != 0 or not os.path.isdir("/proc"), reason="a disk is mounted, by root on Linux")
def test_a_disk_that_is_really_full_is_told_with_its_bytes(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        on_a_small_disk(tmp_path)
    os.waitpid(pid, 0)
    seen = json.loads((tmp_path / "seen.json").read_text())
    if "skip" in seen:
        pytest.skip(f"no disk of its own can be mounted here: {seen['skip']}")
    assert "failed" not in seen, seen["failed"]
    for kind, name in (("error", "c/epoch=2-step=6.ckpt"), ("sharded", "sharded.ckpt")):
        path = re.escape(str(tmp_path / "disk" / name))
        said = rf"{path}' could not be written: No space left on device, after \d+ bytes"
        assert re.search(rf"{said} \(\d+ bytes are free\)", seen[kind]), seen[kind]
        assert "nothing was left and what was there before is unchanged" in seen[kind]
    assert "after 0 bytes" not in seen["error"]


def on_a_disk_that_breaks(folder: Path) -> None:
    """On an ext4 of its own that is shut down while it trains: from then on the kernel answers every call with EIO."""
    seen: dict[str, Any] = {}
    libc = ctypes.CDLL(None, use_errno=True)
    image, disk = folder / "image", folder / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 * 2**20)

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def shut_down() -> None:
        handle = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(handle, 0x8004587D, struct.pack("I", 1))  # EXT4_IOC_SHUTDOWN of <linux/ext4.h>: flush the journal
        os.close(handle)

    def broken(save: Any) -> None:
        shut_down()
        save()

    try:
        try:
            if libc.unshare(0x00020000) or libc.mount(None, b"/", None, 0x00044000, None):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            call("mkfs.ext4", "-q", "-F", str(image))
            call("mount", "-o", "loop", str(image), str(disk))
        except (OSError, subprocess.CalledProcessError) as error:
            seen["skip"] = str(error)
            return
        torch.set_num_threads(1)
        background = AsyncCheckpointIO()
        ways: dict[str, Any] = {
            "c/epoch=2-step=6.ckpt": lambda: fit(disk / "c", shut_down, save_last=True),
            "sharded.ckpt": lambda: broken(lambda: save_sharded(disk / "sharded.ckpt", {"w": torch.zeros(9)})),
            "async.ckpt": lambda: broken(
                lambda: (background.save_checkpoint({"w": torch.zeros(9)}, disk / "async.ckpt"), background.wait())
            ),
            "async sharded.ckpt": lambda: broken(
                lambda: (background.save_sharded(disk / "async sharded.ckpt", {"w": torch.zeros(9)}), background.wait())
            ),
        }
        for name, way in ways.items():
            if name.endswith("sharded.ckpt"):
                save_sharded(disk / name, {"w": torch.ones(9)})
            elif name == "async.ckpt":
                TorchCheckpointIO().save_checkpoint({"w": torch.ones(9)}, disk / name)
            try:
                way()
            except CheckpointError as error:
                seen[name] = str(error)
            call("umount", str(disk))
            call("mount", "-o", "loop", str(image), str(disk))
            if name.startswith("c/"):
                fit(disk / "c", ckpt_path="auto", save_last=True)
                assert sorted(os.listdir(disk / "c")) == ["epoch=2-step=6.ckpt", "last.ckpt"]
                assert torch.load(disk / "c" / "last.ckpt", weights_only=True)["global_step"] == 6
                continue
            clean_leftovers(disk)
            assert checkpoint_damage(disk / name) is None
            state = {"w": torch.zeros(9)}
            if name.endswith("sharded.ckpt"):
                load_sharded(disk / name, state)
            else:
                state = TorchCheckpointIO().load_checkpoint(disk / name)
            assert torch.equal(state["w"], torch.ones(9)), "the last good one is untouched"
        assert sorted(os.listdir(disk)) == sorted(["lost+found", "c", *(name for name in ways if "/" not in name)])
    except BaseException:
        seen["failed"] = traceback.format_exc()
    finally:
        (folder / "seen.json").write_text(json.dumps(seen))
        os._exit(0)


@pytest.mark.skipif(
    os.getuid() != 0 or sys.platform != "linux", reason="a disk is mounted and broken, by root on Linux"
)
def test_a_disk_that_really_breaks_is_told_and_what_was_saved_stays(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        on_a_disk_that_breaks(tmp_path)
    os.waitpid(pid, 0)
    seen = json.loads((tmp_path / "seen.json").read_text())
    if "skip" in seen:
        pytest.skip(f"no disk of its own can be mounted here: {seen['skip']}")
    assert "failed" not in seen, seen["failed"]
    for name in ("c/epoch=2-step=6.ckpt", "sharded.ckpt", "async.ckpt", "async sharded.ckpt"):
        said = f"{tmp_path / 'disk' / name}' could not be written: Input/output error, after "
        assert said in seen[name], seen[name]


def test_a_folder_that_vanishes_is_made_again_and_the_ranking_holds(tmp_path: Path) -> None:
    def act() -> None:
        os.rename(tmp_path / "c", tmp_path / "away")

    fit(tmp_path / "c", act, save_last=True)
    assert sorted(os.listdir(tmp_path / "c")) == ["epoch=2-step=6.ckpt", "last.ckpt"]
    assert_the_last_good_one_is_there(tmp_path / "away")


@pytest.mark.parametrize("place", [{"dirpath": "c" * 300}, {"dirpath": "c", "filename": "{epoch}" + "f" * 300}])
def test_a_name_that_is_too_long_is_said_before_the_first_step(place: dict[str, str], tmp_path: Path) -> None:
    def act() -> None:
        pytest.fail("an epoch began")

    place = {**place, "dirpath": str(tmp_path / place["dirpath"])}
    keeping = ModelCheckpoint(**place)  # type: ignore[arg-type]
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[Breaks(0, act), keeping], **off)
    with pytest.raises(CheckpointError, match=r"has 300 bytes, and a name has 255 at most there\. Nothing was trained"):
        trainer.fit(Net(), DataLoader(torch.ones(2, 4)))  # type: ignore[arg-type]


def test_a_file_where_the_folder_was_is_named(tmp_path: Path) -> None:
    def act() -> None:
        os.rename(tmp_path / "c", tmp_path / "away")
        (tmp_path / "c").write_text("")

    with pytest.raises(CheckpointError, match=f"could not be written: File exists: '{tmp_path / 'c'}' is a file"):
        fit(tmp_path / "c", act, save_last=True)
    assert_the_last_good_one_is_there(tmp_path / "away")
