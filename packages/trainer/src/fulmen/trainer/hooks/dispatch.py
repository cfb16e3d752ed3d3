"""`hooks.on_train_batch_start(...)`: each hook is one attribute, compiled to those that really override it.

Compiled anew at the start of a run and of its loops, never per step: a hook that nobody overrides is an empty function.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fulmen.fabric.class_names import class_name
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.hooks.table import HOOKS, Listener
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.profilers.base import PassThroughProfiler, Profiler
from fulmen.trainer.profilers.harmless import Harmless
from fulmen.trainer.signature import is_overridden

HookFunction = Callable[..., Any]
ItemT = TypeVar("ItemT")
_END: Any = object()


def nobody(*_: Any, **__: Any) -> None:
    """The compiled form of a hook that nobody overrides."""


def listened(hook: HookFunction) -> HookFunction | None:
    """`hook` if somebody overrides it, else None: a loop can leave the call out."""
    return None if hook is nobody else hook


class Hooks:
    """Calls every hook of the table; each is an attribute of this object under its own name.

    Args:
        metrics: Told which hook runs, so that `self.log` knows what is allowed.
        profiler: Times every call unless it is the pass-through one; no error of it ends a call.
        trainer: Handed to callbacks as their first argument; opaque here.
        callbacks: In the order in which they are called.
    """

    def __init__(
        self, metrics: MetricsBoard, profiler: Profiler, trainer: object, callbacks: Iterable[Callback] = ()
    ) -> None:
        self.callbacks = list(callbacks)
        self._metrics = metrics
        self.profiling = Harmless(profiler)
        self.are_timed = not isinstance(profiler, PassThroughProfiler)  # does a profiler listen?
        self.trainer = trainer
        self._module: LightningModule | None = None
        self._datamodule: LightningDataModule | None = None
        self._strategy: object | None = None
        self.compile()

    def attach(self, module: LightningModule, datamodule: LightningDataModule | None, strategy: object | None) -> None:
        """Take these as the listeners of the run that begins."""
        self._module, self._datamodule, self._strategy = module, datamodule, strategy
        self.compile()

    def compile(self) -> None:
        """Work out who hears what; call it when callbacks or their methods may have changed."""
        if self._module is not None:
            for callback in self.callbacks:
                callback.log_with(self._module)
        for name, hook in HOOKS.items():
            if hook.listeners:
                setattr(self, name, self._compiled(name))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled hooks are closures, which cannot be sent to another process.
        return {name: value for name, value in self.__dict__.items() if name not in HOOKS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.compile()

    def __getattr__(self, name: str) -> HookFunction:
        # Only reached for names that `compile` did not set: it tells the type checker that hooks are attributes.
        raise AttributeError(f"There is no hook named {name!r}. The table of hooks lists all there are.")

    def listeners(self, name: str) -> list[tuple[str, HookFunction]]:
        """Those that override the hook, in order, each with the label under which it is profiled."""
        found: list[tuple[str, HookFunction]] = []
        for group in HOOKS[name].listeners:
            found += self._of_group(group, name)
        return found

    def _of_group(self, group: Listener, name: str) -> Iterator[tuple[str, HookFunction]]:
        if group in (Listener.CALLBACKS, Listener.MONITORS):
            apart = Listener.MONITORS in HOOKS[name].listeners
            for callback in self.callbacks:
                if apart and callback.monitors_metrics != (group is Listener.MONITORS):
                    continue
                if is_overridden(name, callback, Callback):
                    bound = partial(getattr(callback, name), self.trainer, self._module)
                    yield f"[Callback]{callback.state_key}.{name}", bound
        elif group is Listener.MODULE and self._module is not None:
            if is_overridden(name, self._module, LightningModule):
                yield f"[LightningModule]{class_name(self._module)}.{name}", getattr(self._module, name)
        elif group is Listener.DATAMODULE and self._datamodule is not None:
            if is_overridden(name, self._datamodule, LightningDataModule):
                yield f"[LightningDataModule]{type(self._datamodule).__name__}.{name}", getattr(self._datamodule, name)
        elif group is Listener.STRATEGY and self._strategy is not None and is_overridden(name, self._strategy):
            yield f"[Strategy]{type(self._strategy).__name__}.{name}", getattr(self._strategy, name)

    def _compiled(self, name: str) -> HookFunction:
        calls = [self.timed(label, function) for label, function in self.listeners(name)]
        if not calls:
            return nobody
        if len(calls) == 1:
            return self.as_hook(name, calls[0])

        def all_of_them(*args: Any, **kwargs: Any) -> Any:
            answer = None
            for call in calls:
                said = call(*args, **kwargs)
                answer = said if said is not None else answer
            return answer

        return self.as_hook(name, all_of_them)

    def step(self, name: str, function: HookFunction) -> HookFunction:
        """A step that a loop got from the strategy; the loop is inside the hook of that name while batches run."""
        return self.timed(f"[Strategy]{type(self._strategy).__name__}.{name}", function)

    def module_method(self, name: str) -> HookFunction:
        """A method of the module that every module has (`optimizer_step`, ...), as the hook of that name."""
        label = f"[LightningModule]{class_name(self._module)}.{name}"
        return self.as_hook(name, self.timed(label, getattr(self._module, name)))

    def calls(self, group: Listener, name: str) -> list[HookFunction]:
        """The hook's listeners of one group, ready to be called one by one."""
        return [self.as_hook(name, self.timed(label, found)) for label, found in self._of_group(group, name)]

    def fire_group(self, group: Listener, name: str, *args: Any, **kwargs: Any) -> None:
        """Call the hook for one group of its listeners only, where something else happens between two groups."""
        for call in self.calls(group, name):
            call(*args, **kwargs)

    def fire_owner(self, owner: object, name: str) -> None:
        """Call the hook for one listener only: the module or the datamodule."""
        group = Listener.MODULE if owner is self._module else Listener.DATAMODULE
        self.fire_group(group, name)

    def timed_items(self, label: str, items: Iterable[ItemT]) -> Iterable[ItemT]:
        """`items`; where a profiler listens, the wait for each of them has the label."""
        return _one_by_one(items, self.timed(label, next)) if self.are_timed else items

    def timed(self, label: str, function: HookFunction) -> HookFunction:
        """`function`; where a profiler listens, each call has the label."""
        return self.profiling.watch(label, function) if self.are_timed else function

    def as_hook(self, name: str, function: HookFunction) -> HookFunction:
        """`function`, with the log rule of hook `name` while it runs."""
        metrics, rule = self._metrics, HOOKS[name].log

        def call(*args: Any, **kwargs: Any) -> Any:
            # No `finally`: after an exception the board is reset with the run.
            outer_hook, outer_rule = metrics.hook, metrics.rule
            metrics.hook, metrics.rule = name, rule
            answer = function(*args, **kwargs)
            metrics.hook, metrics.rule = outer_hook, outer_rule
            return answer

        return call

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Run user code that is no listener (a loader method, say) under the log rule of hook `name`."""
        outer_hook, outer_rule = self._metrics.hook, self._metrics.rule
        self._metrics.hook, self._metrics.rule = name, HOOKS[name].log
        try:
            yield
        finally:
            self._metrics.hook, self._metrics.rule = outer_hook, outer_rule


def _one_by_one(items: Iterable[ItemT], fetch: Callable[..., Any]) -> Iterator[ItemT]:
    iterator = iter(items)
    while (item := fetch(iterator, _END)) is not _END:
        yield item
