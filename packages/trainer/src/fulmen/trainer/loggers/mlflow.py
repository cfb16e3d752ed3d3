"""MLflow: a server, a database or a folder."""

import os
import re
import socket
import tempfile
import threading
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_only, rank_zero_warn, warn_once
from fulmen.trainer.delivery.backlog import Entry
from fulmen.trainer.delivery.sender import Refused
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import rank_zero_experiment
from fulmen.trainer.loggers.checkpoints import CheckpointLog, Saved
from fulmen.trainer.loggers.held_files import hold, let_go
from fulmen.trainer.loggers.tracker import Tracker, flat_texts

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LOCAL_FILE_URI_PREFIX = "file:"

# https://mlflow.org/docs/latest/rest-api.html: so much at once.
_MAX_METRICS = 1000
_MAX_PARAMS = 100
_CONNECTS_WITHIN_S = 5.0
# What the server says about a request that it will never take.
_HOPELESS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
_HOPELESS |= {"INVALID_STATE", "MALFORMED_REQUEST", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED"}
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLFlowLogger(Tracker):
    """Sends metrics, hyperparameters and checkpoints to MLflow, from a thread of its own.

    Where the variable MLFLOW_HTTP_REQUEST_MAX_RETRIES is not set, it becomes 1: this logger itself tries again.

    Args:
        experiment_name: It is made if there is none of this name.
        run_name: Shown for the run; None lets MLflow find one.
        tracking_uri: Of a server (`http://...`), a database (`sqlite:///...`) or a folder (`file:...`). None takes the
            variable MLFLOW_TRACKING_URI, and without that `save_dir`: as a folder, or with an SQLite database in it
            where this version of MLflow writes no folders any more.
        tags: Of the run.
        save_dir: The folder, if no URI is given.
        log_model: Upload checkpoints: "all" when they are saved; True when the run ends, those that are left.
        prefix: Stands before the name of each metric, with "-" between.
        artifact_location: Where files of a new experiment are kept; None leaves it to MLflow.
        run_id: Go on with this run.
        synchronous: True sends from the calling thread, so that what is logged is there when the call returns.

    Raises:
        MissingPackageError: If MLflow is not installed.
        ConfigurationError: For another `log_model`; when the run begins, if MLflow refuses to make it.
    """

    package = "mlflow"
    pip = "mlflow"

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = "./mlruns",
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        super().__init__(prefix, threaded=synchronous is not True)
        if log_model not in (True, False, "all"):
            raise ConfigurationError(
                f"MLFlowLogger(log_model={log_model!r}) is unknown. It says which checkpoints are uploaded."
                " Pass True, False or 'all'."
            )
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.tags = tags
        self._tracking_uri = uri or f"{LOCAL_FILE_URI_PREFIX}{save_dir or './mlruns'}"
        self._may_move = not uri
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._experiment_id: str | None = None
        self._client: MlflowClient | None = None
        self._was_tried = False
        self._opening = threading.RLock()
        self._checkpoints = CheckpointLog(log_model, self._upload)

    @property
    def name(self) -> str | None:
        """The id of the experiment; its name as long as the server has not said the id."""
        return self.experiment_id or self._experiment_name

    @property
    def version(self) -> str | None:
        """The id of the run; None as long as the server has not said it."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """The folder that MLflow writes to; None if that is not on this machine."""
        return _folder_of(self._tracking_uri)

    @property
    def run_id(self) -> str | None:
        """The id of the run; the first look makes it. None as long as the server has not said it."""
        self._try_to_open()
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """The id of the experiment; the first look makes it. None as long as the server has not said it."""
        self._try_to_open()
        return self._experiment_id

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """MLflow's client, for all that this logger has no method for; use it with `run_id`."""
        self._try_to_open()
        return self._connected()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Send hyperparameters; nested ones are flattened, with "/" between."""
        for name, value in flat_texts(params).items():
            self.delivery.put("param", name=_allowed(name), value=str(value))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send numbers, with the time of this call; names lose the characters that MLflow does not take."""
        numbers: dict[str, Any] = {}
        for name, value in metrics.items():
            if isinstance(value, str):
                warn_once(f"MLFlowLogger leaves out {name!r}={value!r}: a metric is a number. Log texts as tags.")
            else:
                numbers[_allowed(name)] = value
        super().log_metrics(numbers, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload what was saved, by `log_model`."""
        self._checkpoints.saved(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Say how the run has ended, and wait for what is not delivered."""
        if self._run_id is None and self._delivery is None:
            return
        if status == "success":
            self._checkpoints.finish()
        self.delivery.put("end", status=_STATUS.get(status, "FINISHED"))
        self.close()

    def how_to_make(self) -> str:
        """A logger that goes on with this run, as Python."""
        which = f"run_id={self._run_id!r}" if self._run_id else f"experiment_name={self._experiment_name!r}"
        return f"MLFlowLogger(tracking_uri={self._tracking_uri!r}, {which})"

    # ---- sending; in a thread

    def take(self, entries: Sequence[Entry]) -> int:
        """Send the first few of one kind in one request."""
        from mlflow.exceptions import MlflowException

        kind = entries[0]["kind"]
        alike = list(takewhile(lambda entry: entry["kind"] == kind, entries))
        try:
            client, run_id = self._opened()
            if kind == "metrics":
                return _send_metrics(client, run_id, alike)
            if kind == "param":
                return _send_params(client, run_id, alike[:_MAX_PARAMS])
            if kind == "file":
                _send_checkpoint(client, run_id, entries[0])
            elif kind == "end":
                client.set_terminated(run_id, entries[0]["status"])
        except MlflowException as error:
            if _is_hopeless(error):
                raise Refused(str(error)) from error
            raise ConnectionError(str(error)) from error  # whatever else it is, time may mend it
        return 1

    def _upload(self, saved: Saved) -> None:
        # It is sent later, by a thread: the callback may have removed it by then.
        held = hold(saved.path, self._folder())
        self.delivery.put("file", path=saved.path, held=held, metadata=saved.metadata, aliases=list(saved.aliases))

    # ---- opening

    def _try_to_open(self) -> None:
        """Make the run, once; if the server is out of reach, the thread goes on trying."""
        if self._run_id is not None and self._experiment_id is not None:
            return
        if self._was_tried or rank_zero_only.rank != 0:
            return
        self._was_tried = True
        from mlflow.exceptions import MlflowException

        try:
            self._opened()
        except MlflowException as error:
            if _is_hopeless(error):
                raise ConfigurationError(
                    f"MLFlowLogger(experiment_name={self._experiment_name!r}, tracking_uri={self._tracking_uri!r})"
                    f" cannot begin a run. MLflow says: {str(error).rstrip('.')}. Mend the arguments, or leave the"
                    " logger out."
                ) from error
            self._will_open_later(error)
        except OSError as error:
            self._will_open_later(error)

    def _will_open_later(self, error: Exception) -> None:
        rank_zero_warn(
            f"MLFlowLogger cannot reach {self._tracking_uri!r}: {str(error).splitlines()[0][:300]}. The run goes on,"
            " and what is logged waits until it can. The ids of experiment and run are not known until then."
        )

    def _opened(self) -> tuple["MlflowClient", str]:
        """The client, and the id of a run that is there."""
        _check_reachable(self._tracking_uri)
        with self._opening:
            if self._run_id is None or self._experiment_id is None:
                self._open()
            return self._connected(), str(self._run_id)

    def _open(self) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        if self._run_id is not None:
            self._experiment_id = self._connected().get_run(self._run_id).info.experiment_id
            return
        try:
            found = self._connected().get_experiment_by_name(self._experiment_name)
        except MlflowException:
            if not (self._may_move and self._move_to_database()):
                raise
            found = self._connected().get_experiment_by_name(self._experiment_name)
        if found is not None and found.lifecycle_stage != "deleted":
            self._experiment_id = found.experiment_id
        else:
            self._experiment_id = self._connected().create_experiment(
                self._experiment_name, artifact_location=self._artifact_location
            )
        tags = dict(self.tags or {})
        if self._run_name is not None:
            tags["mlflow.runName"] = self._run_name
        made = self._connected().create_run(self._experiment_id, tags=resolve_tags(tags))
        self._run_id = made.info.run_id

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            from mlflow.tracking import MlflowClient

            if self._tracking_uri.startswith("http"):
                # Its seven attempts take minutes, in which it does not look whether the server is back: we try again.
                os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            self._client = MlflowClient(self._tracking_uri)
        return self._client

    def _move_to_database(self) -> bool:
        """MLflow 3 writes no folders any more: an SQLite database in the same one, if it can have databases."""
        folder = _folder_of(self._tracking_uri)
        if folder is None or not is_installed("sqlalchemy"):
            return False
        absolute = Path(folder).absolute()
        absolute.mkdir(parents=True, exist_ok=True)
        self._may_move = False
        self._tracking_uri = f"sqlite:///{absolute / 'mlflow.db'}"
        self._artifact_location = self._artifact_location or (absolute / "artifacts").as_uri()
        self._client = None
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_client": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opening = threading.RLock()


def _is_hopeless(error: BaseException | None) -> bool:
    """Has MLflow refused it? A folder's refusals come inside of errors that sound as if something had broken."""
    codes = []
    while error is not None:
        codes.append(getattr(error, "error_code", None))
        error = error.__cause__ or error.__context__
    return not _HOPELESS.isdisjoint(codes)


def _folder_of(uri: str) -> str | None:
    """The folder that a URI names; of an SQLite database, the one that it is in."""
    if uri.startswith("sqlite:///"):
        return os.path.dirname(uri.removeprefix("sqlite:///")) or "."
    if not uri.startswith(LOCAL_FILE_URI_PREFIX):
        return None
    path = uri.removeprefix(LOCAL_FILE_URI_PREFIX)
    return path[2:] if path.startswith("///") else path


def _allowed(name: str) -> str:
    """A name without what MLflow does not take in one."""
    allowed = re.sub(r"[^\w/. -]", "", name, flags=re.ASCII)
    if allowed != name:
        warn_once(f"MLflow does not take the name {name!r}: it is logged as {allowed!r}.")
    return allowed


def _check_reachable(uri: str) -> None:
    """Raise at once if nobody listens: MLflow's client would try for minutes, and hold up all that waits."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return  # the proxy knows the way, and only it
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname, port), timeout=_CONNECTS_WITHIN_S).close()


def _send_metrics(client: "MlflowClient", run_id: str, entries: Sequence[Entry]) -> int:
    from mlflow.entities import Metric

    metrics: list[Any] = []
    taken = 0
    for entry in entries:
        # The time is that of logging, also when it is sent again: MLflow keeps what is equal once.
        at_ms, step = int(entry["time"] * 1000), entry["step"] or 0
        row = [Metric(name, float(value), at_ms, step) for name, value in entry["metrics"].items()]
        if taken and len(metrics) + len(row) > _MAX_METRICS:
            break
        metrics += row
        taken += 1
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS], synchronous=True)
    return taken


def _send_params(client: "MlflowClient", run_id: str, entries: Sequence[Entry]) -> int:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(entry["name"], entry["value"]) for entry in entries], synchronous=True)
    return len(entries)


def _send_checkpoint(client: "MlflowClient", run_id: str, entry: Entry) -> None:
    """The checkpoint, what is known about it, and what it is called."""
    import yaml

    held = entry.get("held")
    path = Path(held if held is not None and os.path.exists(held) else entry["path"])
    if not path.exists():
        raise Refused(f"the checkpoint {entry['path']!r} was removed before it could be uploaded")
    where = f"model/checkpoints/{path.stem}"
    if path.is_dir():
        client.log_artifacts(run_id, str(path), f"{where}/{path.name}")
    else:
        client.log_artifact(run_id, str(path), where)
    with tempfile.TemporaryDirectory(prefix="fulmen_") as folder:
        (Path(folder) / "metadata.yaml").write_text(yaml.safe_dump(entry["metadata"]), encoding="utf-8")
        (Path(folder) / "aliases.txt").write_text(str(entry["aliases"]), encoding="utf-8")
        client.log_artifacts(run_id, folder, where)
    if held is not None:
        let_go(held)
