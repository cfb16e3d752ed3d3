"""A run that is stopped and resumed ends with the weights, counts and metrics of one that never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with random augmentation."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((4,), float(index)) / 22 + 0.1 * torch.rand(4), torch.tensor([float(index % 3)])


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.seen: list[tuple[int, int, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, float(batch[0].sum())))
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class SaveAt(Callback):
    """Saves after one training batch, or when a validation has ended at that step."""

    def __init__(self, path: Path, step: int, moment: str) -> None:
        self.path, self.step, self.moment = path, step, moment

    def _save(self, trainer: Any, moment: str) -> None:
        if trainer.global_step == self.step and moment == self.moment and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._save(trainer, "batch_end")

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self._save(trainer, "validation_batch_end")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "validation_end")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "epoch_end")


def fit(
    folder: Path,
    callbacks: list[Callback],
    ckpt_path: Path | None,
    workers: int,
    *,
    module: type[Net] = Net,
    **flags: Any,
) -> tuple[Net, Trainer]:
    seed_everything(11, verbose=False)
    net = module()
    trainer = Trainer(
        max_epochs=3,
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **flags,
    )
    trainer.fit(
        net,
        DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers),
        DataLoader(Noisy(), batch_size=8),
        ckpt_path=ckpt_path,
    )
    return net, trainer


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (1, "batch_end"),
        (4, "batch_end"),
        (3, "validation_batch_end"),
        (3, "validation_end"),
        (6, "batch_end"),
        (6, "validation_batch_end"),
        (6, "validation_end"),
        (6, "epoch_end"),
    ],
)
def test_a_resumed_run_equals_one_that_never_stopped(step: int, moment: str, workers: int, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"val_check_interval": 3}
    whole, first = fit(tmp_path / "a", [SaveAt(tmp_path / "saved.ckpt", step, moment)], None, workers, **flags)
    assert (tmp_path / "saved.ckpt").is_file()
    resumed, second = fit(tmp_path / "b", [], tmp_path / "saved.ckpt", workers, **flags)
    assert resumed.seen == whole.seen[step:]
    assert (second.global_step, second.current_epoch) == (first.global_step, first.current_epoch)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert second.callback_metrics == first.callback_metrics


class SaveAtBatch(Callback):
    """Saves after the n-th batch of all."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.batch -= 1
        if self.batch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_half_summed_gradients_are_kept(batch: int, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"accumulate_grad_batches": 4}
    whole, first = fit(tmp_path / "a", [SaveAtBatch(tmp_path / "saved.ckpt", batch)], None, 0, **flags)
    resumed, second = fit(tmp_path / "b", [], tmp_path / "saved.ckpt", 0, **flags)
    assert resumed.seen == whole.seen[batch:]
    assert second.global_step == first.global_step
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


class ByHand(Net):
    """Steps when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append((self.current_epoch, batch_idx, float(batch[0].sum())))
        self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]))
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_half_summed_gradients_of_manual_optimization_are_kept(batch: int, tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "a", [SaveAtBatch(tmp_path / "saved.ckpt", batch)], None, 0, module=ByHand)
    resumed, _ = fit(tmp_path / "b", [], tmp_path / "saved.ckpt", 0, module=ByHand)
    assert resumed.seen == whole.seen[batch:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
