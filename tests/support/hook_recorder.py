"""Objects that write down every hook that they hear, in the notation of `tests/properties/data/hooks_order.yaml`.

`lm` is the module, `dm` the datamodule, `cb` a callback, `ck` a ModelCheckpoint, `lg` a logger, `st` the strategy,
`opt` the torch optimizer.
A leading ". " is one level of nesting; "~ key=value" tells what changed in the state since the line before.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from fulmen.trainer.loggers import Logger
from fulmen.trainer.strategies import SingleDeviceStrategy

# Hooks that the reference does not have.
_ONLY_OURS = {"on_checkpoint_saved"}
_NOT_SHOWN = {
    "closure",
    "closure_loss",
    "model",
    "batch",
    "trainer",
    "pl_module",
    "checkpoint",
    "loss",
    "device",
    "self",
}
_NO_SHOWN_ARGUMENTS = {"load_state_dict", "forward", "lm.backward", "st.setup", "connect", "save_checkpoint"}
_NO_SHOWN_ARGUMENTS |= {"load_checkpoint", "load_model_state_dict", "load_optimizer_state_dict", "process_dataloader"}
_MODULE_METHODS = [
    "configure_callbacks",
    "configure_optimizers",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "forward",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
]
# What the reference's recorder saw of a strategy, without what processes tell each other (barrier, broadcast, reduce).
_STRATEGY_METHODS = [
    "connect",
    "setup_environment",
    "setup",
    "model_to_device",
    "setup_optimizers",
    "process_dataloader",
    "batch_to_device",
    "training_step",
    "validation_step",
    "backward",
    "pre_backward",
    "post_backward",
    "optimizer_step",
    "lightning_module_state_dict",
    "load_model_state_dict",
    "optimizer_state",
    "load_optimizer_state_dict",
    "save_checkpoint",
    "load_checkpoint",
    "teardown",
    "on_train_start",
    "on_train_end",
    "on_train_batch_start",
    "on_validation_start",
    "on_validation_end",
]
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


class Recorder:
    """The lines written so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.folder: Path | None = None  # where each process leaves its lines, when the last hook has run
        self.trainer: Trainer | None = None
        self._depth = 0
        self._known: dict[str, Any] = {}

    def call(self, line: str, function: Callable[[], Any]) -> Any:
        """Write `line`, and what is recorded inside `function` one level deeper."""
        self.note_state()
        self.lines.append(". " * self._depth + line)
        self._depth += 1
        try:
            return function()
        finally:
            self._depth -= 1
            if self.folder is not None and line.startswith("lg.finalize"):
                rank = self.trainer.global_rank if self.trainer is not None else 0
                (self.folder / f"rank_{rank}").write_text("\n".join(self.lines))

    def note_state(self) -> None:
        """Write what changed in the state."""
        if self.trainer is None:
            return
        state, module = self.trainer.state, self.trainer.lightning_module
        now = {
            "status": state.status,
            "fn": state.fn,
            "stage": state.stage,
            "epoch": self.trainer.current_epoch,
            "step": self.trainer.global_step,
            "train_mode": module.training if module is not None else None,
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
        }
        changed = [f"{key}={value}" for key, value in now.items() if self._known.get(key, self) != value]
        self._known = now
        if changed:
            self.lines.append("~ " + " ".join(changed))


def shown(value: Any) -> str:
    """An argument, in the notation of the file."""
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(map(str, value))) + "}"
    if isinstance(value, torch.optim.Optimizer):
        return type(value).__name__
    if callable(value):
        return "<Closure>"
    if isinstance(value, (str, int, float)) or value is None:
        return str(value)
    return f"<{type(value).__name__}>"


