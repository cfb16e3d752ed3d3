"""Memory and initial values for parameters that were made on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.sharded_tensors import fill, is_dtensor, local_part


def without_memory(module: Module) -> list[Module]:
    """The parts of a module, itself included, that have parameters or buffers of their own on the meta device."""
    return [part for part in module.modules() if any(tensor.is_meta for tensor in _own(part).values())]


def _own(module: Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


class Materializer:
    """Gives memory and initial values to parameters on the meta device, a part at a time.

    Args:
        device: Where to.
        init: Called with each part instead; has to leave none on the meta device.
    """

    def __init__(self, device: torch.device, init: Callable[[Module], Any] | None = None) -> None:
        self._device = device
        self._init = init
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # what a shared parameter became; keeps the key alive
        self._without_values: set[str] = set()

    def fill(self, parts: Iterable[Module]) -> None:
        """Give each part memory and values.

        Raises:
            ConfigurationError: If `init` left a parameter on the meta device.
        """
        for part in parts:
            if self._init is not None:
                self._init(part)
                left = [name for name, tensor in _own(part).items() if tensor.is_meta]
                if left:
                    raise ConfigurationError(
                        f"param_init_fn={self._init!r} left {left} of {class_name(part)} on the meta device. It has"
                        " to give memory and values to every part that it is called with. Begin it with"
                        " `module.to_empty(device=..., recurse=False)`."
                    )
                continue
            for name, tensor in _own(part).items():
                if tensor.is_meta:
                    setattr(part, name, self._with_memory(tensor))
            reset_values(part, self._without_values)

    def warn(self) -> None:
        """Name the parts that have memory now, and no values."""
        warn_without_values(self._without_values)

    def _with_memory(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            empty = torch.empty_like(tensor, device=self._device)
            made = Parameter(empty, tensor.requires_grad) if isinstance(tensor, Parameter) else empty
            self._made[id(tensor)] = tensor, made
        return self._made[id(tensor)][1]


def reset_values(part: Module, without_values: set[str]) -> None:
    """Call the part's `reset_parameters`; parameters that are split get their part of whole ones.

    Args:
        part: Has memory.
        without_values: Its class is added if it has no such method.
    """
    # torch's own MultiheadAttention has it under the second name.
    reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    if not callable(reset):
        without_values.add(class_name(part))
        return
    split = {name: value for name, value in part.named_parameters(recurse=False) if is_dtensor(value)}
    # Whole for a moment: a random number generator knows nothing of the parts on other processes.
    for name, value in split.items():
        whole = torch.empty(value.shape, dtype=value.dtype, device=local_part(value).device)
        setattr(part, name, Parameter(whole, value.requires_grad))
    try:
        with torch.no_grad():
            reset()
        for name, value in split.items():
            fill(name, value, getattr(part, name))
    finally:
        for name, value in split.items():
            setattr(part, name, value)


def warn_without_values(names: Iterable[str]) -> None:
    """Name the classes whose parameters have memory now, and no values."""
    if names:
        rank_zero_warn(
            f"Parameters of {', '.join(sorted(names))} were made on the meta device and have no values now. These"
            " classes have no reset_parameters() that would set them. Load a checkpoint before you train, or define"
            " that method."
        )
