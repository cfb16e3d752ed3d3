"""Module, optimizer and loader as Fabric hands them back.

What each of them has to do beyond the wrapped object is decided once, when it is wrapped. Where that is nothing (one
device, 32 bit), a call goes straight to the wrapped object. Knows no Fabric.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import load_plain_state, plain_state, unwrap_compiled
from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, ForwardBypassedError, UnknownMethodError
from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.capabilities import HooksForward
from fulmen.fabric.trees import move_to_device
from fulmen.fabric.types import Optimizable

_KINDS: dict[type, str] = {nn.Module: "module", Optimizable: "torch optimizer", DataLoader: "torch DataLoader"}
STEP_METHODS = frozenset({"training_step", "validation_step", "test_step", "predict_step"})


class _BackwardState:
    """Is a backward running that goes through the strategy?

    Global and not per thread: autograd runs the hooks of CUDA tensors in threads of its own.
    """

    num_running = 0


class _ThroughStrategy:
    # A generator would cost several calls in each step.
    def __enter__(self) -> None:
        _BackwardState.num_running += 1

    def __exit__(self, *_: object) -> None:
        _BackwardState.num_running -= 1


_THROUGH_STRATEGY = _ThroughStrategy()


def backward_through_strategy() -> AbstractContextManager[None]:
    """Inside, tensors that need the strategy's backward accept it."""
    return _THROUGH_STRATEGY


def overrides_backward(strategy: Strategy) -> bool:
    """Does `loss.backward()` differ from the strategy's backward? Then users must call `fabric.backward(loss)`."""
    if type(strategy).backward is not Strategy.backward:
        return True
    kind = type(strategy.precision)
    if kind.scales_loss is not Precision.scales_loss:
        return strategy.precision.scales_loss  # it says itself when its backward matters
    names = ("pre_backward", "backward", "post_backward")
    return any(getattr(kind, name) is not getattr(Precision, name) for name in names)


def _refuse_plain_backward(gradient: torch.Tensor) -> torch.Tensor:
    if _BackwardState.num_running == 0:
        raise ForwardBypassedError(
            "`loss.backward()` was called on an output of a module that Fabric has set up."
            " The chosen strategy and precision have work to do in backward (such as scaling the loss),"
            " which would be left out. Call `fabric.backward(loss)`."
        )
    return gradient


