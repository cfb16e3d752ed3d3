"""Methods that look like hooks and are none: the run would never call them."""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

from fulmen.fabric.rank_zero import PossibleUserWarning, warn_once
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.hooks.table import HOOKS
from fulmen.trainer.signature import is_overridden

# Hooks of PyTorch Lightning 1.x that 2.x does not call, and what is called instead.
_REMOVED = {
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
    "training_step_end": "on_train_batch_end",
    "validation_step_end": "on_validation_batch_end",
    "test_step_end": "on_test_batch_end",
    "on_epoch_start": "on_train_epoch_start",
    "on_epoch_end": "on_train_epoch_end",
    "on_batch_start": "on_train_batch_start",
    "on_batch_end": "on_train_batch_end",
    "on_pretrain_routine_start": "on_fit_start",
    "on_pretrain_routine_end": "on_fit_start",
    "on_train_dataloader": "train_dataloader",
    "on_val_dataloader": "val_dataloader",
    "on_test_dataloader": "test_dataloader",
    "on_predict_dataloader": "predict_dataloader",
    "on_hpc_save": "on_save_checkpoint",
    "on_hpc_load": "on_load_checkpoint",
    "on_keyboard_interrupt": "on_exception",
    "on_init_start": "setup",
    "on_init_end": "setup",
    "on_before_accelerator_backend_setup": "setup",
    "on_configure_sharded_model": "setup",
}
_BASES: tuple[type, ...] = (LightningModule, LightningDataModule, Callback)
_MAX_EDITS = 2  # two letters changed places, one too few or too many: more is another word


class NoHookError(MisconfigurationException, NotImplementedError):
    """A method has the name of a hook that there is no more, or nearly that of one."""


def check_hook_names(owner: object) -> None:
    """Refuse methods that were meant as hooks and would never be called.

    A method that another method of the same class calls is the user's own, whatever its name. A hook of old beside
    its successor is there for old versions, and left alone.

    Args:
        owner: A module, datamodule or callback.

    Raises:
        NoHookError: For a removed hook, and for a name that begins with "on_" and is a hook's but for a typing error.
            Any other name that is nearly a hook's is worth a warning.
    """
    base = next((kind for kind in _BASES if isinstance(owner, kind)), None)
    if base is None:
        return
    known = {name for name in (*HOOKS, "configure_callbacks", "forward") if hasattr(base, name)}
    suspects: list[tuple[type, str, str]] = []
    for cls, name in _own_methods(type(owner), base):
        removed = _REMOVED.get(name)
        if removed is None:
            nearest = _nearest(name, known)
            if nearest is not None and not is_overridden(nearest, owner, base):
                suspects.append((cls, name, nearest))
        elif not (hasattr(base, removed) and is_overridden(removed, owner, base)):
            suspects.append((cls, name, removed))
    if not suspects:
        return
    called = {name for cls in type(owner).__mro__ if _is_users(cls, base) for name in _names_called_in(cls)}
    for cls, name, meant in suspects:
        if name in called:
            continue
        if name in _REMOVED:
            raise NoHookError(
                f"{cls.__name__}.{name}() is a hook of PyTorch Lightning 1, and is never called."
                " What it does would silently be left out."
                f" Write {meant}() in its place, or remove it."
            )
        said = (
            f"{cls.__name__}.{name}() is no hook, and nothing in {cls.__name__} calls it."
            f" The nearest hook is {meant}()."
        )
        if name.startswith("on_"):
            raise NoHookError(f"{said} Name the method so, or give it a name that does not begin with 'on_'.")
        warn_once(f"{said} Name the method so if that is what it is meant to be.", category=PossibleUserWarning)


def misspelt(owner: object, hook: str) -> str | None:
    """The method of `owner` whose name is nearly `hook`, if there is one."""
    base = next((kind for kind in _BASES if isinstance(owner, kind)), object)
    return next((name for _, name in _own_methods(type(owner), base) if _nearest(name, {hook})), None)


def _own_methods(owner: type, base: type) -> Iterator[tuple[type, str]]:
    """What the user's classes define and `base` does not."""
    for cls in owner.__mro__:
        if _is_users(cls, base):
            for name, value in vars(cls).items():
                if isinstance(value, FunctionType) and not name.startswith("_") and not hasattr(base, name):
                    yield cls, name


def _is_users(cls: type, base: type) -> bool:
    return issubclass(cls, base) and cls is not base and not cls.__module__.startswith("fulmen.")


def _nearest(name: str, known: set[str]) -> str | None:
    found = [hook for hook in sorted(known) if _edits(name, hook) <= _MAX_EDITS]
    return min(found, key=lambda hook: _edits(name, hook), default=None)


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour; counted no further than is asked."""
    if abs(len(a) - len(b)) > _MAX_EDITS:
        return _MAX_EDITS + 1
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(row[-1] + 1, last[j] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def _names_called_in(cls: type) -> Iterator[str]:
    """Every attribute that the code of `cls` names, but not those by which a method calls itself in a base class."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else value
        if isinstance(function, classmethod | staticmethod):
            function = function.__func__
        if isinstance(function, FunctionType):
            code = inspect.unwrap(function).__code__
            yield from (found for found in _names_in(code) if found != name)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
