"""What a run keeps can be named afterwards: "best", "last", or nothing at all after a failure."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.trainer.errors import ConfigurationError

LOSSES = (3.0, 1.0, 2.0, 0.5, 4.0)


class Net(LightningModule):
    """Its validation loss is scripted; it remembers the weights that it is tested with."""

    def __init__(self, fails_in_epoch: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.fails_in_epoch = fails_in_epoch
        self.tested_with: Tensor | None = None
        self.trained: list[tuple[int, int]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == self.fails_in_epoch and batch_idx == 1:
            raise RuntimeError("of the test")
        self.trained.append((self.current_epoch, batch_idx))
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", LOSSES[self.current_epoch])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.tested_with = self.layer.weight.detach().clone()

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer.weight.detach().clone()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(12.0).reshape(3, 4)), batch_size=1)


def make_trainer(folder: Path, *callbacks: Callback, epochs: int = 3, **flags: Any) -> Trainer:
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), max_epochs=epochs, **off, **flags
    )


def net(fails_in_epoch: int | None = None) -> Net:
    seed_everything(3, verbose=False)
    return Net(fails_in_epoch)


def run(folder: Path, *callbacks: Callback, ckpt_path: Any = None, module: Net | None = None, **flags: Any) -> Any:
    """A fit in a Trainer of its own, as in a program of its own."""
    module = module or net()
    trainer = make_trainer(folder, *callbacks, **flags)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer, module


def weight_in(path: Path | str) -> Tensor:
    weight: Tensor = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
    return weight


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- best


def test_best_is_loaded_whichever_weights_the_module_has(tmp_path: Path) -> None:
    trainer, module = run(tmp_path, ModelCheckpoint(tmp_path / "c", monitor="val_loss"))
    best = tmp_path / "c" / "epoch=1-step=6.ckpt"
    last = module.layer.weight.detach().clone()
    trainer.test(module, loader(), verbose=False)
    assert torch.equal(module.tested_with, last)
    trainer.test(module, loader(), ckpt_path="best", verbose=False)
    assert torch.equal(module.tested_with, weight_in(best))
    assert not torch.equal(module.tested_with, last)
    assert trainer.ckpt_path == str(best)
    with torch.no_grad():
        module.layer.weight.zero_()
    with pytest.warns(UserWarning, match="best checkpoint"):
        [*_, weight] = trainer.predict(dataloaders=loader())
    assert torch.equal(weight, weight_in(best))
    # Counts are the fit's: loading weights to test them moves nothing.
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)


def test_the_first_of_several_callbacks_says_what_is_best(tmp_path: Path) -> None:
    small = ModelCheckpoint(tmp_path / "a", monitor="val_loss")
    large = ModelCheckpoint(tmp_path / "b", monitor="val_loss", mode="max")
    trainer, module = run(tmp_path, large, small)
    with pytest.warns(UserWarning, match="2 checkpoint callbacks"):
        trainer.validate(module, loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == large.best_model_path


def test_best_before_anything_was_saved_is_refused_before_work_begins(tmp_path: Path) -> None:
    module = Net()
    with pytest.raises(ConfigurationError, match="ckpt_path='best'"):
        make_trainer(tmp_path).test(module, loader(), ckpt_path="best")
    assert module.tested_with is None


def test_with_validation_after_every_batch_each_one_is_ranked(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "c", monitor="val_loss", save_top_k=-1)
    run(tmp_path, checkpoint, epochs=1, val_check_interval=1)
    assert names(tmp_path / "c") == [f"epoch=0-step={step}.ckpt" for step in (1, 2, 3)]


# ---- last


@pytest.mark.parametrize("save_last", [True, "link"])
def test_last_goes_on_where_the_last_run_ended(save_last: Any, tmp_path: Path) -> None:
    def checkpoint(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val_loss", save_last=save_last, save_top_k=-1)

    _, whole = run(tmp_path, checkpoint("whole"), epochs=4)
    run(tmp_path, checkpoint("parts"), epochs=2)
    trainer, resumed = run(tmp_path, checkpoint("parts"), epochs=4, ckpt_path="last")
    assert resumed.trained == whole.trained[6:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert trainer.ckpt_path == str(tmp_path / "parts" / "last.ckpt")
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    last = tmp_path / "parts" / "last.ckpt"
    assert last.is_symlink() == (save_last == "link")
    assert torch.equal(weight_in(last), whole.layer.weight)


def test_last_without_any_starts_afresh_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ckpt_path='last'"):
        _, module = run(tmp_path, ModelCheckpoint(tmp_path / "c"), ckpt_path="last", epochs=1)
    assert module.trained == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_link_never_dangles(tmp_path: Path) -> None:
    class Follow(Callback):
        """Looks, after each epoch, whether the link leads to a file."""

        seen: list[bool]

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch:
                self.seen.append(os.path.exists(tmp_path / "last.ckpt"))

    follow = Follow()
    follow.seen = []
    run(tmp_path, follow, ModelCheckpoint(tmp_path, save_last="link"), epochs=4)
    assert follow.seen == [True] * 3
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=3-step=12.ckpt"
    assert names(tmp_path) == ["epoch=3-step=12.ckpt", "last.ckpt"]


# ---- going on


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_resumed_ranking_is_that_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    def checkpoint(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val_loss", save_top_k=2, save_last=True)

    run(tmp_path, whole := checkpoint("whole"), epochs=5)
    run(tmp_path, checkpoint("parts"), epochs=2)
    run(tmp_path, resumed := checkpoint("parts"), epochs=5, ckpt_path=tmp_path / "parts" / "last.ckpt")

    def ranking(callback: ModelCheckpoint) -> dict[str, float]:
        return {os.path.basename(path): float(score) for path, score in callback.best_k_models.items()}

    assert ranking(resumed) == ranking(whole) == {"epoch=1-step=6.ckpt": 1.0, "epoch=3-step=12.ckpt": 0.5}
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    assert resumed.best_model_score == whole.best_model_score


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_the_file_that_a_run_goes_on_from_stays(tmp_path: Path) -> None:
    run(tmp_path, ModelCheckpoint(tmp_path / "c"), epochs=1)
    run(tmp_path, ModelCheckpoint(tmp_path / "c"), epochs=3, ckpt_path=tmp_path / "c" / "epoch=0-step=3.ckpt")
    assert names(tmp_path / "c") == ["epoch=0-step=3.ckpt", "epoch=2-step=9.ckpt"]


# ---- after a failure


def test_a_failed_run_goes_on_by_itself_and_cleans_up(tmp_path: Path) -> None:
    _, whole = run(tmp_path, enable_checkpointing=False)
    failing = net(fails_in_epoch=1)
    with pytest.raises(RuntimeError, match="of the test"):
        run(tmp_path, OnExceptionCheckpoint(tmp_path), module=failing)
    assert names(tmp_path) == ["on_exception.ckpt"]
    with pytest.warns(UserWarning, match="OnExceptionCheckpoint"):
        _, resumed = run(tmp_path, OnExceptionCheckpoint(tmp_path))
    assert failing.trained + resumed.trained == whole.trained
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert names(tmp_path) == []


def test_what_was_saved_on_exception_can_be_gone_on_from(tmp_path: Path) -> None:
    _, whole = run(tmp_path, enable_checkpointing=False)
    failing = net(fails_in_epoch=1)
    with pytest.raises(RuntimeError, match="of the test"):
        run(tmp_path, ModelCheckpoint(tmp_path / "c", save_on_exception=True, every_n_epochs=0), module=failing)
    [saved] = (tmp_path / "c").iterdir()
    assert saved.name == "epoch=1-step=4.ckpt"
    _, resumed = run(tmp_path, enable_checkpointing=False, ckpt_path=saved)
    assert failing.trained + resumed.trained == whole.trained
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
