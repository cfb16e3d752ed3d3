"""A short trial run that leaves no trace: the sanity check, and what a tuner tries.

A trial runs on a copy of the Trainer, with a context of its own: copied settings, fresh counts, no callbacks but its
own, no loggers. So nothing of the Trainer is saved to attributes and put back by hand: it is not touched. Module,
datamodule and loaders are the user's own objects; they are put back as they were.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fulmen.fabric.seeding import isolate_rng
from fulmen.fabric.strategies.sharded_tensors import split_again
from fulmen.trainer._typing import Trainer
from fulmen.trainer.checkpoint.snapshot import Snapshot
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.hooks.dispatch import Hooks
from fulmen.trainer.loggers.base import DummyLogger
from fulmen.trainer.loops.evaluate import EvaluateLoop
from fulmen.trainer.loops.fit import FitLoop, validation_is_possible
from fulmen.trainer.loops.predict import PredictLoop
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.optimization.configure import set_up_optimizers
from fulmen.trainer.profilers.base import PassThroughProfiler
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.run.signals import Signals
from fulmen.trainer.run.state import RunState
from fulmen.trainer.stages import EntryPoint, Stage, Status
from fulmen.trainer.strategies.alone import alone as alone_of


def sanity_check(run: RunContext) -> None:
    """Run a few validation batches before training, so that a mistake there shows now and not in an hour."""
    if not run.settings.num_sanity_val_steps or not validation_is_possible(run):
        return
    loop = EvaluateLoop(run, Stage.SANITY_CHECK)
    with run.state.inside(Stage.SANITY_CHECK), isolate_rng():
        run.hooks.on_sanity_check_start()
        loop.run()
        run.hooks.on_sanity_check_end()


def trial_of(trainer: Trainer, *, callbacks: Iterable[Callback] = (), alone: bool = False, **changes: Any) -> Trainer:
    """A copy of `trainer` for a trial, at the beginning of everything; what runs on it does not change `trainer`.

    Devices and processes are shared. Where the trainer has loggers, the copy has some that do nothing.

    Args:
        trainer: The user's.
        callbacks: The trial's own.
        alone: See `rehearsing`.
        changes: Settings that differ in the trial, by the names of the flags.
    """
    run = trainer.context
    settings = copy(run.settings)
    for name, value in changes.items():
        setattr(settings, name, value)
    metrics = MetricsBoard([DummyLogger() for _ in run.metrics.loggers])
    metrics.muted = run.metrics.muted
    profiler = PassThroughProfiler()
    trial = copy(trainer)
    equip(
        trial,
        RunContext(
            settings=settings,
            state=RunState(),
            # The copy gets its own module and optimizers; what it has of fabric it shares.
            strategy=alone_of(run.strategy) if alone else copy(run.strategy),
            hooks=Hooks(metrics, profiler, trial, callbacks),
            # One level deep: sources stay, what is prepared from them is the trial's own.
            data=replace(run.data, sources=dict(run.data.sources), prepared={}),
            metrics=metrics,
            profiler=profiler,
            # Inside of a run it is that run that listens. Who is alone is not as far as the others: for them a signal
            # waits until the trial is over.
            signals=run.signals if run.state.status == Status.RUNNING and not alone else Signals(),
        ),
    )
    return trial


def equip(trainer: Trainer, context: RunContext) -> None:
    """Give a Trainer this context, and new loops that run on it."""
    trainer.context = context
    trainer.fit_loop = FitLoop(context)
    trainer.validate_loop = EvaluateLoop(context, Stage.VALIDATE, fit=trainer.fit_loop.counts)
    trainer.test_loop = EvaluateLoop(context, Stage.TEST, fit=trainer.fit_loop.counts)
    trainer.predict_loop = PredictLoop(context)


@contextmanager
def leaving_no_trace(run: RunContext, module: nn.Module) -> Iterator[None]:
    """Afterwards, on errors too, module, datamodule, loaders and random numbers are as before.

    Args:
        run: Its data says which datamodule and which loaders.
        module: The user's module.
    """
    given = [source.value for source in run.data.sources.values()]
    split_again(module)  # what was gathered for one forward lies in memory that the next one takes
    kept = Snapshot(module, run.data.datamodule, run.strategy.optimizers, run.strategy.precision_plugin, given)
    with isolate_rng():
        try:
            yield
        finally:
            split_again(module)
            kept.put_back()


def _nothing() -> None:
    """What happens before a trial unless somebody says otherwise."""


@contextmanager
def rehearsing(
    trainer: Trainer,
    *,
    callbacks: Iterable[Callback] = (),
    first: Callable[[], object] = _nothing,
    alone: bool = False,
    **changes: Any,
) -> Iterator[Trainer]:
    """In the middle of a run: a Trainer for a trial on the module as it is set up, to be used up to running its loops.

    In a fit the trial has optimizers and schedulers of its own, made anew by the module.

    Args:
        trainer: The one that runs.
        callbacks, changes: As for `trial_of`.
        first: Called before the module is asked for optimizers and loaders; may change what they are made from.
        alone: Does every process make the trial for itself? Then it may end in one and go on in the others, and none
            waits for it. Signals are heard when it is over.
    """
    run = trainer.context
    strategy, fn = run.strategy, run.state.fn
    module = strategy.lightning_module
    assert module is not None, "a rehearsal needs a run around it"
    assert fn is not None
    # A trial may be started from a hook of validation, and train.
    with leaving_no_trace(run, module), torch.inference_mode(mode=False), torch.enable_grad():
        trial = trial_of(trainer, callbacks=callbacks, alone=alone, **changes)
        here = trial.context
        here.state.fn, here.state.status = fn, Status.RUNNING
        here.hooks.attach(module, here.data.datamodule, here.strategy)
        reducer = None if alone else strategy
        here.metrics.attach(reducer, strategy.root_device, is_global_zero=strategy.is_global_zero, module=module)
        module.attach(trial, here.metrics)
        if here.data.datamodule is not None:
            here.data.datamodule.trainer = trial
        first()
        if fn is EntryPoint.FIT:
            set_up_optimizers(here)
        yield trial
