"""Running mean, sum, min and max of scalars: on their device, without a sync, never below float32.

Sums are held in float64 where the device has it: an epoch of millions of float32 losses loses no digit.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fulmen.trainer.errors import ConfigurationError

Scalar = Tensor | float


def float_dtype() -> torch.dtype:
    """What a Python number becomes as a metric: float64 if that is torch's default, else float32."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def as_tensor(value: Scalar, device: torch.device | None = None) -> Tensor:
    """A scalar as a tensor; a Python number goes to `device`."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=float_dtype(), device=device)


def wide_dtype(device: torch.device) -> torch.dtype:
    """What sums are held in: float64; Apple GPUs have none, so float32 there."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide_tensor(value: float, device: torch.device) -> Tensor:
    """A scalar to gather in."""
    # A tensor of inference mode could not be changed outside it, and hooks run on both sides.
    with torch.inference_mode(False):
        return torch.full((), value, dtype=wide_dtype(device), device=device)


class Accumulator(ABC):
    """One number made of many, as they come.

    Python numbers and tensors may be mixed: each is gathered where it lies, and both meet when somebody asks.
    Before the first tensor, and when their dtype or device changes, `prepare` is called with one as it came.
    """

    __slots__ = ("count", "dtype", "gathered", "host")

    kind: ClassVar[str]
    collective: ClassVar[str]  # the operation that joins two processes
    start: ClassVar[float]

    def __init__(self) -> None:
        self.gathered: Tensor | None = None
        self.host: float = self.start
        self.count: float = 0
        self.dtype: torch.dtype | None = None

    @abstractmethod
    def add(self, value: Tensor, weight: float) -> None:
        """Take one more tensor, detached, of `wide_dtype`; `weight` counts for means only."""

    @abstractmethod
    def add_number(self, value: float, weight: float) -> None:
        """Take one more Python number."""

    @abstractmethod
    def add_graph(self, value: Tensor, weight: float) -> None:
        """Take one more tensor as it came and keep its graph, so that gradients flow from the result."""

    @abstractmethod
    def _join(self) -> Scalar:
        """All of it, before the division that a mean still needs."""

    def compute(self) -> Scalar:
        """The result so far, of the dtype of the values; a Python number if only such were added."""
        return self._narrowed(self._join())

    def wide(self, device: torch.device) -> list[Tensor]:
        """What `collective` joins over processes: one to two 0-dim tensors on `device`, all of one dtype."""
        joined = self._join()
        if not isinstance(joined, Tensor):
            return [wide_tensor(joined, device)]
        return [joined.detach().to(device, wide_dtype(device), copy=True)]

    def from_wide(self, parts: list[Tensor]) -> Scalar:
        """The result over all processes, from what came back of `wide`."""
        return self._narrowed(parts[0])

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and numbers."""
        gathered = None if self.gathered is None else self.gathered.detach().to("cpu", copy=True)
        double = self.dtype is torch.float64
        return {"gathered": gathered, "host": self.host, "count": self.count, "double": double}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state; tensors go to `device`."""
        gathered = state["gathered"]
        self.gathered = None if gathered is None else gathered.to(device, copy=True)
        self.host, self.count = state["host"], state["count"]
        if gathered is not None:
            self.dtype = torch.float64 if state["double"] else torch.float32

    def prepare(self, value: Tensor) -> None:
        """Be ready for tensors of this dtype (float32 or float64, which the result will have) on this device."""
        if self.dtype is not torch.float64:
            self.dtype = value.dtype
        if self.gathered is None:
            self.gathered = wide_tensor(self.start, value.device)
        elif self.gathered.device != value.device:
            self.gathered = self.gathered.to(value.device, wide_dtype(value.device))

    def _narrowed(self, value: Scalar) -> Scalar:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.dtype or float_dtype(), copy=True)


class _Sums(Accumulator):
    __slots__ = ()
    collective = "sum"
    start = 0.0

    def _with_graph(self, value: Tensor) -> Tensor:
        return value if self.gathered is None else self.gathered + value

    def _join(self) -> Scalar:
        return self.host if self.gathered is None else self.gathered + self.host


