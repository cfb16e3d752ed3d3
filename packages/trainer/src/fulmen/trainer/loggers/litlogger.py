"""LitLogger: experiments on lightning.ai."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fulmen.fabric.loggers.params import params_dict
from fulmen.fabric.rank_zero import rank_zero_only, warn_once
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.checkpoints import CheckpointLog, Saved
from fulmen.trainer.loggers.tracker import Tracker, flat_texts

if TYPE_CHECKING:
    from litlogger import Experiment


class LitLogger(Tracker):
    """Logs to lightning.ai, whose client sends from a thread of its own. It needs an account, and a login.

    Args:
        root_dir: The folder of all experiments on this machine; None is "lightning_logs".
        name: Of the experiment; None takes the time at which it begins.
        teamspace: Whose experiment it is; None is the default one.
        metadata: Texts about the experiment, to filter by.
        store_step: Keep the step of each number.
        log_model: Upload the checkpoints that are left at the end, or each one if the callback removes none.
        save_logs: Upload what the program prints.
        checkpoint_name: What uploaded checkpoints are called; None is the name of the file.

    Raises:
        MissingPackageError: If the package litlogger is not installed.
        ConfigurationError: When the run begins, if there is no login.
    """

    package = "litlogger"

    def __init__(
        self,
        root_dir: str | Path | None = None,
        name: str | None = None,
        teamspace: str | None = None,
        metadata: dict[str, str] | None = None,
        store_step: bool = True,
        log_model: bool = False,
        save_logs: bool = True,
        checkpoint_name: str | None = None,
    ) -> None:
        super().__init__()
        self._root_dir = os.fspath(root_dir) if root_dir is not None else "lightning_logs"
        self._name = name
        self._teamspace = teamspace
        self._metadata = metadata
        self._store_step = store_step
        self._save_logs = save_logs
        self._checkpoint_name = checkpoint_name
        self._version: str | None = None
        self._experiment: Experiment | None = None
        self._checkpoints = CheckpointLog(log_model, self._upload)

    @property
    def name(self) -> str:
        """The name of the experiment."""
        if self._name is None:
            self._name = f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
        return self._name

    @property
    def version(self) -> str | None:
        """The time at which this run has begun; None before."""
        return self._version

    @property
    def root_dir(self) -> str:
        """The folder of all experiments."""
        return self._root_dir

    @property
    def log_dir(self) -> str:
        """The folder of this run."""
        return os.path.join(self._root_dir, self.name, *([self._version] if self._version else []))

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return self._root_dir

    @property
    def sub_dir(self) -> str | None:
        """None: the files are in `log_dir` itself."""
        return None

    @property
    def url(self) -> str:
        """Where the experiment can be looked at."""
        return str(self.experiment.url)

    @property
    @rank_zero_experiment
    def experiment(self) -> "Experiment":
        """The experiment, for all that this logger has no method for; the first look begins it."""
        if self._experiment is None:
            self._version = self._version or f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
            self._experiment = self._begin()
        return self._experiment

    def _begin(self) -> "Experiment":
        import litlogger

        try:
            return litlogger.init(
                name=self.name,
                root_dir=self.log_dir,
                teamspace=self._teamspace,
                metadata=self._metadata,
                store_step=self._store_step,
                save_logs=self._save_logs,
            )
        except (SystemExit, OSError) as error:
            raise ConfigurationError(
                f"LitLogger(name={self._name!r}, teamspace={self._teamspace!r}) cannot begin an experiment."
                f" lightning.ai cannot be reached, or there is no login ({type(error).__name__}: {error})."
                " Run `lightning login`, or use another logger."
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers."""
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None) -> None:
        """Log hyperparameters as texts about the experiment, and `metrics` with them; nested ones are flattened."""
        self.log_metadata(params)
        if metrics:
            self.log_metrics(metrics)

    @rank_zero_only
    def log_metadata(self, params: dict[str, Any] | Namespace) -> None:
        """Log texts about the experiment."""
        texts = {name: str(value) for name, value in flat_texts(params_dict(params)).items()}
        self.delivery.put("params", params=texts)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Not possible on lightning.ai; warns if it is asked for with a batch."""
        if input_array is not None:
            warn_once("LitLogger.log_graph does nothing: lightning.ai shows no graphs. Use a TensorBoardLogger for it.")

    @rank_zero_only
    def log_model(
        self,
        model: Any,
        staging_dir: str | None = None,
        verbose: bool = False,
        version: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Upload a model: an object, which is written into `staging_dir` first."""
        texts = None if metadata is None else {name: str(value) for name, value in metadata.items()}
        self.directly(
            lambda: self.experiment.log_model(
                model, staging_dir=staging_dir, verbose=verbose, version=version, metadata=texts
            ),
            "a model",
        )

    @rank_zero_only
    def log_model_artifact(self, path: str, verbose: bool = False, version: str | None = None) -> None:
        """Upload a file or a folder as a model."""
        self.directly(lambda: self.experiment.log_model_artifact(path, verbose=verbose, version=version), repr(path))

    @rank_zero_only
    def log_file(self, path: str) -> None:
        """Upload a file."""
        self.directly(lambda: self.experiment.log_file(path), repr(path))

    @rank_zero_only
    def get_file(self, path: str, verbose: bool = True) -> str:
        """Download a file that was uploaded, and say where it is."""
        return str(self.experiment.get_file(path, verbose=verbose))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload what was saved, by `log_model`."""
        self._checkpoints.saved(checkpoint_callback)

    @rank_zero_only
    def save(self) -> None:
        """Hand over what waits, if that can be done now."""
        super().save()

    @rank_zero_only
    def finalize(self, status: str | None = None) -> None:
        """Hand over what waits; a run that has failed ends here.

        One that has succeeded stays open, for a test after a fit or what else the program logs; its client ends it
        when the program ends.
        """
        if status == "success":
            self._checkpoints.finish()
        self.close()
        if status == "failed" and self._experiment is not None:
            experiment, self._experiment = self._experiment, None
            experiment.finalize(status)

    def how_to_make(self) -> str:
        """A logger that goes on with this experiment, as Python."""
        return f"LitLogger(name={self.name!r}, teamspace={self._teamspace!r})"

    def take(self, entries: Sequence[Entry]) -> int:
        """Hand the first one to the client."""
        match entries[0]:
            case {"kind": "metrics", "metrics": metrics, "step": step}:
                self.experiment.log_metrics(metrics, step=step)
            case {"kind": "params", "params": params}:
                self.experiment.log_metadata(params)
            case {"kind": "file", "path": path}:
                self.experiment.log_model_artifact(path, version=self._checkpoint_name or Path(path).stem)
        return 1

    def _upload(self, saved: Saved) -> None:
        self.delivery.put("file", path=saved.path)

    def __getstate__(self) -> dict[str, Any]:
        # An experiment cannot be sent to another process: it is begun again there, under its name.
        return {**super().__getstate__(), "_experiment": None}