def recorded(cls: type, names: list[str], label: str) -> type:
    """A subclass of `cls` that records the calls of these methods, then does what `cls` does."""

    def method(name: str) -> Callable[..., Any]:
        original = getattr(cls, name)
        parameters = list(inspect.signature(original).parameters.values())

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            def go() -> Any:
                return original(self, *args, **kwargs)

            recorder: Recorder | None = self.__dict__.get("recorder")
            if recorder is None:
                return go()
            given = dict(zip([parameter.name for parameter in parameters], (self, *args), strict=False)) | kwargs
            if name in _NO_SHOWN_ARGUMENTS or f"{label}.{name}" in _NO_SHOWN_ARGUMENTS:
                given = {}
            if name in _STEPS:
                given = {key: value for key, value in given.items() if key == "batch_idx" and label == "lm"}
            text = [
                f"{key}={shown(value)}"
                for key, value in given.items()
                if (key not in _NOT_SHOWN and value is not None) or key == "outputs"
            ]
            text = ["outputs={}" if part == "outputs=None" else part for part in text]
            if name == "training_step" and label == "lm" and self.options.get("no_loss"):
                return recorder.call("lm.training_step returns None", go)
            line = f"{label(self) if callable(label) else label}.{name}" + (f"({', '.join(text)})" if text else "")
            return recorder.call(line, go)

        call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return call

    return type(f"Recorded{cls.__name__}", (cls,), {name: method(name) for name in names})


def _callback_hook_names() -> list[str]:
    return [name for name in vars(Callback) if name.startswith("on_") and name not in _ONLY_OURS]


def _hook_names(*classes: type) -> list[str]:
    return [name for cls in classes for name, it in vars(cls).items() if inspect.isfunction(it) and name[0] != "_"]


def _batches(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(count, 4)), batch_size=1)


