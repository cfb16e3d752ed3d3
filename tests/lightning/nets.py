"""One module, datamodule and callback, written for either of the two packages.

Names of classes are the same on both sides: a checkpoint keeps some states under them.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CASES = (
    *("Adam and steps", "SGD and plateau", "two optimizers, by hand", "accumulated", "mixed precision", "no hparams"),
    "clipped and accumulated by schedule",
)
NUM_BATCHES, BATCH_SIZE = 6, 4


def samples(seed: int) -> TensorDataset:
    """The same on both sides."""
    x = torch.randn(NUM_BATCHES * BATCH_SIZE, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def classes(package: ModuleType) -> SimpleNamespace:
    """The classes, from those of `package`: `lightning.pytorch` or `fulmen.trainer`."""

    class Net(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int = 6, case: str = CASES[0]) -> None:
            super().__init__()
            if case != "no hparams":
                self.save_hyperparameters()
            self.case = case
            self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh())
            self.head = nn.Linear(width, 1)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.automatic_optimization = "by hand" not in case
            self.seen: list[tuple[int, float]] = []

        def loss(self, batch: list[Tensor]) -> Tensor:
            loss: Tensor = (self.head(self.body(batch[0])) - batch[1]).square().mean()
            return loss

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            self.count += 1
            loss = self.loss(batch)
            self.seen.append((int(self.trainer.global_step), float(batch[0].sum())))
            self.log("loss", loss, on_epoch=True)
            if self.automatic_optimization:
                return loss
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            if self.trainer.is_last_batch:
                for scheduler in self.lr_schedulers():
                    scheduler.step()
            return None

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> Any:
            from torch.optim import SGD, Adam
            from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

            if self.case == "SGD and plateau":
                sgd = SGD(self.parameters(), lr=0.05, momentum=0.9)
                plateau = ReduceLROnPlateau(sgd, factor=0.5, patience=0)
                return {"optimizer": sgd, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
            if not self.automatic_optimization:
                two = [SGD(self.body.parameters(), lr=0.05), Adam(self.head.parameters(), lr=0.01)]
                return two, [ExponentialLR(one, 0.9) for one in two]
            adam = Adam(self.parameters(), lr=0.02)
            return [adam], [{"scheduler": StepLR(adam, 2, 0.5), "interval": "step"}]

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["own"] = {"steps": len(self.seen)}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.loaded = checkpoint["own"]

    class Data(package.LightningDataModule):  # type: ignore[name-defined, misc]
        def __init__(self, seed: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.seed, self.restored = seed, False

        def train_dataloader(self) -> Any:
            return DataLoader(samples(self.seed), batch_size=BATCH_SIZE)

        def val_dataloader(self) -> Any:
            return DataLoader(samples(self.seed + 1), batch_size=BATCH_SIZE)

        def state_dict(self) -> dict[str, Any]:
            return {"seed": self.seed}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.restored = state_dict == {"seed": self.seed}

    class Counting(package.Callback):  # type: ignore[name-defined, misc]
        def __init__(self, path: Any = None, step: int = -1) -> None:
            self.batches, self.path, self.step = 0, path, step

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            self.batches += 1
            if trainer.global_step == self.step:
                trainer.save_checkpoint(self.path)

        def state_dict(self) -> dict[str, Any]:
            return {"batches": self.batches}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.batches = state_dict["batches"]

    for made in (Net, Data, Counting):
        made.__qualname__ = made.__name__  # states lie under it
    return SimpleNamespace(Net=Net, Data=Data, Counting=Counting)


def train(
    package: ModuleType,
    folder: Any,
    case: str,
    *,
    epochs: int,
    ckpt_path: Any = None,
    save_to: Any = None,
    save_at: int = -1,
) -> Any:
    """A fit by `package`; the answer has the trainer, the module, the datamodule and the callbacks.

    Args:
        package, folder, case, epochs, ckpt_path: What is trained, how, and where.
        save_to, save_at: Save there too, after that step.
    """
    made = classes(package)
    torch.manual_seed(0)
    net, data, counting = made.Net(case=case), made.Data(), made.Counting(save_to, save_at)
    stopping = package.callbacks.EarlyStopping("val_loss", patience=100)
    keeping = package.callbacks.ModelCheckpoint(folder, monitor="val_loss", save_last=True, save_top_k=2)
    # Where it does not divide the epoch, Lightning scales the last window otherwise (docs/migration.md).
    flags: dict[str, Any] = {"accumulate_grad_batches": 2} if case == "accumulated" else {}
    flags |= {"precision": "bf16-mixed"} if case == "mixed precision" else {}
    more: list[Any] = []
    if "clipped" in case:
        flags |= {"gradient_clip_val": 0.2}
        more = [package.callbacks.GradientAccumulationScheduler({0: 1, 1: 2, 3: 3})]
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[counting, stopping, *more, keeping],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **flags,
    )
    trainer.fit(net, datamodule=data, ckpt_path=ckpt_path)
    return SimpleNamespace(
        trainer=trainer, net=net, data=data, counting=counting, stopping=stopping, keeping=keeping, classes=made
    )
