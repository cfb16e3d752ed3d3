"""Of the checkpoints that a word such as "last" may stand for, the first one that is whole.

The first process decides, and all take the same one. A damaged one is passed over, with one warning that says why; a
fit, which owns the folder, gives it another name, so that it is neither taken again nor lost.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from fulmen.fabric.checkpoint_io.lazy import lazy_load
from fulmen.fabric.checkpoint_io.leftovers import clean_leftovers
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed, is_sharded
from fulmen.fabric.checkpoint_io.verify import checkpoint_damage, set_aside
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import exists, is_local, local_path
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.types import PathLike
from fulmen.trainer.checkpoint.paths import Choice
from fulmen.trainer.checkpoint.restore import Checkpoint, read
from fulmen.trainer.run.context import RunContext

_NEEDED_BY_FIT = "optimizer_states"


@dataclass
class _Found:
    """What the first process found out, as it is told to the others."""

    path: str | None = None
    passed_over: list[str] = field(default_factory=list)  # with the reasons
    kept: list[str] = field(default_factory=list)  # what became of those that are damaged
    some_damaged: bool = False
    refused: Exception | None = None


def load_whole(
    run: RunContext, choice: Choice, *, fits: bool, weights_only: bool | None, call: str
) -> tuple[str | None, Checkpoint | None]:
    """The path of the first candidate that is whole, and what is in it; (None, None) if nothing is to be loaded.

    Every process must call it.

    Args:
        run: The run.
        choice: Its candidates are words' meaning, not paths of the user.
        fits: Is it a fit? It needs more than weights, and sets aside what is damaged.
        weights_only: As for `torch.load`; None is True.
        call: The user's call, for messages.

    Raises:
        CheckpointDamagedError: If no candidate is whole, and the run may not begin without.
        CheckpointError: If one that is whole must not be loaded, or belongs to something else.
    """
    strategy = run.strategy
    strategy.barrier("ckpt_path")  # all have looked at the folder: it may change now
    # Reading a checkpoint verifies it: the first process has not to do it again.
    read_here = strategy.world_size == 1 or strategy.reads_alone
    loaded: list[Checkpoint] = []

    def judge(path: str) -> None:
        loaded.clear()
        if read_here:
            loaded[:] = [read(run, path, weights_only=weights_only)]
            keys = set(loaded[0])
        else:
            damage = checkpoint_damage(path)
            if damage is not None:
                raise (CheckpointDamagedError if exists(path) else CheckpointNotFoundError)(damage)
            is_file = is_local(path) and not (is_sharded(path) or is_deepspeed(path))
            keys = set() if not is_file else set(lazy_load(path, verify=False))
        if fits and choice.asked == "auto" and keys and _NEEDED_BY_FIT not in keys:
            raise CheckpointError(f"{path!r} holds weights only, and a fit cannot go on from these")

    found = _Found()
    if strategy.is_global_zero:
        found = _first_whole(choice, judge, sets_aside=fits)
    found = strategy.broadcast(found)
    if found.refused is not None:
        raise found.refused
    if found.path is None and not choice.may_begin:
        raise (CheckpointDamagedError if found.some_damaged else CheckpointNotFoundError)(
            f"{call}(ckpt_path={choice.asked!r}) finds no checkpoint that can be loaded."
            f" {_listed(found.passed_over + found.kept)}"
            " Pass the path of another checkpoint, or leave ckpt_path out to start afresh."
        )
    if found.passed_over:
        taken = f"{found.path} is loaded" if found.path is not None else "Nothing is loaded, and the run starts afresh"
        rank_zero_warn(
            f"{call}(ckpt_path={choice.asked!r}) passed over {len(found.passed_over)} of the checkpoints that it stands"
            f" for. {_listed(found.passed_over + found.kept)} {taken}."
        )
    if found.path is None:
        return None, None
    return found.path, loaded[0] if loaded else read(run, found.path, weights_only=weights_only)


def clear_leftovers(folders: Iterable[PathLike]) -> None:
    """Clear away what runs that were killed while they saved have left in these folders; see `clean_leftovers`."""
    for folder in dict.fromkeys(os.fspath(folder) for folder in folders):
        with suppress(OSError):  # no writing there: whoever wants to write says so
            clean_leftovers(folder)


def _first_whole(choice: Choice, judge: Callable[[str], None], *, sets_aside: bool) -> _Found:
    found = _Found()
    damaged: list[str] = []
    for path in choice.candidates:
        if any(_is_same(path, other) for other in damaged):
            continue  # another name of a file that was judged
        try:
            judge(path)
        except (CheckpointDamagedError, CheckpointNotFoundError) as error:
            found.passed_over.append(str(error))
            if isinstance(error, CheckpointDamagedError):
                damaged.append(path)
        except (CheckpointError, OSError) as error:
            if choice.asked != "auto":
                found.refused = error
                break
            found.passed_over.append(f"{error}.")
        except Exception as error:  # the other processes wait to hear what became of it
            found.refused = error
            break
        else:
            found.path = path
            break
    found.some_damaged = bool(damaged)
    if sets_aside:
        for path in damaged:
            found.kept.append(_set_aside(path, choice.candidates))
    return found


def _set_aside(path: str, candidates: Iterable[str]) -> str:
    others = [other for other in candidates if other != path and _is_same(path, other)]
    try:
        # A link would lead nowhere once the file has another name: it goes, and what it leads to stays.
        real = next((name for name in (path, *others) if not _is_link(name)), path)
        for other in (path, *others):
            if other != real:
                os.remove(local_path(other))
        return f"It is kept as {set_aside(real)!r}."
    except OSError as error:
        return f"It could not be given another name ({error.strerror or error})."


def _is_link(path: str) -> bool:
    return is_local(path) and os.path.islink(local_path(path))


def _is_same(path: str, other: str) -> bool:
    if not is_local(path) or not is_local(other):
        return path == other
    with suppress(OSError):
        return os.path.samefile(local_path(path), local_path(other))
    return False


def _listed(reasons: list[str]) -> str:
    return " ".join(reason if reason.endswith(".") else f"{reason}." for reason in reasons)
