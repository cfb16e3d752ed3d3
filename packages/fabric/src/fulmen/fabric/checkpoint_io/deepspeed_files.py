"""One file of a checkpoint of DeepSpeed: tensors and plain data in and out, with its SHA-256.

Read without the package deepspeed: objects of its classes become `Opaque` ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fulmen.fabric.checkpoint_io.blocks import SealingWriter, VerifyingFile
from fulmen.fabric.checkpoint_io.safe import unsafe_classes
from fulmen.fabric.checkpoint_io.torch import opened, read_errors
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError
from fulmen.fabric.filesystem import local_path
from fulmen.fabric.types import PathLike

# The classes of DeepSpeed in its files: a number, settings of the loss scaler, a place in a flat tensor.
KNOWN_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class Opaque:
    """What a file holds of a class of DeepSpeed: its attributes, or what it was made from."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, Mapping) else {"state": state})


def read_file(
    path: PathLike, *, let_in: Iterable[Any] | None = None, verify: bool = True, trusted: bool = False
) -> Any:
    """What is in one file of such a checkpoint: tensors stay in the file until they are touched.

    Args:
        path: A local file.
        let_in: Classes that may come out of it; None makes `Opaque` objects of the known ones.
        verify: Compare it with its SHA-256, if it has one.
        trusted: Let the file bring any class, and run code.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError: If it is not there, or not what was written.
        CheckpointError: If it holds more than tensors, plain data and the known classes.
    """
    with opened(path) as (file, num_bytes, digests):
        if verify and digests is not None:
            damage = VerifyingFile(file, digests, num_bytes, is_local=True).damage()
            if damage is not None:
                raise damaged(path, damage)
        classes = [(Opaque, name) for name in KNOWN_CLASSES] if let_in is None else list(let_in)
        with (
            torch.serialization.safe_globals(classes),
            read_errors(path, file, num_bytes, map_location="cpu", weights_only=not trusted),
        ):
            return torch.load(local_path(path), map_location="cpu", weights_only=not trusted, mmap=True)


def write_file(path: PathLike, state: Any) -> None:
    """Write one file of such a checkpoint, sealed with its SHA-256, and wait until it is on the disk.

    Raises:
        CheckpointError: If something in it could not be loaded without running code.
    """
    with open(local_path(path), "xb+") as file:
        sealing = SealingWriter(file)
        torch.save(state, sealing)  # type: ignore[arg-type]  # what it needs of a file
        sealing.seal()
        file.flush()
        os.fsync(file.fileno())
        unsafe = sorted(set(unsafe_classes(file)) - set(KNOWN_CLASSES))
    if unsafe:
        raise CheckpointError(
            f"The checkpoint was not written: its state holds {', '.join(unsafe)}. Loading these would run code from"
            " the file, and checkpoints are loaded without. Save plain data in its place (text, numbers, lists,"
            " dictionaries, a state dict), or name the class in torch.serialization.add_safe_globals."
        )


def damaged(path: PathLike, reason: str) -> CheckpointDamagedError:
    """The error for a file that is not what was written."""
    return CheckpointDamagedError(
        f"The checkpoint {os.fspath(path)!r} is damaged or no checkpoint: {reason}. It was cut short or changed after"
        " it was written. Load an earlier checkpoint, or copy this one again from where it came."
    )
