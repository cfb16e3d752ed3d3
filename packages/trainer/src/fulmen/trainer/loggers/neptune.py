"""Neptune, by its client `neptune` 1.x: online, offline, or an installation of one's own."""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.checkpoints import CheckpointLog, Saved
from fulmen.trainer.loggers.tracker import Tracker, flat_texts

if TYPE_CHECKING:
    from neptune import Run


class NeptuneLogger(Tracker):
    """Logs to Neptune, whose client sends from a thread of its own.

    Args:
        api_key: None takes the variable NEPTUNE_API_TOKEN.
        project: "workspace/project"; None takes the variable NEPTUNE_PROJECT.
        name: Shown for the run.
        run: One that was begun elsewhere; it is not ended here.
        log_model_checkpoints: Upload the checkpoints that are left when the run ends.
        prefix: The namespace of all that is logged.
        kwargs: As for `neptune.init_run`: `mode="offline"`, `tags`, `with_id`, ...

    Raises:
        MissingPackageError: If Neptune's client is not installed.
        ConfigurationError: For `run` together with what is only for a new one.
    """

    package = "neptune"
    LOGGER_JOIN_CHAR = "/"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        run: Any = None,
        log_model_checkpoints: bool = True,
        prefix: str = "training",
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix)
        given = {"api_key": api_key, "project": project, "name": name, **kwargs}
        new_only = [argument for argument, value in given.items() if value is not None]
        if run is not None and new_only:
            raise ConfigurationError(
                f"NeptuneLogger(run=..., {new_only[0]}={given[new_only[0]]!r}) contradict each other. The run has begun"
                f" already. Pass {', '.join(new_only)} to neptune.init_run, or leave run out."
            )
        self._options: dict[str, Any] = {"api_token": api_key, "project": project, "name": name, **kwargs}
        self._run: Run | None = run
        self._run_id = _id_of(run) if run is not None else kwargs.get("with_id")
        self._is_own = run is None
        self._checkpoints = CheckpointLog(log_model_checkpoints, self._upload)

    @property
    def name(self) -> str | None:
        """The name of the run."""
        return self._options["name"] or "neptune"

    @property
    def version(self) -> str | None:
        """The id of the run; None before it has begun, unless it was given."""
        return self._run_id

    @property
    def save_dir(self) -> str | None:
        """Neptune's own folder."""
        return os.path.join(os.getcwd(), ".neptune")

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """Neptune's run, for all that this logger has no method for; the first look begins it."""
        if self._run is None:
            import neptune

            given = {name: value for name, value in self._options.items() if value is not None}
            self._run = neptune.init_run(**given)
            self._run_id = _id_of(self._run)
        return self._run

    @property
    def run(self) -> "Run":
        """As `experiment`."""
        run: Run = self.experiment
        return run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log hyperparameters under `prefix/hyperparams`; nested ones stay nested."""
        self.delivery.put("params", params=flat_texts(params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Remember it: what it keeps at the end is uploaded."""
        self._checkpoints.saved(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note how the run has ended, and hand over what waits; a run that has failed is ended."""
        if self._run is None and self._delivery is None:
            return
        if status == "success":
            self._checkpoints.finish()
        self.delivery.put("text", name="status", text=status)
        self.close()
        if self._run is None:
            return
        if status == "failed" and self._is_own:
            run, self._run = self._run, None
            run["sys/failed"] = True
            run.stop()
            if self._options.get("mode") not in ("offline", "debug"):
                self._options["with_id"] = self._run_id  # so that it is gone on with, if it is used again
            return
        from neptune.exceptions import NeptuneOfflineModeFetchException

        with suppress(NeptuneOfflineModeFetchException):
            self._run.sync(wait=False)

    def how_to_make(self) -> str:
        """A logger that goes on with this run, as Python."""
        return f"NeptuneLogger(with_id={self.version!r}, prefix={self._prefix!r})"

    def take(self, entries: Sequence[Entry]) -> int:
        """Hand the first one to Neptune's client."""
        run = self.experiment
        match entries[0]:
            case {"kind": "metrics", "metrics": metrics, "step": step}:
                for name, value in metrics.items():
                    run[name].append(value, step=step)
            case {"kind": "params", "params": params}:
                for name, value in params.items():
                    run[self._under("hyperparams", name)] = value
            case {"kind": "text", "name": name, "text": text}:
                run[self._under(name)] = text
            case {"kind": "file", "path": path, "score": score, "aliases": aliases}:
                name = os.path.splitext(os.path.basename(path))[0]
                run[self._under("model/checkpoints", name)].upload(path)
                if "best" in aliases:
                    run[self._under("model/best_model_path")] = path
                    if score is not None:
                        run[self._under("model/best_model_score")] = score
        return 1

    def _under(self, *names: str) -> str:
        return self.LOGGER_JOIN_CHAR.join((self._prefix, *names) if self._prefix else names)

    def _upload(self, saved: Saved) -> None:
        self.delivery.put("file", path=saved.path, score=saved.score, aliases=list(saved.aliases))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_run": None}


def _id_of(run: Any) -> str | None:
    try:
        return str(run["sys/id"].fetch())
    except Exception:  # an offline run has none that could be fetched
        return getattr(run, "_sys_id", None)
