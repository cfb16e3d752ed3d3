"""Predict: every batch once, and the answers kept or handed to writers."""

from typing import Any

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.core.writes_predictions import WritesPredictions
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.loops.base import limited, load, nothing_to_run
from fulmen.trainer.loops.noted_indices import Indices, NotedIndices
from fulmen.trainer.loops.passes import evaluating, run_batches, without_gradients
from fulmen.trainer.optimization.arguments import takes_iterator
from fulmen.trainer.progress.counts import EvaluationCounts
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Stage

Predictions = list[Any] | list[list[Any]] | None


class PredictLoop:
    """One pass of `predict_step` over the loaders.

    Args:
        run: All that it may touch.
        return_predictions: Keep the answers? Without, memory does not grow with the data, unless a callback writes all
            answers at the end.
    """

    def __init__(self, run: RunContext, *, return_predictions: bool = True) -> None:
        self.run_context = run
        self.counts = EvaluationCounts()
        self.max_batches: list[int | float] = []
        self.return_predictions = return_predictions
        self.predictions: list[list[Any]] = []
        self.epoch_batch_indices: list[list[Indices | None]] = []
        """For each loader the indices of the samples of each batch; kept if a callback writes at the end."""
        self._noted: NotedIndices | None = None
        self._keeps_answers = True
        self._keeps_indices = False

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
            self.epoch_batch_indices = [[] for _ in self.max_batches]
            if nothing_to_run(run, self.max_batches):
                return [] if self.return_predictions else None
            self.counts.begin_pass(keep_total=False)
            with run.metrics.inside(stage, len(self.max_batches)), evaluating(run, "predict"):
                run.hooks.on_predict_start()
                run.hooks.on_predict_epoch_start()
                several = len(self.max_batches) > 1
                limits = self.max_batches if several else self.max_batches[0]
                # Only now: a hook may have had the loaders made anew.
                self._listen_to_writers()
                fetcher = Fetcher(run.data.prepared[stage].loader, limits, indexed=True)
                try:
                    run_batches(
                        run, "predict", self.counts, fetcher, num_loaders=len(self.max_batches), after=self._keep
                    )
                    run.hooks.on_predict_epoch_end()
                finally:
                    self._forget_indices()
                run.hooks.on_predict_end()
        answers = self.all_predictions
        if not self.return_predictions:
            self.predictions = [[] for _ in self.max_batches]  # what only a writer wanted
            return None
        return answers

    @property
    def all_predictions(self) -> list[Any]:
        """The answers that are kept so far: a list of batches, or one such list for each of several loaders."""
        return self.predictions[0] if len(self.predictions) == 1 else self.predictions

    def batch_indices(self, loader: int = 0) -> Indices | None:
        """The indices, in the dataset, of the samples of the batch that runs.

        None where nobody knows them: with iterable datasets and loaders that are none of torch, in a `predict_step`
        that fetches its batches itself, and where no callback writes predictions.

        Args:
            loader: The batch is of this loader.
        """
        return None if self._noted is None else self._noted.of_batch(loader)

    def _listen_to_writers(self) -> None:
        run = self.run_context
        writers = [callback for callback in run.hooks.callbacks if isinstance(callback, WritesPredictions)]
        self._keeps_indices = any(writer.interval.on_epoch for writer in writers)
        self._keeps_answers = self.return_predictions or self._keeps_indices
        self._noted = None
        module: Any = run.strategy.lightning_module
        if writers and not takes_iterator(module.predict_step):
            self._noted = NotedIndices(run.data.prepared[Stage.PREDICT].views)

    def _forget_indices(self) -> None:
        if self._noted is not None:
            self._noted.close()
            self._noted = None
        self.epoch_batch_indices = [[] for _ in self.max_batches]

    def _keep(self, answer: Any, loader: int) -> None:
        if answer is None:
            name = type(self.run_context.strategy.lightning_module).__name__
            warn_once(f"{name}.predict_step() returned None. There is nothing to keep. Return the predictions.")
        if self._keeps_answers:
            self.predictions[loader].append(answer)
        if self._keeps_indices:
            self.epoch_batch_indices[loader].append(self.batch_indices(loader))
        if self._noted is not None:
            self._noted.next_batch(loader)
