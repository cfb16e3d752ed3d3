"""LightningOptimizer: the user's optimizer, whose `step()` goes through the run."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

from torch.optim import Optimizer

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.core.needs import TogglesOptimizers

# What the run gives: does the step of (optimizer, closure, keyword arguments of `step`).
Stepper = Callable[[Optimizer, Callable[[], Any] | None, dict[str, Any]], Any]

_OWN = frozenset({"_optimizer", "_stepper", "_module", "_skip_gradient_sync"})


def do_nothing_closure() -> None:
    """The closure of a step that has nothing left to compute."""


class LightningOptimizer:
    """An optimizer as the user sees it inside a run.

    It is the torch optimizer in every way, also for `isinstance`, except that `step` goes through precision, strategy
    and hooks of the run that it is bound to. Reading or setting anything else reaches the torch optimizer.

    Args:
        optimizer: The torch optimizer.
    """

    _optimizer: Optimizer
    _stepper: Stepper | None
    _module: TogglesOptimizers | None
    _skip_gradient_sync: Callable[[bool], AbstractContextManager[Any]] | None

    def __new__(cls, optimizer: Optimizer) -> Self:
        """An object whose class is also that of `optimizer`."""
        classes: tuple[Any, Any] = cls, type(optimizer)
        made: Self = object.__new__(_class_for(*classes))
        return made

    def __init__(self, optimizer: Optimizer) -> None:
        # Not Optimizer.__init__: this object shares everything with the one it stands for.
        self.__dict__.update(_optimizer=optimizer, _stepper=None, _module=None, _skip_gradient_sync=None)

    @property
    def optimizer(self) -> Optimizer:
        """The torch optimizer."""
        return self._optimizer

    def bind(
        self,
        stepper: Stepper | None,
        *,
        module: TogglesOptimizers | None = None,
        skip_gradient_sync: Callable[[bool], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Ties `step` and `toggle_model` to a run; `bind(None)` unties them.

        Args:
            stepper: Does the step.
            module: Toggles its optimizers.
            skip_gradient_sync: Given True, a context in which backward does not average gradients over processes.
        """
        self.__dict__.update(_stepper=stepper, _module=module, _skip_gradient_sync=skip_gradient_sync)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Takes one optimizer step through the run, and returns what the closure returned.

        Args:
            closure: Computes the loss anew, with gradients; None: the gradients are there.
            kwargs: For the `step` of the torch optimizer.

        Raises:
            MisconfigurationException: If `closure` cannot be called.
        """
        if closure is not None and not callable(closure):
            raise MisconfigurationException(
                f"optimizer.step(closure={closure!r}) got a {type(closure).__name__}."
                " A closure is called to compute the loss, so it must be callable."
                " Pass a function without arguments that returns the loss, or leave closure out."
            )
        if self._stepper is None:
            return self._optimizer.step(closure, **kwargs) if closure is not None else self._optimizer.step(**kwargs)
        return self._stepper(self._optimizer, closure, kwargs)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Inside, only this optimizer's parameters need gradients.

        Args:
            sync_grad: False: backward inside does not average gradients over processes, as wanted while they are
                accumulated.
        """
        skip = self._skip_gradient_sync
        sync = skip(True) if skip is not None and not sync_grad else nullcontext()
        toggle = self._module.toggled_optimizer(self) if self._module is not None else nullcontext()
        with sync, toggle:
            yield

    def __getattr__(self, item: str) -> Any:
        if item in _OWN:  # not there yet while a copy or an unpickled object is being filled
            raise AttributeError(item)
        return getattr(self._optimizer, item)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step":
            # A scheduler made for this object wraps its step; set on the torch optimizer, that would call itself.
            self.__dict__["step"] = value
        else:
            setattr(self._optimizer, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._optimizer, name)

    def __repr__(self) -> str:
        return f"Lightning{self._optimizer!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The run is not part of the optimizer: a copy is unbound.
        return LightningOptimizer, (self._optimizer,)


@functools.cache
def _class_for(cls: type[Any], optimizer_class: type[Any]) -> type[Any]:
    """`cls` that is also an `optimizer_class`, and hands its methods on to the torch optimizer.

    Inherited methods would find `self` to be the stand-in: what they set (`load_state_dict` does) would be lost.
    """
    names = [
        name for name in dir(optimizer_class) if not name.startswith("__") and not hasattr(LightningOptimizer, name)
    ]
    namespace = {name: _forward(name) for name in names}
    return type(f"Lightning{optimizer_class.__name__}", (cls, optimizer_class), namespace)


def _forward(name: str) -> property:
    return property(
        lambda self: getattr(self._optimizer, name),
        lambda self, value: setattr(self._optimizer, name, value),
    )
