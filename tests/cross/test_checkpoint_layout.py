"""A checkpoint has the keys, the order and the types of the reference, and one key more: `fulmen`."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.trainer.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.trainer.plugins import MixedPrecision

REFERENCE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "checkpoint_layout.yaml").read_text())
OWN_KEY = "fulmen"  # random numbers, place in the data, sums of metrics: others ignore it


def described(value: Any, folder: str) -> Any:
    """A value in the words of the reference: a leaf is its type and its value."""
    if isinstance(value, dict):
        if not value:
            return "dict {}"
        named = {
            f"<int> {key}" if isinstance(key, int) else key.replace(folder, "TMP"): it for key, it in value.items()
        }
        layout = {key: described(it, folder) for key, it in named.items()}
        return {"_type": "OrderedDict", **layout} if isinstance(value, OrderedDict) else layout
    if isinstance(value, (list, tuple)):
        kind = type(value).__name__
        return {f"_{kind} of {len(value)}": [described(it, folder) for it in value]} if value else f"{kind} {value}"
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if value is None:
        return "None"
    return f"{type(value).__name__} {value!r}".replace(folder, "TMP")


class Net(LightningModule):
    def __init__(self, width: int = 3, lr: float = 0.1, **options: Any) -> None:
        super().__init__()
        if options.get("hparams", True):
            self.save_hyperparameters("width", "lr")
        self.register_buffer("seen", torch.zeros(1))
        self.layer = nn.Linear(4, 2)
        self.options = options

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", -float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["from_module_hook"] = 1


class Bare(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(Bare):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch[0]).sum())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]


class D(LightningDataModule):
    def __init__(self, root: str = "x", n: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return loader(3)

    def val_dataloader(self) -> Any:
        return loader(1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": 5}


class Cb(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}


class CbKey(Cb):
    def __init__(self, k: Any) -> None:
        self.k = k

    @property
    def state_key(self) -> str:
        return self._generate_state_key(k=self.k)


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(batches, 4)), batch_size=1)


def make_trainer(folder: Path, *callbacks: Callback, **flags: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | flags))


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def without_own(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.items() if key != OWN_KEY}


@pytest.fixture(scope="module")
def full(tmp_path_factory: Any) -> tuple[Path, Trainer]:
    """The measured run: two epochs of three batches with everything that has a state."""
    folder: Path = tmp_path_factory.mktemp("full")
    trainer = make_trainer(
        folder,
        EarlyStopping("val_loss", patience=5),
        Cb(),
        CbKey(3),
        ModelCheckpoint(folder / "x", "c", monitor="val_loss"),
        ModelCheckpoint(folder / "w", "w", monitor="val_loss", save_weights_only=True, mode="min", every_n_epochs=2),
        max_epochs=2,
    )
    trainer.fit(Net(), datamodule=D())
    return folder, trainer


def differences(measured: Any, expected: Any, at: str = "") -> Iterator[str]:
    """Where two layouts differ; keys may stand in any order."""
    if isinstance(measured, dict) and isinstance(expected, dict):
        for key in sorted({*measured, *expected}):
            yield from differences(measured.get(key, "missing"), expected.get(key, "missing"), f"{at} > {key}")
    elif measured != expected:
        yield f"{at}: {measured} instead of {expected}"


def test_a_full_checkpoint(full: tuple[Path, Trainer]) -> None:
    folder, _ = full
    checkpoint, facts = load(folder / "x" / "c.ckpt"), REFERENCE["full"]
    assert OWN_KEY in checkpoint
    theirs = without_own(checkpoint)
    assert list(theirs) == facts["key_order"]
    assert {key: type(value).__name__ for key, value in theirs.items()} == REFERENCE["top_level_types"]
    # The second ModelCheckpoint is there for the test of weights.
    theirs["callbacks"] = {key: it for key, it in theirs["callbacks"].items() if "'every_n_epochs': 2" not in key}
    assert list(differences(described(theirs, str(folder)), facts["layout"])) == []
    assert list(described(theirs, str(folder))["callbacks"]) == list(facts["layout"]["callbacks"])


def test_a_checkpoint_of_weights(full: tuple[Path, Trainer]) -> None:
    folder, _ = full
    checkpoint, facts = load(folder / "w" / "w.ckpt"), REFERENCE["save_weights_only"]
    assert list(checkpoint) == facts["key_order"]
    layout = described({key: it for key, it in checkpoint.items() if key != "state_dict"}, str(folder))
    assert list(differences(layout, facts["layout_of_extra_keys"])) == []


def test_a_checkpoint_saved_after_the_fit(full: tuple[Path, Trainer]) -> None:
    folder, trainer = full
    trainer.save_checkpoint(folder / "after.ckpt")
    checkpoint, facts = (
        without_own(load(folder / "after.ckpt")),
        REFERENCE["trainer.save_checkpoint after fit returned"],
    )
    assert list(checkpoint) == facts["key_order"]
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 6)
    progress = described(checkpoint["loops"]["fit_loop"]["epoch_progress"], str(folder))
    assert list(differences(progress, facts["fit_loop.epoch_progress"])) == []


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path / "bare", "c"))
    trainer.fit(Bare(), loader(2))
    checkpoint, facts = without_own(load(tmp_path / "bare" / "c.ckpt")), REFERENCE["bare"]
    assert list(checkpoint) == facts["key_order"]
    assert sorted(checkpoint.pop("loops")) == facts["loops"]
    assert list(differences(described(checkpoint, str(tmp_path)), facts["layout"])) == []


def test_two_optimizers_that_the_module_steps(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(Manual(), loader(6))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    checkpoint, facts = load(tmp_path / "two.ckpt"), REFERENCE["two_optimizers_manual"]
    states = described([sorted(state) for state in checkpoint["optimizer_states"]], str(tmp_path))
    assert states == facts["optimizer_states"]
    assert described(checkpoint["lr_schedulers"], str(tmp_path)) == facts["lr_schedulers"]
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (facts["epoch"], facts["global_step"])
    steps = checkpoint["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
    assert list(differences(described(steps, str(tmp_path)), facts["manual_optimization"])) == []


def test_the_keys_of_callbacks(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        EarlyStopping("val_loss", mode="max"),
        Cb(),
        CbKey("a"),
        ModelCheckpoint(tmp_path, every_n_train_steps=1),
        ModelCheckpoint(tmp_path, monitor="val_loss"),
    )
    trainer.fit(Net(), datamodule=D())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert sorted(load(tmp_path / "c.ckpt")["callbacks"]) == sorted(REFERENCE["callback_state_keys"]["keys"])


@pytest.mark.parametrize("precision", [name for name in REFERENCE["precision"] if "(" not in name])
def test_precision_decides_the_weights_and_adds_no_key(precision: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, enable_checkpointing=False, precision=precision, max_steps=1)
    trainer.fit(Bare(), loader(1))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    checkpoint, facts = without_own(load(tmp_path / "c.ckpt")), REFERENCE["precision"][precision]
    assert list(checkpoint) == REFERENCE["bare"]["key_order"] + facts["extra_top_level_keys"]
    assert {str(weight.dtype) for weight in checkpoint["state_dict"].values()} == {facts["weight_dtype"]}


def test_a_gradient_scaler_is_kept_under_the_name_of_the_precision(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = make_trainer(tmp_path, enable_checkpointing=False, plugins=plugin)
    trainer.fit(Bare(), loader(4))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    facts = REFERENCE["precision"]["MixedPrecision('16-mixed') with a gradient scaler"]
    measured = {name: described(load(tmp_path / "c.ckpt")[name], "TMP") for name in facts["extra_top_level_keys"]}
    assert measured == facts["keys_with_precision_name"]