class Net(LightningModule):
    """A linear layer with every option that a setting of the file needs."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.options = options
        self.train_batches = options.get("train_batches", 2)
        self.val_batches = options.get("val_batches", 1)
        self.automatic_optimization = not options.get("manual")
        self.calls = {"train": 0, "val": 0}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def _loss(self, batch: Any) -> Tensor:
        return self(batch[0]).sum()

    def configure_callbacks(self) -> Any:
        return self.options.get("callbacks", [])

    def configure_model(self) -> None: ...

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == self.options.get("skip_at") else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls["train"] += 1
        if self.options.get("fail_in") == ("train", self.calls["train"]):
            raise self.options["error"]
        if manual := self.options.get("manual"):
            manual(self, batch)
            return None
        if self.options.get("no_loss"):
            return None
        loss = self._loss(batch)
        if self.options.get("log"):
            self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.calls["val"] += 1
        if self.options.get("fail_in") == ("val", self.calls["val"]):
            raise self.options["error"]
        loss = self._loss(batch)
        if self.options.get("log"):
            self.log("val_loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        if self.options.get("fail_in") == ("test", 1):
            raise self.options["error"]
        loss = self._loss(batch)
        if self.options.get("log"):
            self.log("test_loss", loss)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        if make := self.options.get("optimizers"):
            return make(self)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        interval = self.options.get("interval", "epoch")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def train_dataloader(self) -> Any:
        return _batches(self.train_batches)

    def val_dataloader(self) -> Any:
        if isinstance(self.val_batches, tuple):
            return [_batches(count) for count in self.val_batches]
        return _batches(self.val_batches) if self.val_batches else []

    def test_dataloader(self) -> Any:
        return _batches(1)

    def predict_dataloader(self) -> Any:
        return _batches(1)


class NetThatFetches(Net):
    """`Net` whose training step takes its batches itself."""

    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self._loss(batch)


class Data(LightningDataModule):
    """The loaders of `Net`, from a datamodule."""

    def __init__(self, train_batches: int = 2, val_batches: int = 1) -> None:
        super().__init__()
        self.train_batches = train_batches
        self.val_batches = val_batches

    def train_dataloader(self) -> Any:
        return _batches(self.train_batches)

    def val_dataloader(self) -> Any:
        return _batches(self.val_batches)

    def test_dataloader(self) -> Any:
        return _batches(1)

    def predict_dataloader(self) -> Any:
        return _batches(1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    def on_exception(self, exception: BaseException) -> None: ...


class Watching(Callback):
    """A callback with a state of its own."""

    def __init__(self, on_batch_end: Callable[[Trainer], None] | None = None) -> None:
        self.react = on_batch_end

    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.react is not None:
            self.react(trainer)


class OptRec(torch.optim.SGD):
    """A torch optimizer that records how it is called."""

    recorder: Recorder

    def step(self, closure: Any = None) -> Any:
        line = "opt.step(closure)" if closure is not None else "opt.step"
        return self.recorder.call(line, lambda: super(OptRec, self).step(closure))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.recorder.call("opt.zero_grad", lambda: super(OptRec, self).zero_grad(set_to_none))


class Memory(Logger):
    """A logger that keeps nothing."""

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_graph(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None: ...

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None: ...

    def save(self) -> None: ...

    def finalize(self, status: str) -> None: ...


class _RecordedMemory(Memory):
    recorder: Recorder

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.recorder.call("lg.log_hyperparams", lambda: None)

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self.recorder.call("lg.log_graph", lambda: None)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.recorder.call(f"lg.log_metrics({shown(metrics)}, step={step})", lambda: None)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.recorder.call("lg.after_save_checkpoint", lambda: None)

    def save(self) -> None:
        self.recorder.call("lg.save", lambda: None)

    def finalize(self, status: str) -> None:
        self.recorder.call(f"lg.finalize({status})", lambda: None)


class Recording:
    """Makes recorded objects that all write to one recorder."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def _equip(self, thing: Any) -> Any:
        thing.__dict__["recorder"] = self.recorder
        return thing

    def module(self, *, own_data: bool = True, **options: Any) -> LightningModule:
        """`Net`, with every hook recorded; without its own data the data hooks are left to a datamodule."""
        base = Net
        if options.get("takes_iterator"):
            base = NetThatFetches
        names = [*_hook_names(ModelHooks, CheckpointHooks), *_MODULE_METHODS]
        names.remove("configure_sharded_model")
        data = _hook_names(DataHooks)
        if not own_data:
            data = ["prepare_data", "setup", "teardown"]
            base = type("NetWithoutData", (Net,), {name: getattr(LightningModule, name) for name in _LOADERS})
        return self._equip(recorded(base, names + data, "lm")(**options))

    def datamodule(self, train_batches: int = 2, val_batches: int = 1) -> LightningDataModule:
        """`Data`, with every hook recorded."""
        names = [*_hook_names(DataHooks), "state_dict", "load_state_dict", "on_exception"]
        return self._equip(recorded(Data, names, "dm")(train_batches, val_batches))

    def callback(self, label: str = "cb", react: Callable[[Trainer], None] | None = None) -> Callback:
        """A callback that records every hook."""
        names = [*_callback_hook_names(), "setup", "teardown"]
        cls = recorded(Watching, [*names, "state_dict", "load_state_dict"], label)
        return self._equip(type(label, (cls,), {})(react))

    def checkpoint(self, **arguments: Any) -> ModelCheckpoint:
        """A ModelCheckpoint that records every hook."""
        names = [*_callback_hook_names(), "setup", "teardown"]
        return self._equip(recorded(ModelCheckpoint, [*names, "state_dict", "load_state_dict"], "ck")(**arguments))

    def strategy(self) -> SingleDeviceStrategy:
        """A strategy for one device that records what it is asked to do."""
        return self._equip(recorded(SingleDeviceStrategy, _STRATEGY_METHODS, "st")("cpu"))

    def optimizer(self, module: LightningModule) -> torch.optim.Optimizer:
        """A torch optimizer that records how it is called."""
        return self._equip(OptRec(module.parameters(), lr=0.1))

    def logger(self) -> Logger:
        """A logger that records what it is told."""
        return self._equip(_RecordedMemory())
