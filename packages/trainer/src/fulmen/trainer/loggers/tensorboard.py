"""TensorBoard's event files, with hyperparameters in `hparams.yaml` beside them."""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import join
from fulmen.fabric.loggers.params import params_dict
from fulmen.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn
from fulmen.fabric.trees import move_data_to_device
from fulmen.trainer.core.hparams_files import save_hparams_to_yaml
from fulmen.trainer.loggers.in_folder import FolderLogger


class TensorBoardLogger(FolderLogger, FabricTensorBoardLogger):
    """Writes `save_dir/name/version_N/sub_dir/events.out.tfevents...` and `hparams.yaml`.

    Rows are on the disk a second after they were logged, and before each checkpoint and the end of a run: who kills
    the process loses that second.

    Args:
        save_dir: The folder of all experiments.
        name: The folder of this experiment below it; None or "" for none.
        version: A number N for the folder `version_N`, or its name. None takes the next free number.
        log_graph: Trace the module with its `example_input_array` when a run begins, and show its graph?
        default_hp_metric: Log the metric `hp_metric` with hyperparameters that come without metrics, for TensorBoard
            shows none without one.
        prefix: Stands before the name of each metric, with "-" between.
        sub_dir: A folder for the files below that of the run.
        kwargs: As for `torch.utils.tensorboard.SummaryWriter`: `filename_suffix`, `purge_step`, ... Rows wait
            `flush_secs` at most (1), and `max_queue` of them (1000).

    Raises:
        ArgumentTypeError: If an argument is unknown or has another type.
        ConfigurationError: If `flush_secs` or `max_queue` is negative.
        MissingPackageError: If TensorBoard is not installed.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root_dir=save_dir,
            name=name,
            version=version,
            default_hp_metric=default_hp_metric,
            prefix=prefix,
            sub_dir=sub_dir,
            **kwargs,
        )
        self._save_dir = os.fspath(save_dir)
        self._log_graph = log_graph
        self._hparams_are_written = False
        self.hparams: dict[str, Any] = {}

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Add to `hparams.yaml`, and show the run in the table of hyperparameters.

        Args:
            params: Nested ones are flattened in the table; what is no number or text is shown as text.
            metrics: To compare runs by. None takes `hp_metric`, unless the logger was told otherwise.
            step: Of the metrics.
        """
        self.hparams.update(params_dict(params))
        self._write_hparams()
        super().log_hyperparams(params, metrics, step)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Show the graph of the model; does nothing unless the logger was made with `log_graph=True`.

        Args:
            model: Must be traceable by `torch.jit.trace`.
            input_array: A batch to trace it with; None takes the model's `example_input_array`, and warns if it has
                none.

        Raises:
            ConfigurationError: If it cannot be traced.
        """
        if not self._log_graph:
            return
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            rank_zero_warn(
                f"The graph of this {class_name(model)} is not logged: it is traced with a batch, and there is none."
                " Pass input_array, or set `example_input_array` on the model."
            )
            return
        device = next((parameter.device for parameter in model.parameters()), None)
        try:
            super().log_graph(model, example if device is None else move_data_to_device(example, device))
        # What tracing raises depends on the code of the model.
        except Exception as error:
            raise ConfigurationError(
                f"TensorBoardLogger(log_graph=True) cannot show the graph of this {class_name(model)}."
                f" torch.jit.trace cannot follow its forward with the example batch ({error})."
                " Set an `example_input_array` that forward takes, or leave log_graph out."
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One scalar per name; a dict of numbers becomes several curves in one chart.

        A run that has logged has an `hparams.yaml` from here on, be it an empty one.

        Raises:
            ConfigurationError: If a value is no number.
        """
        super().log_metrics(metrics, step)
        if not self._hparams_are_written:
            self._write_hparams()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is held back, and close the file. What is logged later opens it again."""
        if self._experiment is not None and not self._hparams_are_written:
            self._write_hparams()
        super().finalize(status)

    def _write_hparams(self) -> None:
        save_hparams_to_yaml(join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)
        self._hparams_are_written = True
