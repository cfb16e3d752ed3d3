"""One checkpoint in one file, from XLA devices."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.optional_packages import require
from fulmen.fabric.trees import map_tensors
from fulmen.fabric.types import PathLike


class XLACheckpointIO(TorchCheckpointIO):
    """As `TorchCheckpointIO`; tensors are brought to the CPU first, so that the file can be read without torch_xla.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require("torch_xla", purpose=type(self).__name__)
        super().__init__(*args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the file `path`; see `TorchCheckpointIO.save_checkpoint`."""
        # All that is pending, at once: each tensor on its own would be a graph of its own.
        xla: Any = require("torch_xla", purpose=type(self).__name__)
        xla.sync(wait=True)
        super().save_checkpoint(map_tensors(checkpoint, _to_cpu), path, storage_options)


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu() if tensor.device.type == "xla" else tensor
