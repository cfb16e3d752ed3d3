"""Mixed precision: autocast, with loss scaling for float16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module
from torch.optim import LBFGS, Optimizer

from fulmen.fabric.arguments import check_part
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.trees import convert_tensors
from fulmen.fabric.types import Optimizable

_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(Precision):
    """Parameters are float32; autocast computes in 16 bits where that is safe.

    Args:
        precision: "16-mixed" or "bf16-mixed".
        device: Type of the device, such as "cuda" or "cpu".
        scaler: Scales the loss so that float16 gradients do not vanish. Only for "16-mixed", which makes its own.
    """

    def __init__(
        self, precision: Literal["16-mixed", "bf16-mixed"], device: str, scaler: GradScaler | None = None
    ) -> None:
        if not isinstance(precision, str) or precision not in _DTYPES:
            raise ConfigurationError(
                f"MixedPrecision(precision={precision!r}) is unknown. It computes in one of two 16-bit types."
                " Pass '16-mixed' or 'bf16-mixed'."
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise ConfigurationError(
                f"MixedPrecision(precision='bf16-mixed', scaler={scaler!r}) scales a loss that needs no scaling."
                " bfloat16 has the range of float32. Leave the scaler out, or pass '16-mixed'."
            )
        check_part(self, "scaler", scaler, method="unscale_", kind="torch.amp.GradScaler")
        check_device_type(self, device)
        self.precision = precision
        self.device = device
        self._scaler = scaler
        self._dtype = _DTYPES[precision]
        # By id. torch refuses to unscale twice, and `GradScaler.update` forgets what other optimizers have unscaled:
        # it must wait for those that are still to step.
        self._unscaled: dict[int, int] = {}  # after how many backwards
        self._stepped: set[int] = set()
        self._num_backwards = 0

    @property
    def scaler(self) -> GradScaler | None:
        """What scales the loss, made at the first look; None for "bf16-mixed"."""
        # Not in __init__: making one asks the CUDA driver, and processes that are forked later could not use it.
        if self._scaler is None and self.scales_loss:
            self._scaler = GradScaler(self.device)
        return self._scaler

    @scaler.setter
    def scaler(self, scaler: GradScaler | None) -> None:
        self._scaler = scaler

    @property
    def scales_loss(self) -> bool:
        """True for "16-mixed"."""
        return self.precision == "16-mixed"

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast to the 16-bit type."""
        return torch.autocast(self.device, dtype=self._dtype)

    def convert_input(self, data: Any) -> Any:
        """Floating-point tensors as float32, from where autocast starts."""
        return convert_tensors(data, torch.float32)

    def convert_output(self, data: Any) -> Any:
        """Floating-point tensors in the default type of torch."""
        return convert_tensors(data, torch.get_default_dtype())

    def backward(self, tensor: Tensor, model: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss, scaled where there is a scaler."""
        if self.scaler is not None:
            tensor = self.scaler.scale(tensor)
            self._num_backwards += 1
        tensor.backward(*args, **kwargs)

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """One step; with a scaler, none if a gradient is not finite.

        Raises:
            ArgumentTypeError: With a scaler, if a closure is passed or the optimizer is LBFGS, which needs one.
        """
        if self.scaler is None:
            return optimizer.step(**kwargs)
        if isinstance(optimizer, LBFGS) or kwargs.get("closure") is not None:
            raise ArgumentTypeError(
                f"precision='16-mixed' cannot step {type(optimizer).__name__} with a closure."
                " The gradients must be unscaled and checked before the step, and a closure computes them inside it."
                " Use precision='bf16-mixed' or '32-true', or an optimizer that needs no closure."
            )
        kwargs.pop("closure", None)
        self._begin(optimizer)
        output = self.scaler.step(optimizer, **kwargs)  # type: ignore[arg-type]
        self._unscaled.pop(id(optimizer), None)
        self._stepped.add(id(optimizer))
        if not self._unscaled:
            self._update()
        return output

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size; does nothing the second time before a step.

        Raises:
            ConfigurationError: If the optimizer unscales in its own step, as some fused ones do.
        """
        if self.scaler is None or self._unscaled.get(id(optimizer)) == self._num_backwards:
            return
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigurationError(
                f"The gradients of {type(optimizer).__name__} cannot be clipped or read with precision='16-mixed'."
                " It was made with fused=True and unscales them inside its own step."
                " Pass fused=False to it, or leave out gradient clipping."
            )
        if id(optimizer) in self._unscaled:
            # Its last gradients were unscaled, and dropped without a step.
            self._update()
        self._begin(optimizer)
        self.scaler.unscale_(optimizer)
        self._unscaled[id(optimizer)] = self._num_backwards

    def state_dict(self) -> dict[str, Any]:
        """The state of the scaler, or nothing."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the state of the scaler."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)

    def _begin(self, optimizer: Optimizable | Optimizer) -> None:
        if id(optimizer) in self._stepped:
            # An update is due, and the optimizer that it waited for was never stepped.
            self._update()

    def _update(self) -> None:
        assert self.scaler is not None
        self.scaler.update()
        self._unscaled.clear()
        self._stepped.clear()


def check_device_type(owner: Precision, device: object) -> None:
    """Raises ConfigurationError for what is no type of device that torch has autocast for."""
    try:
        fits = isinstance(device, str) and ":" not in device and torch.amp.is_autocast_available(device)
    except RuntimeError:
        fits = False
    if not fits:
        raise ConfigurationError(
            f"{type(owner).__name__}(device={device!r}) is no type of device on which torch computes in mixed"
            " precision. It is a type alone, without a number. Pass 'cuda', 'cpu', 'mps' or another of torch's."
        )
