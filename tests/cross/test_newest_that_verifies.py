"""`ckpt_path="auto"`, `"last"` and `"best"` take what is whole, in a new process too, and say what they passed over."""

import json
import os
import shutil
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError
from fulmen.trainer import LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers import CSVLogger
from fulmen.trainer.strategies import FSDPStrategy

pytestmark = pytest.mark.filterwarnings("ignore:The checkpoint folder", "ignore:ModelCheckpoint.dirpath")
LOSSES = (3.0, 1.0, 2.0, 0.5, 4.0)


class Net(LightningModule):
    """Its validation loss is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.trained: list[tuple[int, int]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.trained.append((self.current_epoch, batch_idx))
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", LOSSES[self.current_epoch])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(8.0).reshape(2, 4)), batch_size=1)


def new_trainer(folder: Path, epochs: int = 2, **flags: Any) -> Trainer:
    """A Trainer as a new process makes it: it counts the versions of its folder."""
    flags.setdefault("logger", CSVLogger(folder))
    flags.setdefault("callbacks", [ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)])
    off = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=epochs, **off, **flags)


def fit(folder: Path, epochs: int = 2, ckpt_path: Any = None, **flags: Any) -> tuple[Trainer, Net]:
    seed_everything(3, verbose=False)
    trainer, net = new_trainer(folder, epochs, **flags), Net()
    trainer.fit(net, loader(), loader(), ckpt_path=ckpt_path)
    return trainer, net


def kept(folder: Path, version: int = 0) -> Path:
    return folder / "lightning_logs" / f"version_{version}" / "checkpoints"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    os.remove(path)  # another name of it, if there is one, keeps what was written
    path.write_bytes(content)


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return fit(tmp_path_factory.mktemp("whole"), 4)[1]


@pytest.fixture
def two_epochs(tmp_path: Path, run_of_two: Path) -> Path:
    shutil.copytree(run_of_two, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    fit(folder)
    age(kept(folder) / "epoch=0-step=2.ckpt", 100)
    age(kept(folder) / "last.ckpt", -1)
    return folder


# ---- a new process


@pytest.mark.parametrize("word", ["auto", "last"])
def test_a_new_process_goes_on_where_the_one_before_ended(word: str, two_epochs: Path, whole: Net) -> None:
    trainer, resumed = fit(two_epochs, 4, word)
    assert trainer.ckpt_path == str(kept(two_epochs) / "last.ckpt")
    assert resumed.trained == whole.trained[4:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert list(kept(two_epochs, 1).iterdir()), "it keeps its own in its own version"


def test_a_new_process_knows_the_best_of_the_one_before(two_epochs: Path) -> None:
    trainer = new_trainer(two_epochs)
    trainer.test(Net(), loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(kept(two_epochs) / "epoch=1-step=4.ckpt")


def test_auto_begins_afresh_where_there_is_nothing(tmp_path: Path, whole: Net) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ckpt_path.*")
        trainer, net = fit(tmp_path, 1, "auto")
    assert trainer.ckpt_path is None
    assert net.trained == whole.trained[:2]
    with pytest.raises(ConfigurationError, match="ckpt_path='auto'"):
        new_trainer(tmp_path / "other").test(Net(), loader(), ckpt_path="auto")


def test_a_named_version_never_goes_on_from_another_one(two_epochs: Path) -> None:
    trainer, _ = fit(two_epochs, 1, "auto", logger=CSVLogger(two_epochs, version="mine"))
    assert trainer.ckpt_path is None


def test_evaluating_first_does_not_hide_earlier_runs(two_epochs: Path) -> None:
    trainer = new_trainer(two_epochs, 3)
    trainer.test(net := Net(), loader(), verbose=False)
    trainer.fit(net, loader(), loader(), ckpt_path="auto")
    assert trainer.ckpt_path == str(kept(two_epochs) / "last.ckpt")


# ---- damage


def test_a_damaged_one_is_passed_over_once_and_kept_aside(two_epochs: Path, whole: Net) -> None:
    damage(kept(two_epochs) / "last.ckpt")
    age(kept(two_epochs) / "last.ckpt", -10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, resumed = fit(two_epochs, 4, "auto")
    [told] = [str(one.message) for one in caught if "passed over" in str(one.message)]
    assert "last.ckpt" in told
    assert "last.ckpt.damaged" in told
    assert trainer.ckpt_path == str(kept(two_epochs) / "epoch=1-step=4.ckpt")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert (kept(two_epochs) / "last.ckpt.damaged").exists()
    assert not (kept(two_epochs) / "last.ckpt").exists()


def test_two_names_of_one_damaged_file_are_one(two_epochs: Path) -> None:
    folder = kept(two_epochs)
    newest = folder / "epoch=1-step=4.ckpt"
    damage(newest)
    os.remove(folder / "last.ckpt")
    os.symlink(newest.name, folder / "last.ckpt")
    with pytest.warns(UserWarning, match="passed over 1|passed over 2"):
        trainer, _ = fit(two_epochs, 3, "auto")
    assert trainer.ckpt_path == str(folder / "epoch=0-step=2.ckpt")
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt.damaged"]


def test_the_next_best_stands_in_for_a_damaged_best_and_an_evaluation_moves_nothing(two_epochs: Path) -> None:
    damage(kept(two_epochs) / "epoch=1-step=4.ckpt")
    before = sorted(kept(two_epochs).iterdir())
    trainer = new_trainer(two_epochs)
    with pytest.warns(UserWarning, match="passed over 1"):
        trainer.test(Net(), loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(kept(two_epochs) / "epoch=0-step=2.ckpt")
    assert sorted(kept(two_epochs).iterdir()) == before


def test_if_none_is_whole_auto_begins_and_the_others_refuse(two_epochs: Path) -> None:
    for path in kept(two_epochs).iterdir():
        damage(path)
    for word in ("last", "auto"):
        with pytest.raises(CheckpointDamagedError, match="finds no checkpoint that can be loaded"):
            new_trainer(two_epochs).test(Net(), loader(), ckpt_path=word)
    with pytest.warns(UserWarning, match="starts afresh"):
        trainer, net = fit(two_epochs, 1, "auto")
    assert (trainer.ckpt_path, len(net.trained)) == (None, 2)


def test_auto_goes_on_from_no_bare_weights(two_epochs: Path) -> None:
    folder = kept(two_epochs)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    torch.save({"state_dict": checkpoint["state_dict"]}, folder / "z.ckpt")
    age(folder / "z.ckpt", -100)
    with pytest.warns(UserWarning, match="weights only"):
        trainer, _ = fit(two_epochs, 3, "auto")
    assert trainer.ckpt_path == str(folder / "last.ckpt")
    assert (folder / "z.ckpt").exists(), "it is whole"


def test_a_path_is_never_replaced_by_another(two_epochs: Path) -> None:
    last = kept(two_epochs) / "last.ckpt"
    damage(last)
    with pytest.raises(CheckpointDamagedError, match=r"last\.ckpt"):
        fit(two_epochs, 3, last)
    assert last.exists()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_is_flipped_the_newest_whole_one_is_taken(data: st.DataObject, run_of_two: Path) -> None:
    folder = run_of_two.parent / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run_of_two, folder)
    path = kept(folder) / "last.ckpt"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    os.remove(path)
    path.write_bytes(content)
    trainer = new_trainer(folder)
    with pytest.warns(UserWarning, match="passed over 1"):
        trainer.test(Net(), loader(), ckpt_path="last", verbose=False)
    assert trainer.ckpt_path == str(kept(folder) / "epoch=1-step=4.ckpt")


# ---- two processes


def work(rank: int, folder: Path) -> None:
    """Several runs of two processes, as torchrun starts them."""
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    others = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1, "TORCHELASTIC_RUN_ID": 1, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ |= {name: str(value) for name, value in (ranks | others).items()}
    seen: dict[str, Any] = {}
    try:
        # They meet in a file: a port might be taken by now.
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        for name, strategy in (("ddp", "ddp"), ("fsdp", FSDPStrategy(state_dict_type="sharded"))):
            here, options = folder / name, {"devices": 2, "strategy": strategy}
            fit(here, 2, **options)
            torch.distributed.barrier()
            if rank == 0:
                newest = kept(here) / "last.ckpt"
                part = newest if newest.is_file() else next(newest.glob("*.distcp"))
                damage(part)
                age(newest / ".metadata" if newest.is_dir() else newest, -100)
            torch.distributed.barrier()
            options = {"devices": 2, "strategy": strategy if name == "ddp" else FSDPStrategy(state_dict_type="sharded")}
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer, net = fit(here, 3, "auto", **options)
            told = [str(one.message) for one in caught if "passed over" in str(one.message)]
            taken = os.path.relpath(str(trainer.ckpt_path), here)
            seen[name] = {"taken": taken, "trained": net.trained, "told": len(told)}
    except BaseException:
        seen["failed"] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    os._exit(0)  # a process that failed must not wait for the other one


def test_the_first_process_decides_and_all_agree(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(work, args=(tmp_path,), nprocs=2, start_method="fork")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, one in enumerate(found):
        assert "failed" not in one, one["failed"]
        for name in ("ddp", "fsdp"):
            taken = "lightning_logs/version_0/checkpoints/epoch=1-step=2.ckpt"
            assert one[name] == {"taken": taken, "trained": [[2, 0]], "told": int(rank == 0)}, name
    assert (kept(tmp_path / "fsdp") / "last.ckpt.damaged").is_dir()


# ---- what a killed writer left


def test_leftovers_are_gone_after_the_next_start_and_those_of_the_living_stay(two_epochs: Path) -> None:
    dead = next(pid for pid in range(2**22 - 1, 0, -1) if not Path(f"/proc/{pid}").exists())
    left = kept(two_epochs) / f".last.ckpt.{dead}-{'0' * 8}.tmp"
    living = kept(two_epochs) / f".last.ckpt.{os.getpid()}-{'1' * 8}.tmp"
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    fit(two_epochs, 1)
    assert not left.exists()
    assert living.exists()


# ---- the last one is no second copy


def test_the_last_is_another_name_and_never_dangles(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, 4)
    last = Path(trainer.checkpoint_callback.last_model_path)  # type: ignore[union-attr]
    assert last.samefile(last.with_name("epoch=3-step=8.ckpt"))
    saved = torch.load(last, weights_only=True)["callbacks"]
    [state] = [state for key, state in saved.items() if key.startswith("ModelCheckpoint")]
    assert state["last_model_path"] == str(last)
    os.remove(last.with_name("epoch=3-step=8.ckpt"))
    assert torch.load(last, weights_only=True)["epoch"] == 3
    fit(tmp_path / "worse", 5)
    worse = kept(tmp_path / "worse")
    assert torch.load(worse / "last.ckpt", weights_only=True)["epoch"] == 4, "not among the best: a file of its own"
    assert sorted(path.name for path in worse.iterdir()) == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt", "last.ckpt"]


# ---- a folder that was moved


@pytest.mark.parametrize("save_last", [True, "link"])
def test_ranking_and_best_survive_a_move_of_the_folder(save_last: Any, tmp_path: Path) -> None:
    def checkpoint(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val_loss", save_top_k=2, save_last=save_last)

    fit(tmp_path, 5, logger=False, callbacks=[whole := checkpoint("whole")])
    fit(tmp_path, 2, logger=False, callbacks=[checkpoint("before")])
    os.rename(tmp_path / "before", tmp_path / "after")
    fit(tmp_path, 5, "last", logger=False, callbacks=[moved := checkpoint("after")])

    def names(callback: ModelCheckpoint) -> Any:
        ranking = {os.path.basename(path): float(score) for path, score in callback.best_k_models.items()}
        return ranking, os.path.basename(callback.best_model_path), callback.best_model_score, float(callback.kth_value)

    assert names(moved) == names(whole)
    assert sorted(os.listdir(tmp_path / "after")) == sorted(os.listdir(tmp_path / "whole"))
    for path, score in moved.best_k_models.items():
        assert LOSSES[torch.load(path, weights_only=True)["epoch"]] == score, "the metric of that very checkpoint"


def test_a_run_elsewhere_finds_the_best_beside_the_moved_file(tmp_path: Path) -> None:
    def checkpoint(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val_loss", save_last=True)

    fit(tmp_path, 2, logger=False, callbacks=[checkpoint("before")])
    os.rename(tmp_path / "before", tmp_path / "after")
    last = tmp_path / "after" / "last.ckpt"
    trainer = new_trainer(tmp_path, 2, logger=False, callbacks=[other := checkpoint("new")])
    trainer.fit(Net(), loader(), loader(), ckpt_path=last)
    assert other.best_model_path == str(tmp_path / "after" / "epoch=1-step=4.ckpt")


def test_a_planted_ranking_removes_nothing_outside_the_folder(tmp_path: Path) -> None:
    fit(tmp_path, 1, logger=False, callbacks=[ModelCheckpoint(tmp_path / "c", monitor="val_loss", save_last=True)])
    (tmp_path / "precious.ckpt").write_text("mine")
    outside = str(tmp_path / "c" / ".." / "precious.ckpt")
    checkpoint = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    [state] = [state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
    state.update(best_k_models={outside: torch.tensor(9.0)}, last_model_path=outside, kth_best_model_path=outside)
    torch.save(checkpoint, tmp_path / "planted.ckpt")
    fit(
        tmp_path,
        3,
        tmp_path / "planted.ckpt",
        logger=False,
        callbacks=[ModelCheckpoint(tmp_path / "c", monitor="val_loss", save_last=True)],
    )
    assert (tmp_path / "precious.ckpt").read_text() == "mine"


# ---- what can be known before the first step


@pytest.mark.parametrize("logger", [True, False])
def test_a_folder_that_is_a_file_is_refused_before_the_first_step(logger: bool, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    net = Net()
    trainer = new_trainer(tmp_path, 1, logger=logger, callbacks=[ModelCheckpoint(tmp_path / "c")])
    with pytest.raises(CheckpointError, match=r"No checkpoint can be written to .*0 bytes.*Nothing was trained"):
        trainer.fit(net, loader(), loader())
    assert net.trained == []


def test_too_little_room_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    net = Net()
    with pytest.raises(CheckpointError, match="at least 20 bytes, and 7 bytes are free"):
        new_trainer(tmp_path, 1, logger=False).fit(net, loader(), loader())
    assert net.trained == []
