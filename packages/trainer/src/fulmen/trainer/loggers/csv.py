"""Metrics in a CSV file, hyperparameters in `hparams.yaml` beside it."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from fulmen.fabric.filesystem import join
from fulmen.fabric.loggers.csv import CSVLogger as FabricCSVLogger
from fulmen.fabric.loggers.csv import MetricsFile
from fulmen.fabric.loggers.params import params_dict
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.core.hparams_files import save_hparams_to_yaml
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.in_folder import FolderLogger


class ExperimentWriter(MetricsFile):
    """`metrics.csv` and `hparams.yaml` of one run, in `log_dir`."""

    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.hparams: dict[str, Any] = {}

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Add hyperparameters and write all of them: at once, since a run may end at any time."""
        self.hparams.update(params)
        save_hparams_to_yaml(join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def restored(self) -> None:
        """Somebody had removed the folder: write the hyperparameters again too."""
        if self.hparams:
            self.log_hparams({})


class CSVLogger(FolderLogger, FabricCSVLogger):
    """Writes `save_dir/name/version_N/metrics.csv` and `hparams.yaml`; needs no further package.

    Args:
        save_dir: The folder of all experiments.
        name: The folder of this experiment below it; None or "" for none.
        version: A number N for the folder `version_N`, or its name. None takes the next free number.
        prefix: Stands before the name of each metric, with "-" between.
        flush_logs_every_n_steps: Rows are written when so many steps have passed since the last time.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(
            root_dir=save_dir,
            name=name,
            version=version,
            prefix=prefix,
            flush_logs_every_n_steps=flush_logs_every_n_steps,
        )
        self._save_dir = os.fspath(save_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The files being written; on processes other than rank zero, something that takes every call."""
        if not isinstance(self._experiment, ExperimentWriter):
            with self._saying_where():
                self._experiment = ExperimentWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any) -> None:
        """Add to `hparams.yaml`; without parameters the file is there, and empty."""
        self.experiment.log_hparams(params_dict(params))
