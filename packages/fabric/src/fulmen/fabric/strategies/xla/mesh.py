"""SPMD: one program that sees one device, while XLA computes it on all devices of the machine.

Tensors are marked with how they lie on the devices; XLA works out the rest, and what has to be sent between them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.trees import map_tensors

AXIS = "data"


class XLAMesh:
    """All devices of this machine, on one axis.

    Args:
        num_devices: How many there are.
    """

    def __init__(self, num_devices: int) -> None:
        self.num_devices = num_devices
        spmd: Any = require("torch_xla.distributed.spmd", purpose="XLAMesh", pip="torch_xla")
        self._spmd = spmd
        self.mesh = spmd.Mesh(list(range(num_devices)), (num_devices,), (AXIS,))

    @classmethod
    def of_this_machine(cls, num_asked: int, caller: str) -> XLAMesh:
        """The mesh of all devices; from now on, this process computes on all of them.

        Args:
            num_asked: As many as the user asked for.
            caller: Quoted in errors.

        Raises:
            ConfigurationError: If that is not how many there are.
        """
        runtime: Any = require("torch_xla.runtime", purpose=f"{caller}(spmd=True)", pip="torch_xla")
        if not runtime.is_spmd():
            runtime.use_spmd()
        num_devices = int(runtime.global_runtime_device_count())
        if num_asked != num_devices:
            raise ConfigurationError(
                f"{caller}(spmd=True) with devices={num_asked} would leave some of the {num_devices} devices here"
                " without work. One program runs on all of them, or on none."
                f" Pass devices={num_devices} or devices='auto', or leave out spmd=True."
            )
        return cls(num_devices)

    def divide_batch(self, batch: Any) -> Any:
        """The batch, the first axis of each tensor divided over the devices."""
        return map_tensors(batch, self._divide_first)

    def replicate(self, module: Module) -> None:
        """Keep all parameters and buffers of the module on every device."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._mark(tensor, None)

    def divide(self, module: Module) -> None:
        """Divide each parameter over the devices, along its longest axis that they divide; others are on every device.

        Gradients and the state of optimizers follow, since XLA lays out what is computed as what it is computed from.
        """
        for parameter in module.parameters():
            self._mark(parameter, self.axis_to_divide(tuple(parameter.shape)))
        for buffer in module.buffers():
            self._mark(buffer, None)

    def axis_to_divide(self, shape: tuple[int, ...]) -> int | None:
        """The longest axis of a shape that the number of devices divides, the first of them; None if there is none."""
        fitting = [axis for axis, length in enumerate(shape) if length and length % self.num_devices == 0]
        return max(fitting, key=lambda axis: (shape[axis], -axis), default=None)

    def _divide_first(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "xla" and tensor.ndim:
            self._mark(tensor, 0)
        return tensor

    def _mark(self, tensor: Tensor, divided: int | None) -> None:
        spec = tuple(AXIS if axis == divided else None for axis in range(tensor.ndim))
        self._spmd.mark_sharding(tensor, self.mesh, spec)
