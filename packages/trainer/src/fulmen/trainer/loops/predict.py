"""Predict: every batch once, and the answers kept or handed to writers."""

from typing import Any

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.loops.base import limited, load, nothing_to_run
from fulmen.trainer.loops.passes import evaluating, run_batches, without_gradients
from fulmen.trainer.progress.counts import EvaluationCounts
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Stage

Predictions = list[Any] | list[list[Any]] | None


class PredictLoop:
    """One pass of `predict_step` over the loaders.

    Args:
        run: All that it may touch.
        return_predictions: Keep the answers? Without, memory does not grow with the data.
    """

    def __init__(self, run: RunContext, *, return_predictions: bool = True) -> None:
        self.run_context = run
        self.counts = EvaluationCounts()
        self.max_batches: list[int | float] = []
        self.return_predictions = return_predictions
        self.predictions: list[list[Any]] = []

    def setup_data(self) -> None:
        """Get the loaders."""
        prepared = load(self.run_context, Stage.PREDICT)
        limit = self.run_context.settings.limit_predict_batches
        self.max_batches = limited(prepared.lengths, limit, Stage.PREDICT)

    def run(self) -> Predictions:
        """Make one pass. Returns the answers: a list of batches, or one such list for each of several loaders."""
        run = self.run_context
        stage = Stage.PREDICT
        inference = run.settings.inference_mode and run.strategy.allows_inference_mode
        with run.state.inside(stage), without_gradients(inference=inference):
            self.setup_data()
            self.predictions = [[] for _ in self.max_batches]
            if nothing_to_run(run, self.max_batches):
                return [] if self.return_predictions else None
            self.counts.begin_pass(keep_total=False)
            with run.metrics.inside(stage, len(self.max_batches)), evaluating(run, "predict"):
                run.hooks.on_predict_start()
                run.hooks.on_predict_epoch_start()
                several = len(self.max_batches) > 1
                limits = self.max_batches if several else self.max_batches[0]
                # Only now: a hook may have had the loaders made anew.
                fetcher = Fetcher(run.data.prepared[stage].loader, limits, indexed=True)
                run_batches(run, "predict", self.counts, fetcher, num_loaders=len(self.max_batches), after=self._keep)
                run.hooks.on_predict_epoch_end()
                run.hooks.on_predict_end()
        if not self.return_predictions:
            return None
        return self.predictions if len(self.predictions) > 1 else self.predictions[0]

    def _keep(self, answer: Any, loader: int) -> None:
        if answer is None:
            name = type(self.run_context.strategy.lightning_module).__name__
            warn_once(f"{name}.predict_step() returned None. There is nothing to keep. Return the predictions.")
        if self.return_predictions:
            self.predictions[loader].append(answer)
