"""One process of several for itself: nothing is sent, and nobody waits for it.

For trials that may end in one process and not in the others, as when memory runs out. What each of them found out,
they tell each other afterwards.
"""

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.base import Strategy

T = TypeVar("T")


def alone(strategy: Strategy) -> Strategy:
    """A copy of a strategy in use that talks to no other process, and trains the module past any wrapper.

    Rank and number of processes stay true. Layers and metrics of the module that look at all processes look at this one
    from now on: to be called where the module is put back afterwards.

    Args:
        strategy: Its module is set up, and is on its device.

    Raises:
        ConfigurationError: If no process holds the whole module.
    """
    if strategy.shards_parameters:
        raise ConfigurationError(
            f"{type(strategy).__name__} in {strategy.world_size} processes cannot be tried out in each process by"
            " itself. The parameters are split over the processes, and every step needs them all."
            " Try it with strategy='ddp', or in one process with devices=1."
        )
    module = strategy.lightning_module
    assert module is not None, "the module is set up"
    kind = type(strategy)
    one = copy(strategy)
    one.__class__ = type(kind.__name__, (_Alone, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    one.model = module
    for part in module.modules():
        if isinstance(part, nn.SyncBatchNorm):
            part.__class__ = _OwnBatchNorm  # type: ignore[assignment]  # its data are those of every batch norm
        if hasattr(part, "sync_on_compute"):  # a torchmetrics metric: it would ask the others for theirs
            setattr(part, "sync_on_compute", False)  # noqa: B010 (a module's attributes are typed as tensors)
    return one


class _OwnBatchNorm(_BatchNorm):
    """Batch norm for input of any number of dimensions, over the batch of this process."""

    def _check_input_dim(self, input: Tensor) -> None:
        """A synchronised one takes any, too."""


class _Alone(Strategy):
    """What the processes do together, done by one that takes the others for its likes."""

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return tensor

    def reduce_tensors(self, tensors: list[Tensor], op: str = "mean") -> list[Tensor]:
        return tensors

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        # As much memory as the real one takes, which the trial is to see.
        return tensor.expand(self.world_size, *tensor.shape).clone()

    def gather_objects(self, obj: T) -> list[T]:
        return [obj] * self.world_size

    def barrier(self, name: str | None = None) -> None:
        return None

    def broadcast(self, obj: T, src: int = 0) -> T:
        return obj

    def shared_store(self) -> Any:
        return None

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def skip_gradient_sync(self, enabled: bool = True) -> AbstractContextManager[Any]:
        return nullcontext()
