"""How numbers are held and computed: convert, forward context, backward, step.

A precision fires no hooks and owns no module. Which of its methods do anything is known when its class is made, so that
callers can leave out the others before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from fulmen.fabric.trees import convert_tensors
from fulmen.fabric.types import Optimizable

PrecisionName = str  # "32-true", "16-mixed", ...

# In which type matrix products are computed.
_COMPUTED_IN: dict[PrecisionName, torch.dtype] = {
    "64-true": torch.float64,
    "32-true": torch.float32,
    "16-true": torch.float16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "transformer-engine": torch.float8_e4m3fn,
    "transformer-engine-float16": torch.float8_e4m3fn,
}

_FORWARD = ("forward_context",)
_BACKWARD_AND_STEP = ("pre_backward", "backward", "post_backward", "optimizer_step", "unscale_gradients")


class Precision:
    """32-bit, and the base of every other precision. Users may subclass it and override any method."""

    precision: PrecisionName = "32-true"
    device_types: tuple[str, ...] = ()  # the kinds of device that it works on; empty for all
    # What a strategy may do with its parameters: split them over processes, keep replicas, or have them on one device.
    parameters_may_be: Literal["split", "replicated", "alone"] = "split"
    _overridden: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = (*_FORWARD, "convert_input", "convert_output", *_BACKWARD_AND_STEP)
        cls._overridden = frozenset(name for name in names if getattr(cls, name) is not getattr(Precision, name))

    @property
    def has_forward_context(self) -> bool:
        """Must forward run inside `forward_context()`?"""
        return "forward_context" in self._overridden

    @property
    def converts_input(self) -> bool:
        """Does `convert_input` do anything?"""
        return "convert_input" in self._overridden

    @property
    def scales_loss(self) -> bool:
        """Is the loss scaled for backward, and must gradients be unscaled before they are read?"""
        return False

    @property
    def is_plain(self) -> bool:
        """Are forward, backward and step what they are without any precision?"""
        return not self._overridden and not self.scales_loss

    @property
    def leaves_forward(self) -> bool:
        """Is forward what it is without any precision, whatever backward and step are?"""
        return not self._overridden & {*_FORWARD, "convert_input", "convert_output"}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type in which matrix products are computed, where the device can."""
        return _COMPUTED_IN.get(self.precision, torch.float32)

    def check_training(self, device_type: str, call: str) -> None:
        """Refuse to train where nothing good would come of it.

        Args:
            device_type: "cpu", "cuda", ...
            call: What the user called, for the error: "Trainer.fit(...)".

        Raises:
            ConfigurationError: If so.
        """

    def convert_module(self, module: Module) -> Module:
        """The module in the type in which its parameters are held; usually the same object."""
        return module

    def beside_parameters(self, module: Module) -> list[Tensor]:
        """Tensors that belong to parameters of `module`, and are none: replicas must have the same."""
        return []

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Tensors created inside have the right type."""
        return nullcontext()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters of the right type."""
        return nullcontext()

    def forward_context(self) -> AbstractContextManager[Any]:
        """What forward and loss run in. A new object for every forward."""
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        """A batch as the module wants it; any nesting of tensors."""
        return data

    def convert_output(self, data: Any) -> Any:
        """What the module returned, as users want it; any nesting of tensors."""
        return data

    def pre_backward(self, tensor: Tensor, module: Module | None) -> Any:
        """Runs before backward of the loss `tensor`."""

    def backward(self, tensor: Tensor, model: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss `tensor`; `args` and `kwargs` are those of `Tensor.backward`."""
        tensor.backward(*args, **kwargs)

    def post_backward(self, tensor: Tensor, module: Module | None) -> Any:
        """Runs after backward of the loss `tensor`."""

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """One step; `kwargs` are those of `optimizer.step`, such as `closure`."""
        return optimizer.step(**kwargs)

    def main_params(self, optimizer: Optimizer) -> Iterator[Parameter]:
        """The parameters that the optimizer steps, whose gradients are clipped."""
        for group in optimizer.param_groups:
            yield from group["params"]

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size; does nothing the second time before a step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""

    def teardown(self) -> None:
        """Undo what this precision changed in the process."""


# Not `Module.to`, which would cut complex parameters to their real part.
_CONVERT = {
    torch.float64: Module.double,
    torch.float32: Module.float,
    torch.float16: Module.half,
    torch.bfloat16: Module.bfloat16,
}


class UniformPrecision(Precision):
    """Parameters, inputs, computation and results have one floating-point type. A subclass sets `precision`.

    Args:
        dtype: float64, float32, float16 or bfloat16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type."""
        return self._dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The floating-point type."""
        return self.dtype

    def convert_module(self, module: Module) -> Module:
        """The module with its floating-point parameters and buffers in the type."""
        return _CONVERT[self.dtype](module)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Floating-point tensors created inside have the type."""
        return DefaultDtype(self.dtype)

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters of the type."""
        return DefaultDtype(self.dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Tensors that forward creates have the type."""
        return DefaultDtype(self.dtype)

    def convert_input(self, data: Any) -> Any:
        """Floating-point tensors in the type."""
        return convert_tensors(data, self.dtype)

    def convert_output(self, data: Any) -> Any:
        """Floating-point tensors in the default type of torch."""
        return convert_tensors(data, torch.get_default_dtype())


class DefaultDtype:
    """Inside, `torch.get_default_dtype()` is `dtype`. May be entered again after it was left."""

    __slots__ = ("_before", "_dtype")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._before = dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        torch.set_default_dtype(self._before)
