"""Weights & Biases, online or offline."""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from fulmen.fabric.loggers.params import params_dict
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.checkpoints import CheckpointLog, Saved
from fulmen.trainer.loggers.tracker import Tracker

if TYPE_CHECKING:
    from wandb import Artifact, Run

# The axis of all that is logged with a step.
_STEP = "trainer/global_step"


class WandbLogger(Tracker):
    """Logs to Weights & Biases, whose client sends in a process of its own.

    Args:
        name: Shown for the run.
        save_dir: The folder that W&B writes its files to, in `wandb/` below it.
        version: As `id`.
        offline: Only write files; `wandb sync` sends them later.
        dir: As `save_dir`, and goes before it.
        id: Of the run; one that exists is gone on with.
        anonymous: Log without an account, where W&B still allows it.
        project: Of the run; None takes the variable WANDB_PROJECT, or "lightning_logs".
        log_model: Log checkpoints as artifacts: "all" when they are saved; True when the run ends, those that are left.
        experiment: A run that was begun elsewhere; it is not ended here.
        prefix: Stands before the name of each metric, with "-" between.
        checkpoint_name: Of the artifact; None is "model-" and the id of the run.
        add_file_policy: "mutable" copies a checkpoint before it is uploaded, "immutable" does not: it must then stay as
            it is until then.
        kwargs: As for `wandb.init`: `entity`, `tags`, `group`, `notes`, ...

    Raises:
        MissingPackageError: If W&B is not installed.
        ConfigurationError: For `log_model` with `offline`, and for other values.
    """

    package = "wandb"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | Path = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | Path | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix)
        if log_model not in (True, False, "all"):
            raise ConfigurationError(
                f"WandbLogger(log_model={log_model!r}) is unknown. It says which checkpoints are logged as artifacts."
                " Pass True, False or 'all'."
            )
        if add_file_policy not in ("mutable", "immutable"):
            raise ConfigurationError(
                f"WandbLogger(add_file_policy={add_file_policy!r}) is unknown. It says whether W&B copies a checkpoint."
                " Pass 'mutable' or 'immutable'."
            )
        if offline and log_model:
            raise ConfigurationError(
                f"WandbLogger(log_model={log_model!r}, offline={offline}) contradict each other. An artifact is made on"
                " the server. Leave log_model out, or log online."
            )
        self.add_file_policy = add_file_policy
        self._save_dir = os.fspath(dir if dir is not None else save_dir)
        self._checkpoint_name = checkpoint_name
        self._experiment: Run | None = experiment
        self._is_own = experiment is None
        self._checkpoints = CheckpointLog(log_model, self._upload)
        self._options: dict[str, Any] = {
            "name": name,
            "project": project if project is not None else os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": self._save_dir,
            "id": version or id,
            "resume": "allow",
            **({"mode": "offline"} if offline else {}),
            **({"anonymous": "allow"} if anonymous else {}),
            **kwargs,
        }

    @property
    def name(self) -> str | None:
        """The project."""
        return self._options.get("project")

    @property
    def version(self) -> str | None:
        """The id of the run; None before it has begun, unless it was given."""
        return self._experiment.id if self._experiment is not None else self._options.get("id")

    @property
    def save_dir(self) -> str | None:
        """The folder that W&B writes to."""
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """W&B's run, for all that this logger has no method for; the first look begins it."""
        if self._experiment is None:
            self._experiment = self._begin()
            # So that it is gone on with, where it is used again after its end or in another process.
            self._options["id"] = self._experiment.id
        return self._experiment

    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Log histograms of gradients or parameters every `log_freq` batches, and the graph."""
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the configuration of the run; nested ones stay nested."""
        self.delivery.put("params", params=_as_data(params_dict(params)))

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table of columns and rows, or of a dataframe; its cells may be texts, numbers and media."""
        import wandb

        table = wandb.Table(columns=columns, data=data, dataframe=dataframe)
        self._log_media({key: table}, step)

    @rank_zero_only
    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log texts as a table."""
        self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images: tensors, arrays, PIL images or paths.

        Args:
            key: The name they are shown under.
            images: One or more.
            step: They belong to.
            kwargs: Of `wandb.Image`, each with one value per image: `caption=["a", "b"]`.
        """
        import wandb

        self._log_media({key: _each(wandb.Image, "log_image", "images", images, kwargs)}, step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log sounds: arrays or paths; `kwargs` of `wandb.Audio`, each with one value per sound."""
        import wandb

        self._log_media({key: _each(wandb.Audio, "log_audio", "audios", audios, kwargs)}, step)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log videos: arrays or paths; `kwargs` of `wandb.Video`, each with one value per video."""
        import wandb

        self._log_media({key: _each(wandb.Video, "log_video", "videos", videos, kwargs)}, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Log what was saved as an artifact, by `log_model`."""
        self._checkpoints.saved(checkpoint_callback)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str,
        save_dir: str | Path | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Download an artifact, such as a checkpoint.

        Args:
            artifact: Its path, "entity/project/name:alias".
            save_dir: Where to; None is W&B's own place.
            artifact_type: Checked, if given.
            use_artifact: Note it as an input of the run that is under way.

        Returns:
            The folder.
        """
        import wandb

        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact, type=artifact_type)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> "Artifact":
        """Note an artifact as an input of this run, and hand it over."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log the checkpoints that are left; a run that has failed ends, as failed.

        One that has succeeded stays open, for a test after a fit or what else the program logs; W&B ends it when the
        program ends.
        """
        if status == "success":
            self._checkpoints.finish()
        self.close()
        if status == "failed" and self._experiment is not None and self._is_own:
            experiment, self._experiment = self._experiment, None
            experiment.finish(exit_code=1)

    def how_to_make(self) -> str:
        """A logger that goes on with this run, as Python."""
        return f"WandbLogger(project={self.name!r}, id={self.version!r})"

    def take(self, entries: Sequence[Entry]) -> int:
        """Hand the first one to W&B's client."""
        match entries[0]:
            case {"kind": "metrics", "metrics": metrics, "step": step}:
                self.experiment.log(metrics if step is None else {**metrics, _STEP: step})
            case {"kind": "params", "params": params}:
                self.experiment.config.update(params, allow_val_change=True)
            case {"kind": "file", **saved}:
                self._log_artifact(saved)
        return 1

    def _begin(self) -> "Run":
        import wandb

        if wandb.run is not None:
            rank_zero_warn(
                f"A run of W&B is under way, {wandb.run.id}: this WandbLogger uses it. Its own arguments are not used."
                " Call wandb.finish() first to begin another one."
            )
            self._is_own = False
            run = wandb.run
        else:
            run = _begin_online_or_not(self._options)
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP, step_sync=True)
        return run

    def _log_media(self, media: dict[str, Any], step: int | None) -> None:
        named = {
            f"{self._prefix}{self.LOGGER_JOIN_CHAR}{key}" if self._prefix else key: it for key, it in media.items()
        }
        row = named if step is None else {**named, _STEP: step}
        self.directly(lambda: self.experiment.log(row), ", ".join(named))

    def _upload(self, saved: Saved) -> None:
        self.delivery.put("file", path=saved.path, metadata=saved.metadata, aliases=list(saved.aliases))

    def _log_artifact(self, saved: Mapping[str, Any]) -> None:
        import wandb

        name = self._checkpoint_name or f"model-{self.experiment.id}"
        artifact = wandb.Artifact(name=name, type="model", metadata=saved["metadata"])
        if os.path.isdir(saved["path"]):
            artifact.add_dir(saved["path"], policy=self.add_file_policy)
        else:
            artifact.add_file(saved["path"], name="model.ckpt", policy=self.add_file_policy)
        self.experiment.log_artifact(artifact, aliases=saved["aliases"])

    def __getstate__(self) -> dict[str, Any]:
        # A run cannot be sent to another process: it is gone on with there, by its id.
        options = {**self._options, "id": self.version}
        return {**super().__getstate__(), "_experiment": None, "_options": options}


