"""One pass over loaders without training: what validate, test and predict share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch

from fulmen.trainer.data.batch import make_placer
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.hooks.dispatch import HookFunction, listened, nobody
from fulmen.trainer.progress.counts import EvaluationCounts
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.signature import is_param_in_hook_signature


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
    if to_eval is not None:
        to_eval()
    else:
        module.eval()
    users_turn = False
    try:
        yield
        users_turn = to_train is not None
    finally:
        if users_turn and to_train is not None:
            to_train()
        else:
            for part, training in modes:
                part.training = training


def run_batches(
    run: RunContext,
    word: str,
    counts: EvaluationCounts,
    fetcher: Fetcher,
    *,
    several: bool,
    after: Callable[[Any, int], None],
) -> None:
    """Call the step of `word` for every batch, with its hooks.

    Args:
        run: All that it may touch.
        word: "validation", "test" or "predict".
        counts: Moved along.
        fetcher: Gives (batch, batch_idx, dataloader_idx).
        several: Are there several loaders? Then steps and hooks hear the loader's index.
        after: Hears the step's answer and the loader's index when a batch is done.
    """
    hooks, metrics, signals, cursor = run.hooks, run.metrics, run.signals, counts.batch
    module = run.strategy.lightning_module
    assert module is not None
    name = f"{word}_step"
    step = _step_call(getattr(module, name), hooks.step(name, run.strategy.step_function(name)))
    place = make_placer(module, run.data.datamodule, run.strategy, run.hooks.as_hook)
    on_batch_start = listened(getattr(hooks, f"on_{word}_batch_start"))
    on_batch_end = listened(getattr(hooks, f"on_{word}_batch_end"))
    with hooks.inside(name), closing(fetcher):
        for batch, index, loader in fetcher:
            counts.is_last_batch = fetcher.is_last
            cursor.ready()
            placed = batch if place is None else place(batch, loader)
            metrics.begin_batch(placed, index, loader)
            where = (index, loader) if several else (index,)
            if on_batch_start is not None:
                on_batch_start(placed, *where)
            cursor.started()
            answer = step(placed, *where)
            cursor.processed()
            if on_batch_end is not None:
                on_batch_end(answer, placed, *where)
            cursor.completed()
            after(answer, loader)
            if signals.caught:
                signals.raise_if_caught()


def _step_call(method: HookFunction, call: HookFunction) -> HookFunction:
    """`call` as a function of (batch, batch_idx[, dataloader_idx]), though `method` may take fewer."""
    if is_param_in_hook_signature(method, "dataloader_idx", min_args=3):
        return call
    if is_param_in_hook_signature(method, "batch_idx", min_args=2):
        return lambda batch, index, *_: call(batch, index)
    return lambda batch, *_: call(batch)
