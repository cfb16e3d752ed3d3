"""Is what was read a checkpoint at all? Asked once, where it comes in, so that nothing behind it has to."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fulmen.fabric.errors import CheckpointError

# No person writes as many hyperparameters.
MOST_VALUES = 1_000_000


def check_form(checkpoint: Any, source: str, hparams_keys: Iterable[str] = (), name_key: str | None = None) -> None:
    """Refuse what does not have the form of a checkpoint of a module.

    Args:
        checkpoint: What was read.
        source: Where from, for the message.
        hparams_keys: Keys under which hyperparameters may lie.
        name_key: Key under which the name of an argument may lie.

    Raises:
        CheckpointError: Naming the key that is wrong.
    """
    if not isinstance(checkpoint, Mapping):
        raise _no_checkpoint(source, f"it holds a {type(checkpoint).__name__}, not a dict")
    weights = checkpoint.get("state_dict", {})
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise _no_checkpoint(source, "its 'state_dict' is no dict of names and tensors")
    for key in hparams_keys:
        hparams = checkpoint.get(key)
        if hparams is not None and not (
            isinstance(hparams, Mapping) and all(isinstance(name, str) for name in hparams)
        ):
            raise _no_checkpoint(source, f"its {key!r} is no dict of names and values")
        if num_values(hparams) > MOST_VALUES:
            raise _no_checkpoint(source, f"its {key!r} names the same values over and over, without end")
    if name_key is not None and not isinstance(checkpoint.get(name_key), str | None):
        raise _no_checkpoint(source, f"its {name_key!r} is no name")


def num_values(nest: Any) -> float:
    """How many values a nest of dicts, lists and tuples has when it is written out; infinity if it holds itself.

    A nest that refers to one of its parts many times, in several storeys, is small in memory and has no end for whoever
    walks through it. Here every part is looked at once.
    """
    known: dict[int, float] = {}
    todo: list[tuple[Any, bool]] = [(nest, False)]
    while todo:
        one, is_counted = todo.pop()
        parts = list(one.values()) if isinstance(one, Mapping) else one
        if not isinstance(parts, (list, tuple)):
            continue
        if is_counted:
            known[id(one)] = 1 + sum(known.get(id(part), 1.0) for part in parts)
        elif id(one) not in known:
            known[id(one)] = math.inf  # for a part that holds it
            todo.append((one, True))
            todo += [(part, False) for part in parts]
    return known.get(id(nest), 1.0)


def _no_checkpoint(source: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{source} was read, and is no checkpoint of a module: {why}. Something else has written it, or changed it."
        " Pass the path of a checkpoint that Trainer.save_checkpoint or ModelCheckpoint has written."
    )
