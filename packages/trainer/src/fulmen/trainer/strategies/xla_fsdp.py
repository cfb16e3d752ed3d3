"""Bound: parameters, gradients and the state of optimizers are divided over XLA devices, by XLA itself."""

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.fsdp_units import Policy
from fulmen.fabric.strategies.xla_fsdp import XLAFSDPStrategy as FabricXLAFSDPStrategy
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.xla import XLAStrategy


class XLAFSDPStrategy(XLAStrategy):
    """One process computes on all XLA devices of this machine; each of them holds a part of every parameter.

    Args:
        accelerator: See `Strategy`.
        parallel_devices: The devices of this machine.
        checkpoint_io: A `XLACheckpointIO`, or one that wraps it.
        precision_plugin: A `XLAPrecision`.
        activation_checkpointing_policy: Which parts forget their activations, and compute them again in backward.
        spmd: Only True: torch_xla's other way takes the parameters out of the module, and `configure_optimizers` would
            find none. Fabric's `XLAFSDPStrategy` has it.

    Raises:
        MissingPackageError: If torch_xla is not installed.
        ConfigurationError: With `spmd=False`.
    """

    strategy_name = "xla_fsdp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        activation_checkpointing_policy: Policy | None = None,
        *,
        spmd: bool = True,
    ) -> None:
        self._adopt(
            FabricXLAFSDPStrategy(
                accelerator,
                parallel_devices,
                checkpoint_io,
                precision_plugin,
                activation_checkpointing_policy=activation_checkpointing_policy,
                spmd=spmd,
            )
        )

    def _adopt(self, fabric_strategy: FabricStrategy) -> None:
        if isinstance(fabric_strategy, FabricXLAFSDPStrategy) and not fabric_strategy.spmd:
            raise ConfigurationError(
                "Trainer(strategy=XLAFSDPStrategy(spmd=False)) cannot train a LightningModule. torch_xla's wrapper"
                " takes the parameters out of the module, and configure_optimizers() would find none. Pass"
                " strategy='xla_fsdp' or XLAFSDPStrategy(spmd=True); your own loop with Fabric can use the wrapper."
            )
        super()._adopt(fabric_strategy)

    def model_to_device(self) -> None:
        """Divide the model over the devices, also if it is only evaluated."""
        super().model_to_device()
        assert self.model is not None
        self.model = self.fabric_strategy.setup_module(self.model)

    def configure_ddp(self) -> None:
        """Nothing: the module is divided, and not wrapped."""