def _begin_online_or_not(options: Mapping[str, Any]) -> "Run":
    import wandb

    try:
        return wandb.init(**options)
    except wandb.errors.CommError as error:
        if isinstance(error, wandb.errors.AuthenticationError):
            raise
        rank_zero_warn(
            f"WandbLogger cannot reach the server: {str(error).splitlines()[0][:300]}. The run is logged offline, below"
            f" {options['dir']!r}. Send it later with `wandb sync`."
        )
        return wandb.init(**{**options, "mode": "offline"})


def _each(make: Callable[..., Any], method: str, what: str, given: list[Any], options: Mapping[str, Any]) -> list[Any]:
    if not isinstance(given, list):
        raise ArgumentTypeError(
            f"WandbLogger.{method}({what}={type(given).__name__}) is no list. One call logs several."
            f" Pass {what}=[...], also for one."
        )
    for name, values in options.items():
        if len(values) != len(given):
            raise ConfigurationError(
                f"WandbLogger.{method}({name}=...) has {len(values)} values, for {len(given)} {what}. Each of them has"
                f" its own. Pass a list of {len(given)}."
            )
    return [make(one, **{name: values[idx] for name, values in options.items()}) for idx, one in enumerate(given)]


def _as_data(value: Any) -> Any:
    """Nested hyperparameters as numbers, texts, lists and dicts."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _as_data(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_data(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