def _guard_backward(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        if output.requires_grad:
            output.register_hook(_refuse_plain_backward)
    elif isinstance(output, Mapping):
        for value in output.values():
            _guard_backward(value)
    elif isinstance(output, list | tuple):
        for value in output:
            _guard_backward(value)
    return output


def _guarded(forward_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _guard_backward(forward_module(*args, **kwargs))


class FabricModule(nn.Module):
    """A module as `Fabric.setup` returns it: forward runs in the chosen precision, through the strategy's wrapper.

    All attributes of the user's module are there; methods that the user marks, and `training_step` and its kin, run
    through the wrapper as forward does.
    """

    _forward_module: nn.Module

    def __init__(self, forward_module: nn.Module, strategy: Strategy, original_module: nn.Module | None = None) -> None:
        """Wrap.

        Args:
            forward_module: What is called: the user's module, or the strategy's wrapper around it.
            strategy: Knows the precision and the device.
            original_module: The user's module, where attributes and the state are.
        """
        super().__init__()
        self._forward_module = forward_module
        attributes = self.__dict__
        # Not as a second child: parameters and their names must be found once.
        attributes["_original_module"] = forward_module if original_module is None else original_module
        attributes["_strategy"] = strategy
        attributes["_forward_methods"] = {name for name in STEP_METHODS if hasattr(self.module, name)}
        inner = unwrap_compiled(forward_module)
        attributes["_is_hooked"] = isinstance(strategy, HooksForward) and strategy.hooks_forward(inner)
        attributes["_is_wrapped"] = inner is not self.module or self._is_hooked
        attributes["_guards_backward"] = overrides_backward(strategy)
        attributes["_is_plain"] = strategy.precision.is_plain and not self._guards_backward
        if self._is_plain or strategy.precision.leaves_forward:
            guarded = partial(_guarded, forward_module)
            attributes["forward"] = guarded if self._guards_backward else forward_module.__call__

    @property
    def module(self) -> nn.Module:
        """The user's module."""
        module: nn.Module = self.__dict__["_original_module"]
        return module

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the strategy's device if there are none."""
        parameter = next(self.parameters(), None)
        return self._strategy.root_device if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first parameter; torch's default if there are none."""
        parameter = next(self.parameters(), None)
        return torch.get_default_dtype() if parameter is None else parameter.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's forward gives for the converted input, converted back."""
        return self._in_precision(self._forward_module, *args, **kwargs)

    def _in_precision(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        precision = self._strategy.precision
        args = precision.convert_input(args)
        kwargs = precision.convert_input(kwargs)
        with precision.forward_context():
            output = function(*args, **kwargs)
        output = precision.convert_output(output)
        return _guard_backward(output) if self._guards_backward else output

    def _redirected(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._is_wrapped:
            function: Callable[..., Any] = partial(call_through_forward, self._forward_module, self.module, method)
        else:
            function = method
        return function(*args, **kwargs) if self._is_plain else self._in_precision(function, *args, **kwargs)

    def mark_forward_method(self, method: Callable[..., Any] | str) -> None:
        """From now on, calls of `method` run as forward does: in the precision, through the strategy's wrapper.

        Raises:
            ArgumentTypeError: `method` is neither a name nor a method.
            UnknownMethodError: The module has no such method.
        """
        if not isinstance(method, str) and not callable(method):
            raise ArgumentTypeError(
                f"mark_forward_method({method!r}) got a {type(method).__name__}."
                " It looks up a method of the module. Pass the method or its name."
            )
        name = method if isinstance(method, str) else getattr(method, "__name__", repr(method))
        if not callable(getattr(self.module, name, None)):
            raise UnknownMethodError(
                f"mark_forward_method({name!r}) names no method of {class_name(self.module)}."
                " Only methods of the module that was set up can be marked."
                " Check the spelling, or define the method on the module's class."
            )
        self._forward_methods.add(name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of the user's module, without any trace of a wrapper in its keys."""
        return plain_state(self.module, *args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load into the user's module."""
        return load_plain_state(self.module, state_dict, strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__
        if name in attributes.get("_modules", ()):
            return attributes["_modules"][name]
        original = attributes.get("_original_module")
        if original is None:  # while being built or copied
            raise AttributeError(name)
        value = getattr(original, name)
        if name in self._forward_methods:
            return value if self._is_plain and not self._is_wrapped else partial(self._redirected, value)
        if not (self._is_plain and not self._is_wrapped) and inspect.ismethod(value) and value.__self__ is original:
            return partial(self._watched, name, value)
        return value

    def _watched(self, name: str, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        precision = None if self._is_wrapped else self._strategy.precision.precision
        with refusing_forward(self.module, name, precision, is_hooked=self._is_hooked):
            return method(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # Ours are set before there is an original module; afterwards the user means the module that they wrote.
        attributes = self.__dict__
        if "_original_module" not in attributes or name in attributes or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(attributes["_original_module"], name, value)


@contextmanager
def refusing_forward(
    module: nn.Module, method_name: str, precision: str | None = None, *, is_hooked: bool = False
) -> Iterator[None]:
    """Inside, no part of `module` may run its forward while gradients are recorded.

    Args:
        module: What is watched.
        method_name: Quoted in the error.
        precision: What would be left out; None: the wrapper of the strategy.
        is_hooked: The strategy works in hooks of the module itself: what its own forward runs is right, and without
            gradients, other forwards are as wrong as with them.

    Raises:
        ForwardBypassedError: At the first such forward; it names `method_name`.
    """
    num_inside: list[None] = []

    def refuse(*_: Any) -> None:
        if num_inside or not (torch.is_grad_enabled() or is_hooked):
            return  # Without gradients there is nothing that the wrapper would have to synchronise.
        what, harm = (
            ("the strategy that wraps the module", "and the gradients of the processes would drift apart")
            if precision is None
            else (f"the precision {precision!r}", "and would compute in another one")
        )
        raise ForwardBypassedError(
            f"`{method_name}` of {class_name(module)} ran a forward past {what}."
            f" That part would not see this call, {harm}."
            f" Call `mark_forward_method({method_name!r})` on the module that setup() returned, or call the module."
        )

    handles = [part.register_forward_pre_hook(refuse) for part in module.modules() if part is not module]
    if is_hooked:
        handles.append(module.register_forward_pre_hook(lambda *_: num_inside.append(None), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: num_inside.clear(), always_call=True))
    else:
        handles.append(module.register_forward_pre_hook(refuse))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class FabricOptimizer:
    """An optimizer as `Fabric.setup` returns it: `step` goes through the strategy and its precision.

    It passes for the optimizer's own class, so that torch's LR schedulers accept it.
    """

    _OWN = frozenset({"step", "zero_grad"})

    def __init__(self, optimizer: Optimizer, strategy: Strategy, callbacks: Iterable[Any] | None = None) -> None:
        """Wrap; `callbacks` with a method `on_after_optimizer_step` hear of each step."""
        attributes = self.__dict__
        attributes["_optimizer"] = optimizer
        attributes["_strategy"] = strategy
        hooks = (getattr(callback, "on_after_optimizer_step", None) for callback in callbacks or ())
        attributes["_listeners"] = tuple(hook for hook in hooks if callable(hook))
        attributes["zero_grad"] = optimizer.zero_grad
        attributes["_is_plain"] = (
            type(strategy).optimizer_step is Strategy.optimizer_step
            and strategy.precision.is_plain
            and not self._listeners
        )

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped torch optimizer."""
        optimizer: Optimizer = self._optimizer
        return optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step; what the torch optimizer returns (the closure's loss, if there is one).

        The step of the torch optimizer is looked up each time: LR schedulers replace it on the instance.
        """
        if self._is_plain:
            return self._optimizer.step() if closure is None else self._optimizer.step(closure)
        kwargs = {} if closure is None else {"closure": closure}
        output = self._strategy.optimizer_step(self._optimizer, **kwargs)
        for hook in self._listeners:
            hook(strategy=self._strategy, optimizer=self._optimizer)
        return output

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, gathered by the strategy where it is sharded."""
        state: dict[str, Any] = self._strategy.get_optimizer_state(self._optimizer)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the wrapped optimizer what `state_dict` gave."""
        self._strategy.load_optimizer_state(self._optimizer, state_dict)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The optimizer's class: isinstance() asks for it after the real type."""
        optimizer = self.__dict__.get("_optimizer")
        return FabricOptimizer if optimizer is None else type(optimizer)

    def __getattr__(self, name: str) -> Any:
        optimizer = self.__dict__.get("_optimizer")
        if optimizer is None:  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A scheduler counts steps by a new `step` on the object that it was given, which is this one.
        if name in self._OWN:
            self.__dict__[name] = value
        else:
            setattr(self._optimizer, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_optimizer, (self._optimizer, self._strategy, self._listeners)

    def __repr__(self) -> str:
        return repr(self._optimizer)


def _rebuild_optimizer(optimizer: Optimizer, strategy: Strategy, listeners: tuple[Any, ...]) -> FabricOptimizer:
    rebuilt = FabricOptimizer(optimizer, strategy)
    rebuilt.__dict__["_listeners"] = listeners
    rebuilt.__dict__["_is_plain"] = rebuilt.__dict__["_is_plain"] and not listeners
    return rebuilt


class FabricDataLoader:
    """A loader as `Fabric.setup_dataloaders` returns it: sharded over the processes, its batches on the device.

    All attributes of the view and of the user's loader are there, `set_epoch` and `state_dict` among them.
    """

    def __init__(
        self,
        dataloader: Iterable[Any],
        device: torch.device | None = None,
        place: Callable[[Any], Any] | None = None,
    ) -> None:
        """Wrap; with `device`, each batch is moved there: by `place`, if a strategy has a way of its own."""
        self._view = dataloader if isinstance(dataloader, ResumableLoader) else ResumableLoader(dataloader)
        self._device = device
        # Host memory is where loaders put their batches: on CPU there is nothing to move.
        self._moves = device is not None and (place is not None or device.type != "cpu")
        self._place = partial(move_to_device, device=device or "cpu") if place is None else place

    @property
    def device(self) -> torch.device | None:
        """Where batches are moved to; None if they stay where they are."""
        return self._device

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._view)
        if self._device is None or not self._moves:
            return batches
        return map(self._place, batches)

    def __getattr__(self, name: str) -> Any:
        view = self.__dict__.get("_view")
        if view is None:  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(view, name)


def is_wrapped(obj: object) -> bool:
    """Has Fabric set `obj` up: is it a module, an optimizer or a loader that Fabric returned?"""
    return isinstance(unwrap_compiled(obj), FabricModule | FabricOptimizer | FabricDataLoader)


def check_wrappable(caller: str, kind: type, *objects: object) -> None:
    """Refuse what `fabric.<caller>` cannot set up: other than a `kind` (module, optimizer, loader), or set up before.

    Raises:
        ConfigurationError: An object was set up before, or is an optimizer of parameters without data.
        ArgumentTypeError: An object is of another kind.
    """
    for obj in objects:
        if is_wrapped(obj):
            raise ConfigurationError(
                f"fabric.{caller}(...) got a {type(obj).__name__} that setup has returned before."
                " It would be converted, sharded and stepped twice. Pass the object that you built yourself."
            )
        if not isinstance(obj, kind):
            raise ArgumentTypeError(
                f"fabric.{caller}({_shown(obj)}) got a {type(obj).__name__} in the place of a {_KINDS[kind]}."
                f" Only a {_KINDS[kind]} can be set up there. Check the order of the arguments, or use it without"
                " setup: `fabric.to_device` moves anything."
            )
        groups = obj.param_groups if isinstance(obj, Optimizer) else ()
        if any(_lacks_data(parameter) for group in groups for parameter in group["params"]):
            raise ConfigurationError(
                f"fabric.{caller}(...) got a {type(obj).__name__} of parameters on the meta device."
                " There are no numbers to train. Give the module its data with `module.to_empty(device=...)` before you"
                " build the optimizer."
            )


def _lacks_data(parameter: Any) -> bool:
    return parameter.is_meta and not getattr(parameter, "is_in_another_stage", False)


def _shown(obj: object) -> str:
    text = repr(obj)
    return text if len(text) < 60 and "\n" not in text else f"{type(obj).__name__}(...)"


def unwrap(obj: Any) -> Any:
    """What the strategy works on: the torch optimizer or the strategy's module inside a wrapper; else the object."""
    obj = unwrap_compiled(obj)
    if isinstance(obj, FabricModule):
        return unwrap_compiled(obj._forward_module)
    if isinstance(obj, FabricOptimizer):
        return obj.optimizer
    return obj


def compiled_like(compiled: Any, module: nn.Module) -> Any:
    """`module`, compiled with the settings that `compiled` was compiled with."""
    return compiled.dynamo_ctx(module)
