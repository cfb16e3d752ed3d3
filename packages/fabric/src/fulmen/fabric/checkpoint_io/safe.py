"""Only what can be loaded without running code is saved."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from typing import IO, Any

import torch

from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.types import PathLike

# What pickling answers for something that it cannot pickle.
CANNOT_PICKLE = (pickle.PicklingError, AttributeError, TypeError, NotImplementedError)


def unsafe_classes(file: IO[bytes]) -> list[str]:
    """The classes and functions in a saved file that `weights_only=True` does not let in."""
    file.seek(0)
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))


def encode(path: PathLike, name: str, value: Any) -> bytes:
    """Plain data as the bytes of a file of torch.

    Raises:
        CheckpointError: If something in it cannot be pickled, or not be loaded safely.
    """
    file = io.BytesIO()
    try:
        torch.save(value, file)
    except CANNOT_PICKLE as error:
        raise cannot_be_saved(path, value, str(error), name) from error
    unsafe = unsafe_classes(file)
    if unsafe:
        raise unsafe_to_load(path, value, unsafe, name)
    return file.getvalue()


def cannot_be_saved(path: PathLike, state: Any, reason: str, name: str = "") -> CheckpointError:
    """The error for a state of which something cannot be pickled."""
    key = name or _culprit(state, lambda value: _failure(value) is not None)
    return CheckpointError(
        f"The checkpoint {os.fspath(path)!r} could not be written: {reason}. What stands under {key} cannot be pickled;"
        " no file was left. Keep tensors and plain data in the state, and leave functions and open files out."
    )


def unsafe_to_load(path: PathLike, state: Any, unsafe: list[str], name: str = "") -> CheckpointError:
    """The error for a state that could be saved, and then not be loaded safely."""
    key = name or _culprit(state, _is_unsafe)
    return CheckpointError(
        f"The checkpoint {os.fspath(path)!r} was not written: {key} holds {', '.join(unsafe)}. Loading these would run"
        " code from the file, and checkpoints are loaded without. Save plain data in its place (text, numbers, lists,"
        " dictionaries, a state dict), or name the class in torch.serialization.add_safe_globals."
    )


def _culprit(state: Any, is_culprit: Any) -> str:
    """The keys down to the first value that is at fault: "['a']['b']"."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if is_culprit(value):
                return f"[{key!r}]{_culprit(value, is_culprit)}"
    if isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            if is_culprit(value):
                return f"[{index}]{_culprit(value, is_culprit)}"
    return ""


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(memoryview(data).cast("B"))


def _failure(value: Any) -> Exception | None:
    try:
        torch.save(value, _Nowhere())  # type: ignore[arg-type]
    except CANNOT_PICKLE as error:
        return error
    return None


def _is_unsafe(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(_without_tensors(value), file)
    except CANNOT_PICKLE:
        return False
    return bool(unsafe_classes(file))


def _without_tensors(value: Any) -> Any:
    if type(value) is torch.Tensor:
        return None
    if isinstance(value, dict):
        return {key: _without_tensors(part) for key, part in value.items()}
    return [_without_tensors(part) for part in value] if isinstance(value, list) else value
