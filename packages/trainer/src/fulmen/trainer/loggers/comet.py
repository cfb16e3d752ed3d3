"""Comet, online or offline."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from torch import Tensor, nn

from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.tracker import Tracker, flat_texts

if TYPE_CHECKING:
    from comet_ml import ExistingExperiment, Experiment, OfflineExperiment

comet_experiment: TypeAlias = Union["Experiment", "ExistingExperiment", "OfflineExperiment"]

FRAMEWORK_NAME = "pytorch-lightning"  # what Comet knows programs of this kind as


class CometLogger(Tracker):
    """Logs to Comet, whose client sends from threads of its own.

    Args:
        api_key: None takes it from Comet's configuration: a variable or a file.
        workspace: Of the project; None is the default one.
        project: Of the experiment.
        experiment_key: Of the experiment; one that exists is gone on with, by `mode`.
        mode: "get" goes on with an experiment, "create" makes one, "get_or_create" does what is possible.
        online: False writes an archive in `offline_directory` instead, which `comet upload` sends later.
        prefix: Stands before the name of each metric, as Comet joins them.
        kwargs: As for `comet_ml.ExperimentConfig`: `offline_directory`, `name`, `tags`, `log_code`, ...

    Raises:
        MissingPackageError: If Comet is not installed.
        ConfigurationError: For another `mode`.
    """

    package = "comet_ml"
    pip = "comet_ml"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix or "")
        if mode not in (None, "get_or_create", "get", "create"):
            raise ConfigurationError(
                f"CometLogger(mode={mode!r}) is unknown. It says whether an experiment is made or gone on with."
                " Pass 'get_or_create', 'get' or 'create'."
            )
        self._options = {
            "api_key": api_key,
            "workspace": workspace,
            "project": project,
            "experiment_key": experiment_key,
            "mode": mode,
            "online": online,
        }
        self._config = kwargs
        self._experiment: comet_experiment | None = None

    @property
    def name(self) -> str | None:
        """The project."""
        name = self._options["project"] if self._experiment is None else self._experiment.project_name
        return None if name is None else str(name)

    @property
    def version(self) -> str | None:
        """The key of the experiment; None before it has begun, unless it was given."""
        key = self._options["experiment_key"] if self._experiment is None else self._experiment.get_key()
        return None if key is None else str(key)

    @property
    def save_dir(self) -> str | None:
        """The folder for the archives of offline experiments."""
        return self._config.get("offline_directory")

    @property
    @rank_zero_experiment
    def experiment(self) -> comet_experiment:
        """Comet's experiment, for all that this logger has no method for; the first look begins it."""
        if self._experiment is None:
            import comet_ml

            config = comet_ml.ExperimentConfig(**self._config)
            self._experiment = comet_ml.start(**self._options, experiment_config=config)
            # So that it is gone on with in another process.
            self._options["experiment_key"] = self._experiment.get_key()
            self._experiment.log_other("Created from", FRAMEWORK_NAME)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log hyperparameters; nested ones are flattened, with "/" between."""
        self.delivery.put("params", params=flat_texts(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Log numbers; "epoch" becomes the epoch of the others."""
        others = dict(metrics)
        epoch = others.pop("epoch", None)
        numbers = {name: float(value) for name, value in others.items()}
        self.delivery.put("metrics", metrics=numbers, step=step, epoch=None if epoch is None else int(epoch))

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Log the modules of the model, as text."""
        if rank_zero_only.rank == 0:
            self.directly(lambda: self.experiment.set_model_graph(model, overwrite=True), "the graph of the model")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note how the run has ended, and hand over what waits.

        The experiment stays open, for a test after a fit or what else the program logs; Comet ends it when the program
        ends.
        """
        if self._experiment is None and self._delivery is None:
            return
        self.delivery.put("status", status=status)
        self.close()
        if self._experiment is not None:
            self._experiment.flush()

    def how_to_make(self) -> str:
        """A logger that goes on with this experiment, as Python."""
        return f"CometLogger(experiment_key={self.version!r}, mode='get')"

    def take(self, entries: Sequence[Entry]) -> int:
        """Hand the first one to Comet's client."""
        match entries[0]:
            case {"kind": "metrics", "metrics": metrics, "step": step, "epoch": epoch}:
                self.experiment.log_metrics(metrics, prefix=self._prefix or None, step=step, epoch=epoch)
            case {"kind": "params", "params": params}:
                self.experiment.log_parameters(params)
            case {"kind": "status", "status": status}:
                self.experiment.log_other("Status", status)
        return 1

    def __getstate__(self) -> dict[str, Any]:
        # An experiment cannot be sent to another process: it is gone on with there, by its key.
        options = {**self._options, "experiment_key": self.version}
        return {**super().__getstate__(), "_experiment": None, "_options": options}
