"""`Trainer.plan`: what a fit would take, on machines that need not exist. Nothing is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.forecast.figures import Forecast
from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.catalog import PRECISIONS, make_precision
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.trainer._typing import Trainer
from fulmen.trainer.connectors.data import attach_data
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.sources import RunData
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.optimization.configure import configured
from fulmen.trainer.signature import is_param_in_hook_signature
from fulmen.trainer.stages import EntryPoint, Stage


def forecast_of_fit(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any,
    datamodule: LightningDataModule | None,
    devices: int | None,
    num_nodes: int | None,
) -> Forecast:
    """What `trainer.fit` would take; arguments as for `Trainer.plan`."""
    from fulmen.fabric.forecast.fake_world import without_memory
    from fulmen.fabric.forecast.rehearse import make_forecast

    if not isinstance(model, LightningModule):
        raise ArgumentTypeError(
            f"Trainer.plan(model={model!r}) got a {type(model).__name__}. A forecast is made of what a LightningModule"
            " defines. Pass an object of a class derived from LightningModule."
        )
    loader = _loader(model, train_dataloaders, datamodule)
    batch = None if loader is None or not model.automatic_optimization else _first_batch(loader)
    shell = without_memory(model, apart=(trainer, model.__dict__.get("_sink")))
    shell.detach()
    with torch.device("meta"):
        shell.configure_model()

    def optimizers(module: LightningModule) -> list[Optimizer]:
        module.attach(trainer, _Nowhere())
        return configured(module, module.configure_optimizers())[0]

    def step(module: Any, batch: Any) -> Tensor:
        # Strategies that gather parameters do so in forward.
        arguments = (batch, 0) if _takes_index(module) else (batch,)
        module.attach(trainer, _Nowhere())
        try:
            found = call_through_forward(module, module, module.training_step, *arguments)
        finally:
            module.detach()  # whoever copies the module does not copy the run
        loss = found["loss"] if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor):
            raise ConfigurationError(
                f"{type(module).__name__}.training_step() returned {loss!r} for the first batch. A forecast needs a"
                " step that goes backward. Return a loss for the first batch."
            )
        return loss

    strategy: Any = trainer.strategy.fabric_strategy
    wanted = (devices or trainer.num_devices, num_nodes or trainer.num_nodes)
    if isinstance(strategy, SingleDeviceStrategy) and wanted != (1, 1):
        strategy = "auto"
    dataset = getattr(loader, "dataset", None)
    limited = trainer.limit_train_batches not in (None, 1.0) or trainer.overfit_batches
    countable = hasattr(dataset, "__len__") and hasattr(loader, "batch_size") and not limited
    with _told_of(strategy, *wanted):
        return make_forecast(
            shell,
            strategy=strategy,
            devices=wanted[0],
            num_nodes=wanted[1],
            precision=_on_cpu(trainer.strategy.precision_plugin),
            batch=batch,
            step=step,
            optimizers=optimizers,
            num_samples=len(dataset) if countable else None,  # type: ignore[arg-type]  # just asked
            batch_size=getattr(loader, "batch_size", None),
            accumulate=trainer.accumulate_grad_batches,
            max_norm=_norm_to_clip_to(trainer),
        )


@contextmanager
def _told_of(strategy: Any, devices: int, num_nodes: int) -> Iterator[None]:
    """Inside, the strategy of the run answers as on these machines: a step may ask it for its part of a sequence."""
    if not isinstance(strategy, ParallelStrategy):
        yield
        return
    before = strategy.parallel_devices, strategy.num_nodes
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * devices, num_nodes
    try:
        yield
    finally:
        strategy.parallel_devices, strategy.num_nodes = before


def _norm_to_clip_to(trainer: Trainer) -> float | None:
    if str(trainer.gradient_clip_algorithm or "norm") != "norm" or not trainer.gradient_clip_val:
        return None
    return float(trainer.gradient_clip_val)


class _Nowhere:
    """Where `self.log` writes to."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


def _first_batch(loader: Any) -> Any:
    for batch in loader:
        return batch
    raise ConfigurationError(
        f"Trainer.plan() found no batch in the training dataloader {type(loader).__name__}. A forecast tries one step."
        " Pass a dataloader that has a batch."
    )


def _loader(model: LightningModule, loaders: Any, datamodule: LightningDataModule | None) -> Any:
    """The loader of training data; None where there is none."""
    data = RunData()
    attach_data(data, model, EntryPoint.FIT, {"train_dataloaders": loaders, "val_dataloaders": None}, datamodule)
    source = data.source(Stage.TRAIN)
    if source is None or not source.is_defined():
        return None
    if data.datamodule is not None:
        data.datamodule.prepare_data()
        data.datamodule.setup("fit")
    return source.load()


def _takes_index(module: LightningModule) -> bool:
    return is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)


def _on_cpu(precision: Precision) -> Precision:
    """The same precision for tensors that claim to be on a CPU; there float16 mixes as bfloat16 does."""
    name = str(precision.precision)
    if type(precision).__module__.startswith("fulmen.fabric.precision.mixed") and name in PRECISIONS:
        return make_precision("bf16-mixed" if name == "16-mixed" else name, "cpu")
    return precision
