"""What a module and its run need of each other.

Protocols: what a module may ask of the run that it is attached to. Shapes: what a module's methods may hand back.
The run is above this room, so nothing here names its classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, Required, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# Attributes of a module that are of the run or the process: a copy, a pickle or an export of it has none of them.
ATTACHMENTS = (
    "_trainer",
    "_sink",
    "_run_backward",
    "_fabric",
    "_fabric_optimizers",
    "_switched_off",
    "_compiled_call_impl",
)

# Where a compiled module keeps what its methods were, and which methods these are.
COMPILED = "_compiler_ctx"
COMPILED_METHODS = ("forward", "training_step", "validation_step", "test_step", "predict_step")

STEP_OUTPUT: TypeAlias = Tensor | Mapping[str, Any] | None

LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion: TypeAlias = LRScheduler | ReduceLROnPlateau
LRSchedulerType: TypeAlias = type[LRScheduler] | type[ReduceLROnPlateau]
LRSchedulerPLType: TypeAlias = LRScheduler | ReduceLROnPlateau


@dataclass
class LRSchedulerConfig:
    """One learning-rate scheduler and when it steps.

    Args:
        scheduler: The scheduler.
        name: Its name in the logs of learning rates; None: made from the optimizer's.
        interval: "epoch" or "step".
        frequency: It steps every so many intervals.
        reduce_on_plateau: Does `step` take a metric?
        monitor: The metric that it takes.
        strict: Is a missing metric an error, or only worth a warning?
    """

    scheduler: LRSchedulerTypeUnion
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class LRSchedulerConfigType(TypedDict, total=False):
    """`LRSchedulerConfig` as users write it: a dict."""

    scheduler: Required[LRSchedulerTypeUnion]
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """An optimizer without a scheduler, as a dict."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """An optimizer with its scheduler, as a dict."""

    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType
    monitor: NotRequired[str]


OptimizerLRScheduler: TypeAlias = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Sequence[Optimizer], Sequence[LRSchedulerTypeUnion | LRSchedulerConfig]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig]
    | Sequence[OptimizerLRSchedulerConfig]
    | None
)


class LogSink(Protocol):
    """Where `self.log` writes to."""

    def log(
        self,
        name: str,
        value: Any,
        *,
        prog_bar: bool,
        logger: bool | None,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: str | Callable[[Any], Any],
        enable_graph: bool,
        sync_dist: bool,
        sync_dist_group: Any | None,
        add_dataloader_idx: bool,
        batch_size: int | None,
        metric_attribute: str | None,
        rank_zero_only: bool,
    ) -> None:
        """Takes one value; what the arguments mean is said at `LightningModule.log`."""


class AttachedStrategy(Protocol):
    """What a module asks of the strategy of its run."""

    optimizers: list[Optimizer]

    @property
    def lightning_optimizers(self) -> Sequence[Any]:
        """The optimizers as users see them, one `LightningOptimizer` each."""

    def backward(self, loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Any:
        """Computes gradients under the run's precision."""

    def clip_gradients(self, optimizer: Optimizer, clip_val: float, algorithm: str) -> None:
        """Clips the gradients of the optimizer's parameters."""

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """Stacks the tensors of all processes along a new first axis."""


class AttachedTrainer(Protocol):
    """What a module reads of `self.trainer`."""

    gradient_clip_val: Any
    gradient_clip_algorithm: Any

    @property
    def current_epoch(self) -> int:
        """Epochs completed."""

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""

    @property
    def is_global_zero(self) -> bool:
        """Is this the first of all processes?"""

    @property
    def logger(self) -> Any:
        """The first logger, or None."""

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """The torch optimizers."""

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """Schedulers and when they step."""

    @property
    def strategy(self) -> Any:
        """The bound strategy; of it the module uses `AttachedStrategy`."""

    @property
    def progress_bar_callback(self) -> Any:
        """The progress bar, or None."""


class AttachedFabric(Protocol):
    """What a module that is used with `Fabric` instead of a Trainer asks of it."""

    @property
    def logger(self) -> Any:
        """The first logger."""

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Sends values to the loggers at once."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints on the first process."""

    def backward(self, tensor: Tensor, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """Computes gradients."""

    def clip_gradients(
        self,
        module: torch.nn.Module,
        optimizer: Optimizer,
        clip_val: float | None = None,
        max_norm: float | None = None,
    ) -> Tensor | None:
        """Clips gradients by value or by norm."""

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Stacks the tensors of all processes along a new first axis."""


class TogglesOptimizers(Protocol):
    """A module that can switch off the gradients of what other optimizers train."""

    def toggled_optimizer(self, optimizer: Any) -> AbstractContextManager[None]:
        """Only the parameters of `optimizer` need gradients inside."""