@final
class Mean(_Sums):
    """The mean, weighted by batch sizes."""

    __slots__ = ()
    kind = "mean"

    def add(self, value: Tensor, weight: float) -> None:  # noqa: D102
        self.gathered.add_(value, alpha=weight)  # type: ignore[union-attr]  # prepared
        self.count += weight

    def add_number(self, value: float, weight: float) -> None:  # noqa: D102
        self.host += value * weight
        self.count += weight

    def add_graph(self, value: Tensor, weight: float) -> None:  # noqa: D102
        self.prepare(value)
        self.gathered = self._with_graph(value * weight)
        self.count += weight

    def compute(self) -> Scalar:  # noqa: D102
        total = self._join()
        if isinstance(total, Tensor):
            return self._narrowed(total / self.count)
        return total / self.count if self.count else float("nan")

    def wide(self, device: torch.device) -> list[Tensor]:  # noqa: D102
        return [*super().wide(device), wide_tensor(float(self.count), device)]

    def from_wide(self, parts: list[Tensor]) -> Scalar:  # noqa: D102
        return self._narrowed(parts[0] / parts[1])


@final
class Sum(_Sums):
    """The sum; batch sizes do not count."""

    __slots__ = ()
    kind = "sum"

    def add(self, value: Tensor, weight: float) -> None:  # noqa: D102
        self.gathered.add_(value)  # type: ignore[union-attr]  # prepared
        self.count += 1

    def add_number(self, value: float, weight: float) -> None:  # noqa: D102
        self.host += value
        self.count += 1

    def add_graph(self, value: Tensor, weight: float) -> None:  # noqa: D102
        self.prepare(value)
        self.gathered = self._with_graph(value)
        self.count += 1


class _Extreme(Accumulator):
    """NaN wins over every number, as in numpy and torch."""

    __slots__ = ()

    @staticmethod
    @abstractmethod
    def _better(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def _better_number(a: float, b: float) -> float: ...

    def add(self, value: Tensor, weight: float) -> None:
        assert self.gathered is not None  # prepared
        self._better(self.gathered, value, out=self.gathered)
        self.count += 1

    def add_number(self, value: float, weight: float) -> None:
        self.host = value if value != value else self._better_number(value, self.host)
        self.count += 1

    def add_graph(self, value: Tensor, weight: float) -> None:
        self.prepare(value)
        assert self.gathered is not None
        self.gathered = self._better(self.gathered, value)
        self.count += 1

    def _join(self) -> Scalar:
        if self.gathered is None:
            return self.host
        host = torch.tensor(self.host, dtype=self.gathered.dtype, device=self.gathered.device)
        return self._better(self.gathered, host)


@final
class Min(_Extreme):
    """The smallest."""

    __slots__ = ()
    kind = collective = "min"
    start = float("inf")

    @staticmethod
    def _better(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.minimum(a, b, out=out)

    @staticmethod
    def _better_number(a: float, b: float) -> float:
        return b if b != b or b < a else a


@final
class Max(_Extreme):
    """The largest."""

    __slots__ = ()
    kind = collective = "max"
    start = float("-inf")

    @staticmethod
    def _better(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.maximum(a, b, out=out)

    @staticmethod
    def _better_number(a: float, b: float) -> float:
        return b if b != b or b > a else a


ACCUMULATORS: dict[str, type[Accumulator]] = {kind.kind: kind for kind in (Mean, Sum, Min, Max)}


def batch_size_of_log(name: str, batch_size: object) -> float:
    """A `batch_size` given to `self.log`, as a number.

    Raises:
        ConfigurationError: It is no number, or negative.
    """
    if isinstance(batch_size, Tensor) and batch_size.numel() == 1:
        batch_size = batch_size.item()  # the user put it on a device; a weight is needed here
    try:
        weight = float(batch_size)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = -1.0
    if not weight >= 0:
        raise ConfigurationError(
            f"self.log({name!r}, ..., batch_size={batch_size!r}) was called."
            f" The batch size is the weight of this value in the mean of the epoch, so it must be a number >= 0."
            f" Pass the number of samples in the batch, or leave it out to have it taken from the batch."
        )
    return weight
