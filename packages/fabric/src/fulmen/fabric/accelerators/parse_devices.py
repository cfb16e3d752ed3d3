"""`devices=` to device indices. Knows no hardware: what is there is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, HardwareError


def parse_process_count(devices: Any) -> int:
    """`devices=` for hardware that cannot be counted: the number of processes.

    | devices      | result |
    | ------------ | ------ |
    | 3, "3"       | 3      |
    | "auto"       | 1      |

    Raises:
        ConfigurationError: For none: 0, [], "".
        ArgumentTypeError: For everything else, such as -1, None or a list of indices.
    """
    count = _as_count(devices)
    if count == 0 or (isinstance(devices, (list, tuple, str)) and not devices):
        raise ConfigurationError(
            f"devices={devices!r} asks for no device. Work needs at least one, and on the CPU each is a process of its"
            " own. Pass devices=1, or devices='auto'."
        )
    if devices == "auto":
        return 1
    if count is None or count < 0:
        raise ArgumentTypeError(
            f"devices={devices!r} does not say how many processes to use on the CPU. There it must be an integer above"
            " 0, because CPUs have no indices and cannot be counted like GPUs. Pass devices=1, or more for that many"
            " processes."
        )
    return count


def parse_device_indices(devices: Any, available: Sequence[int], *, kind: str = "GPU") -> list[int]:
    """`devices=` for hardware with indices: which of `available` to use.

    | devices              | result                  |
    | -------------------- | ----------------------- |
    | 2, "2"               | the first two           |
    | -1, "-1", "auto"     | all                     |
    | [0, 2], "0,2"        | these                   |
    | [3], "3,"            | this one                |

    Args:
        devices: As the user wrote it.
        available: The indices that exist, ascending.
        kind: What they are, for messages.

    Raises:
        ConfigurationError: If none is asked for, or one twice, or the text cannot be read.
        HardwareError: If there are fewer, or there is none of that index.
        ArgumentTypeError: If it is neither integer, text nor a sequence of integers.
    """
    count = _as_count(devices)
    if count == -1 or devices == "auto":
        if not available:
            raise HardwareError(
                f"devices={devices!r} asks for all {kind}s. This machine has none that this torch can use."
                " Pass accelerator='cpu', or accelerator='auto' to take what is there."
            )
        return list(available)
    if count is not None:
        return _first(count, devices, available, kind)
    return _checked(_as_indices(devices, kind), devices, available, kind)


def _as_count(devices: Any) -> int | None:
    if isinstance(devices, int) and not isinstance(devices, bool):
        return devices
    if isinstance(devices, str) and "," not in devices:
        try:
            return int(devices)
        except ValueError:
            return None
    return None


def _first(count: int, devices: Any, available: Sequence[int], kind: str) -> list[int]:
    if count < 1:
        raise ConfigurationError(
            f"devices={devices!r} is no number of {kind}s. It must be above 0, or -1 for all."
            f" Pass devices=1, or devices='auto' for the {len(available)} that are here."
        )
    if count > len(available):
        raise HardwareError(
            f"devices={devices!r} asks for {count} {kind}s. This machine has {len(available)} that this torch can use."
            + (
                f" Pass devices={len(available)}, or devices='auto' to take what is there."
                if available
                else " Pass accelerator='cpu', or accelerator='auto' to take what is there."
            )
        )
    return list(available[:count])


def _as_indices(devices: Any, kind: str) -> list[int]:
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.split(",") if part.strip()]
        try:
            return [int(part) for part in parts]
        except ValueError:
            raise ConfigurationError(
                f"devices={devices!r} cannot be read. Text must be 'auto', a number, or indices with commas ('0,2')."
                f" Pass devices='auto' to take every {kind}."
            ) from None
    if isinstance(devices, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in devices):
        return list(devices)
    raise ArgumentTypeError(
        f"devices={devices!r} is a {type(devices).__name__} that names no {kind}s. An integer is their number, a list"
        " of integers their indices, and text is 'auto' or either of the two. Pass devices=1, devices=[0] or"
        " devices='auto'."
    )


def _checked(indices: list[int], devices: Any, available: Sequence[int], kind: str) -> list[int]:
    if not indices:
        raise ConfigurationError(
            f"devices={devices!r} asks for no {kind}. Work needs at least one device."
            f" Pass the index of one, devices='auto' to take every {kind}, or accelerator='cpu'."
        )
    if len(set(indices)) != len(indices):
        raise ConfigurationError(
            f"devices={devices!r} names a {kind} twice. Each process needs a device of its own."
            f" Pass devices={sorted(set(indices))}."
        )
    missing = [index for index in indices if index not in available]
    if missing:
        raise HardwareError(
            f"devices={devices!r} names {kind} {', '.join(map(str, missing))}. The {kind}s of this machine that this"
            f" torch can use are {list(available)}. Pass some of these, or devices='auto' to take what is there."
        )
    return indices
