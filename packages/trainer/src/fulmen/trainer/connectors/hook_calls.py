"""Can each hook and step be called with what the run passes? Asked before any work begins."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.hooks.table import HOOKS
from fulmen.trainer.signature import is_overridden

_BASES: tuple[type, ...] = (LightningModule, LightningDataModule, Callback)
# Arguments that are passed by name, and those that are passed although the default has them optional.
_BY_NAME = {
    "setup": ("stage",),
    "teardown": ("stage",),
    "configure_gradient_clipping": ("gradient_clip_val", "gradient_clip_algorithm"),
}
_ALSO = {"optimizer_step": ("optimizer_closure",)}
# What steps are called with is worked out where they are called: they may leave arguments out.
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class HookSignatureError(MisconfigurationException, TypeError):
    """A hook cannot be called with what the run passes."""


def check_hook_calls(owner: object) -> None:
    """Refuse hooks that take other arguments than the run passes.

    Args:
        owner: A module, datamodule or callback.

    Raises:
        HookSignatureError: Naming the hook, what it takes, and what it gets.
    """
    base = next((kind for kind in _BASES if isinstance(owner, kind)), None)
    if base is None:
        return
    for name in HOOKS:
        if name in _STEPS or not hasattr(base, name) or not is_overridden(name, owner, base):
            continue
        hook = getattr(owner, name)
        signature = _signature(hook)
        if signature is None:
            continue
        by_name = _BY_NAME.get(name, ())
        positional = [passed for passed in _passed(getattr(base, name)) if passed not in by_name]
        positional += _ALSO.get(name, ())
        try:
            signature.bind(*positional, **dict.fromkeys(by_name))
        except TypeError as error:
            shown = [*positional, *(f"{key}=..." for key in by_name)]
            raise HookSignatureError(
                f"{type(owner).__name__}.{name}{signature} cannot be called as a hook: {error}."
                f" The run calls it with ({', '.join(shown)})."
                f" Define it as {name}({', '.join(['self', *positional, *by_name])})."
            ) from None


def _passed(default: Callable[..., Any]) -> Iterator[str]:
    """What the run always passes; what has a default is left out where there is but one loader."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in list(inspect.signature(default).parameters.values())[1:]:
        if parameter.default is inspect.Parameter.empty and parameter.kind not in several:
            yield parameter.name


def _signature(hook: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(hook)
    except (TypeError, ValueError):  # written in C, or no function at all
        return None
