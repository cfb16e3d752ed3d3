"""Callback flags to one ordered list."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer.callbacks.checkpoint import Checkpoint
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.callbacks.model_summary import ModelSummary
from fulmen.trainer.callbacks.progress_bar import ProgressBar
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar
from fulmen.trainer.connectors.hook_calls import check_hook_calls
from fulmen.trainer.connectors.hook_names import check_hook_names
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.run.settings import Settings, barebones_conflict, require_switch

CallbackFlag = Iterable[Callback] | Callback | None


class SameStateKeyError(MisconfigurationException, RuntimeError):
    """Two callbacks would write their state to one place in a checkpoint."""


def choose_callbacks(
    callbacks: CallbackFlag,
    settings: Settings,
    *,
    enable_checkpointing: bool | None,
    enable_progress_bar: bool | None,
    enable_model_summary: bool | None,
) -> list[Callback]:
    """The callbacks of a Trainer, in the order in which they are called.

    Args:
        callbacks: The user's.
        settings: `max_time` adds a timer; barebones mode adds nothing.
        enable_checkpointing, enable_progress_bar, enable_model_summary: Add the default one? None: yes.

    Raises:
        ArgumentTypeError: For anything that is no callback object.
        ConfigurationError: For a callback that a flag excludes.
    """
    found = _as_list(callbacks)
    flags = {
        "enable_checkpointing": enable_checkpointing,
        "enable_progress_bar": enable_progress_bar,
        "enable_model_summary": enable_model_summary,
    }
    for name, value in flags.items():
        require_switch(name, value, optional=True)
    if settings.barebones:
        for name, value in flags.items():
            if value:
                raise barebones_conflict(name, value)
    wanted = {name: not settings.barebones if value is None else value for name, value in flags.items()}
    _add_default(found, "enable_checkpointing", wanted, Checkpoint, ModelCheckpoint)
    if isinstance(settings.max_time, timedelta):
        _add_timer(found, settings.max_time)
    _add_default(found, "enable_progress_bar", wanted, ProgressBar, TQDMProgressBar)
    if wanted["enable_model_summary"] and not any(isinstance(callback, ModelSummary) for callback in found):
        found.append(ModelSummary())
    bars = [type(callback).__name__ for callback in found if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        raise ConfigurationError(
            f"Trainer(callbacks=...) has {len(bars)} progress bars: {', '.join(bars)}."
            " They would write over each other on one terminal. Pass only one of them."
        )
    return ordered(found)


def _add_timer(found: list[Callback], max_time: timedelta) -> None:
    from fulmen.trainer.callbacks.timer import Timer

    if not any(isinstance(callback, Timer) for callback in found):
        found.append(Timer(max_time))


def with_callbacks_of(module: LightningModule, callbacks: Sequence[Callback]) -> list[Callback]:
    """`callbacks` with those that the module configures; of one type, the module's replace the Trainer's."""
    configured = module.configure_callbacks()
    own = _as_list(configured)
    if not own:
        return list(callbacks)
    types = {type(callback) for callback in own}
    if replaced := sorted({type(callback).__name__ for callback in callbacks} & {kind.__name__ for kind in types}):
        rank_zero_info(
            f"{class_name(module)}.configure_callbacks() replaces callbacks of the Trainer: {', '.join(replaced)}."
        )
    return ordered([callback for callback in callbacks if type(callback) not in types] + own)


def ordered(callbacks: Sequence[Callback]) -> list[Callback]:
    """Tuners first, checkpoints last, each group in the order given; the rest between them.

    Raises:
        SameStateKeyError: If the states of two callbacks would be one.
    """
    first = [callback for callback in callbacks if callback.tunes]
    last = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    middle = [callback for callback in callbacks if callback not in first and callback not in last]
    result = first + middle + last
    check_state_keys(result)
    return result


def check_state_keys(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks whose states would be one.

    Raises:
        SameStateKeyError: Naming the key.
    """
    seen: set[str] = set()
    for callback in callbacks:
        stateful = type(callback).state_dict is not Callback.state_dict
        if stateful and callback.state_key in seen:
            raise SameStateKeyError(
                f"Trainer(callbacks=...) has two callbacks with the state key {callback.state_key!r}."
                " In a checkpoint the state of one would overwrite that of the other."
                " Remove one, give them different arguments, or override `state_key`."
            )
        seen.add(callback.state_key)


def _as_list(callbacks: CallbackFlag) -> list[Callback]:
    if callbacks is None:
        return []
    if isinstance(callbacks, Iterable) and not isinstance(callbacks, (str, Callback)):
        found = list(callbacks)
    else:
        found = [callbacks]
    for callback in found:
        if isinstance(callback, Callback):
            check_hook_names(callback)
            check_hook_calls(callback)
            continue
        if isinstance(callback, type) and issubclass(callback, Callback):
            what, fix = "a class, not an object", f"Pass {callback.__name__}(...)"
        else:
            what, fix = f"a {type(callback).__name__}, not a Callback", "Pass objects of classes derived from Callback"
        raise ArgumentTypeError(
            f"Trainer(callbacks=...) holds {callback!r}: {what}. The run calls the hooks of callback objects. {fix}."
        )
    return found


def _add_default(
    found: list[Callback],
    flag: str,
    wanted: dict[str, bool],
    kind: type[Callback],
    default: type[Callback],
) -> None:
    present = [callback for callback in found if isinstance(callback, kind)]
    if present and not wanted[flag]:
        name = type(present[0]).__name__
        raise ConfigurationError(
            f"Trainer(callbacks=[{name}(...)]) contradicts {flag}=False (or barebones=True)."
            f" The flag switches off what {name} does. Remove the callback, or the flag."
        )
    if wanted[flag] and not present:
        found.append(default())
