"""Print the summary of the model when fit starts."""

from typing import Any

from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.summary.layers import ModelSummary as Summary
from fulmen.trainer.summary.layers import check_max_depth
from fulmen.trainer.summary.table import format_summary


class ModelSummary(Callback):
    """Print layers, parameters and sizes before training.

    Args:
        max_depth: How many levels of layers inside layers; -1 for all, 0 prints nothing.
        summarize_kwargs: Handed to `summarize`, for subclasses.

    Raises:
        ConfigurationError: For a depth below -1.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        check_max_depth(max_depth)
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, on rank zero."""
        if self._max_depth == 0:
            return
        # Every process makes it: with an example input the model is called, and that may be a collective.
        summary = self._summary(trainer, pl_module)
        if trainer.is_global_zero:
            self.summarize(
                summary.columns(),
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                total_training_modes=summary.total_training_modes,
                total_flops=summary.total_flops,
                **self._summarize_kwargs,
            )

    def _summary(self, trainer: Trainer, pl_module: LightningModule) -> Summary:
        if any(hasattr(parameter, "ds_numel") for parameter in pl_module.parameters()):  # split by DeepSpeed
            from fulmen.trainer.summary.deepspeed import DeepSpeedSummary

            return DeepSpeedSummary(pl_module, max_depth=self._max_depth)
        return Summary(pl_module, max_depth=self._max_depth)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print a summary; override it to show it in another way.

        Args:
            summary_data: Columns, each with its title and one text per layer.
            total_parameters: How many numbers the model has.
            trainable_parameters: How many of them are trained.
            model_size: Of all parameters, in megabytes.
            total_training_modes: How many modules are in mode "train" and "eval".
            total_flops: Of one forward pass of the example input; 0 without one.
            summarize_kwargs: What the callback was constructed with.
        """
        table = format_summary(
            total_parameters, trainable_parameters, model_size, total_training_modes, total_flops, *summary_data
        )
        print("\n" + table)
