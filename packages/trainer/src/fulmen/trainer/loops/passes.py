"""One pass over loaders without training: what validate, test and predict share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch

from fulmen.fabric.class_names import class_name
from fulmen.trainer.data.batch import make_placer
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.hooks.dispatch import HookFunction, listened, nobody
from fulmen.trainer.loops.in_step import InStep
from fulmen.trainer.optimization.arguments import (
    check_evaluation_step,
    check_takes_loader,
    loader_arguments,
    takes_iterator,
    warn_self_fetching,
)
from fulmen.trainer.progress.counts import EvaluationCounts
from fulmen.trainer.run.context import RunContext

# Under which name a profiler hears of the wait for a batch.
_NEXT = {
    "validation": "[_EvaluationLoop].val_next",
    "test": "[_EvaluationLoop].test_next",
    "predict": "[_PredictionLoop].predict_next",
}


def without_gradients(*, inference: bool) -> AbstractContextManager[Any]:
    """No gradients inside; `inference` also forgoes version counters, so nothing made inside can be trained on."""
    return torch.inference_mode() if inference else torch.no_grad()


@contextmanager
def evaluating(run: RunContext, word: str) -> Iterator[None]:
    """The module is in eval mode inside; afterwards each of its parts is in the mode it was in, also on errors.

    Args:
        run: Its module.
        word: "validation", "test" or "predict": the middle of the hooks' names.
    """
    module = run.strategy.lightning_module
    assert module is not None
    modes = [(part, part.training) for part in module.modules()]
    to_eval = listened(getattr(run.hooks, f"on_{word}_model_eval"))
    to_train = listened(getattr(run.hooks, f"on_{word}_model_train", nobody))
    is_done = False
    try:
        if to_eval is not None:
            to_eval()
        else:
            module.eval()
        yield
        if to_train is not None:
            to_train()
            is_done = True
    finally:
        if not is_done:
            for part, training in modes:
                part.training = training


def run_batches(
    run: RunContext,
    word: str,
    counts: EvaluationCounts,
    fetcher: Fetcher,
    *,
    num_loaders: int,
    after: Callable[[Any, int], None],
) -> None:
    """Call the step of `word` for every batch, with its hooks.

    Args:
        run: All that it may touch.
        word: "validation", "test" or "predict".
        counts: Moved along.
        fetcher: Gives (batch, batch_idx, dataloader_idx).
        num_loaders: If there are several, steps and hooks hear the loader's index.
        after: Hears the step's answer and the loader's index when a batch is done.

    Raises:
        StepSignatureError: The step or a hook cannot hear what it must.
    """
    hooks, signals = run.hooks, run.signals
    module = run.strategy.lightning_module
    assert module is not None
    name, several = f"{word}_step", num_loaders > 1
    method = getattr(module, name)
    check_evaluation_step(method, module=class_name(module), name=name, num_loaders=num_loaders)
    for moment, before in (("start", 2), ("end", 3)) if several else ():
        for label, hook in hooks.listeners(f"on_{word}_batch_{moment}"):
            check_takes_loader(hook, label.partition("]")[2], before=before)
    step = loader_arguments(method, hooks.step(name, run.strategy.step_function(name)), several=several)
    fetches = takes_iterator(method)
    run_all = _run_self_fetching if fetches else _run_given
    signals.begin_next()
    in_step = InStep(run, fetcher.length) if run.strategy.evaluates_in_step and not fetches else None
    if in_step is not None:
        step = in_step.counted(step)
    with hooks.inside(name), closing(fetcher):
        run_all(run, word, step, counts, fetcher, several, after)
        if in_step is not None:
            in_step.catch_up(module)
    signals.begin_next()


def _run_given(
    run: RunContext,
    word: str,
    step: HookFunction,
    counts: EvaluationCounts,
    fetcher: Fetcher,
    several: bool,
    after: Callable[[Any, int], None],
) -> None:
    hooks, metrics, signals, cursor = run.hooks, run.metrics, run.signals, counts.batch
    module = run.strategy.lightning_module
    assert module is not None
    place = make_placer(module, run.data.datamodule, run.strategy, hooks.as_hook)
    place = place and hooks.step("batch_to_device", place)
    on_batch_start = listened(getattr(hooks, f"on_{word}_batch_start"))
    on_batch_end = listened(getattr(hooks, f"on_{word}_batch_end"))
    begin, finish = cursor.begin, cursor.finish
    where: tuple[int, ...]
    for batch, index, loader in hooks.timed_items(_NEXT[word], fetcher):
        counts.is_last_batch = fetcher.is_last
        if place is not None:
            batch = place(batch, loader)
        metrics.begin_batch(batch, index, loader)
        where = (index, loader) if several else (index,)
        if on_batch_start is None:
            begin()
        else:
            cursor.ready()
            on_batch_start(batch, *where)
            cursor.started()
        answer = step(batch, *where)
        if on_batch_end is None:
            finish()
        else:
            cursor.processed()
            on_batch_end(answer, batch, *where)
            cursor.completed()
        after(answer, loader)
        if signals.caught:
            signals.stop_if_due(signals.place)


def _run_self_fetching(
    run: RunContext,
    word: str,
    step: HookFunction,
    counts: EvaluationCounts,
    fetcher: Fetcher,
    several: bool,
    after: Callable[[Any, int], None],
) -> None:
    """Of a step that takes as many batches as it likes; hooks hear of the last one taken."""
    hooks, cursor, name = run.hooks, counts.batch, type(run.strategy.lightning_module).__name__
    warn_self_fetching(f"{name}.{word}_step")
    on_batch_start = getattr(hooks, f"on_{word}_batch_start")
    on_batch_end = getattr(hooks, f"on_{word}_batch_end")
    for batches in fetcher.items(run.metrics.begin_batch):
        first = fetcher.count
        cursor.ready()
        on_batch_start(batches.batch, *batches.where(several))
        cursor.started()
        try:
            answer = step(batches)
        except StopIteration:  # it asked for more batches than were left
            cursor.abandon()
            return
        batches.check_taken(first, f"{name}.{word}_step")
        counts.is_last_batch = fetcher.is_last
        for _ in range(first, fetcher.count - 1):
            cursor.pass_over()
        cursor.processed()
        on_batch_end(answer, batches.batch, *batches.where(several))
        cursor.completed()
        after(answer, batches.loader)
        if run.signals.caught:
            run.signals.stop_if_due(run.signals.place)
