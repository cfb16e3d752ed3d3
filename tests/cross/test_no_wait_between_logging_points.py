"""Between two logging points nothing is read back from the device: no step waits for one before it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.loggers import CSVLogger

EVERY = 5


class Reads(TorchDispatchMode):
    """Counts values that are read back; `Tensor.tolist` reads without an operator, so it is watched beside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        original = torch.Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            self.count += 1
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class ByStep(Callback):
    """How many reads there were from the beginning of each batch to that of the next."""

    def __init__(self, reads: Reads) -> None:
        self.reads, self.marks = reads, []

    def on_train_batch_start(self, *_: Any) -> None:
        self.marks.append(self.reads.count)

    @property
    def by_step(self) -> list[int]:
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


class Logs(LightningModule):
    """Logs in every way, clips, steps a scheduler by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        self.log("step", loss, prog_bar=True)
        self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
        for kind in ("mean", "sum", "min", "max"):
            self.log(kind, loss.detach(), on_step=False, on_epoch=True, reduce_fx=kind)
        self.log("number", 1.0, on_epoch=True)
        return loss

    def on_after_backward(self) -> None:
        self.log("norm", self.layer.weight.grad.norm())  # type: ignore[union-attr]  # there is one after backward

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ByHand(Logs):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


@pytest.mark.parametrize("logger", [True, False])
@pytest.mark.parametrize("kind", [Logs, ByHand])
def test_nothing_is_read_between_two_logging_points(
    kind: type[Logs], logger: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    marks = ByStep(reads)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[marks],
        logger=CSVLogger(tmp_path) if logger else False,
        log_every_n_steps=EVERY,
        gradient_clip_val=None if kind is ByHand else 0.5,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(torch.randn(8 * 4 * EVERY, 4), batch_size=8)
    with reads:
        trainer.fit(kind(), loader)
    assert len(marks.by_step) == 4 * EVERY - 1
    between = [count for index, count in enumerate(marks.by_step) if (index + 1) % EVERY]
    assert set(between) == {0}
    at_points = [count for index, count in enumerate(marks.by_step) if (index + 1) % EVERY == 0]
    # The row of the loggers, in one transfer, and a look whether the loss is still a number.
    assert max(at_points) <= 2
    assert min(at_points) >= logger
