"""What all bound strategies for XLA devices share: modules move in place, and graphs end before anything is saved."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch

from fulmen.fabric.environments.variables import environment_variables
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.xla.graphs import XLAGraphs, move_in_place
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.base import Strategy

_DEBUG = "PT_XLA_DEBUG"


class OnXLA(Strategy):
    """A module on XLA devices.

    Attributes:
        debug: Let torch_xla report, while a run lasts, where graphs end and why they are compiled.
    """

    debug: bool = False
    allows_inference_mode = False  # torch_xla cannot compute with the tensors of it
    _reports: ExitStack | None = None  # while torch_xla does

    def setup_environment(self) -> None:
        """Take the device, and join the other processes."""
        if self.debug:
            self._reports = ExitStack()
            self._reports.enter_context(environment_variables({_DEBUG: "1"}))
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move the model to the device; its parameters stay the objects that they are."""
        assert self.model is not None
        self.fabric_strategy.module_to_device(self.model)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch, with the user's `transfer_batch_to_device` if there is one. A graph ends here."""
        if self.transfer is not None:
            batch = self.transfer(batch, device or self.root_device, dataloader_idx)
        return self.fabric_strategy.batch_to_device(batch, device)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; only the first process writes, and before that all run what is pending."""
        cast(XLAGraphs, self.fabric_strategy).end_graph()
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def teardown(self) -> None:
        """Give the module back as it came, on the CPU."""
        if self._lightning_module is not None:
            try:
                move_in_place(self._lightning_module, torch.device("cpu"))
            except ConfigurationError as error:  # after a failure, its traceback may hold what backward works on
                rank_zero_warn(
                    f"{error} The parameters on the CPU are other objects than those that were trained, and where two"
                    " layers shared one, each has its own now. Load the last checkpoint to go on."
                )
        if self._reports is not None:
            self._reports.close()
            self._reports = None
        super().teardown()
