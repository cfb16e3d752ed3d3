"""Which checkpoints a tracker is given, and what it is told about them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LogModel = Literal["all"] | bool

_DESCRIBES = ("monitor", "mode", "save_last", "save_top_k", "save_weights_only")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was saved.

    Attributes:
        path: A file, or a folder if it is sharded.
        score: Of the monitored metric; None if none is monitored.
        aliases: "latest", and "best" or "last" where it is that.
        metadata: For the tracker: how it was chosen.
    """

    path: str
    score: float | None
    aliases: tuple[str, ...]
    metadata: dict[str, Any]


class CheckpointLog:
    """Hands each version of each checkpoint to `upload` once.

    Args:
        log_model: "all": whenever one is saved. True: those that are left at the end, or whenever one is saved if the
            callback removes none. False: never.
        upload: Gets them, the oldest first.
    """

    def __init__(self, log_model: LogModel, upload: Callable[[Saved], None]) -> None:
        self._log_model = log_model
        self._upload = upload
        self._uploaded: dict[str, float] = {}  # path to the time of its last change
        self._callbacks: list[Any] = []

    def saved(self, callback: Any) -> None:
        """A checkpoint callback has saved."""
        if self._log_model == "all" or (self._log_model is True and getattr(callback, "save_top_k", None) == -1):
            self._scan(callback)
        elif self._log_model is True:
            # Each save comes with a new proxy of the same callback.
            self._callbacks = [known for known in self._callbacks if _alive(known) and known != callback]
            self._callbacks.append(callback)

    def finish(self) -> None:
        """The run has ended well: those that are left."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            if _alive(callback):
                self._scan(callback)

    def _scan(self, callback: Any) -> None:
        found = [(Path(one.path).stat().st_mtime, one) for one in saved_by(callback) if Path(one.path).exists()]
        for changed, one in sorted(found, key=lambda pair: pair[0]):
            if self._uploaded.get(one.path) != changed:
                self._uploaded[one.path] = changed
                self._upload(one)

    def __getstate__(self) -> dict[str, Any]:
        # Weak proxies cannot be sent to another process.
        return {**self.__dict__, "_callbacks": []}


def saved_by(callback: Any) -> list[Saved]:
    """The checkpoints that a callback keeps now."""
    scores: dict[str, Any] = {}
    best, last = getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", "")
    scores[last] = getattr(callback, "current_score", None)
    scores[best] = getattr(callback, "best_model_score", None)
    scores.update(getattr(callback, "best_k_models", {}))
    metadata = {name: getattr(callback, name) for name in _DESCRIBES if hasattr(callback, name)}
    name = getattr(callback, "__class__", type(callback)).__name__
    found = []
    for path, score in scores.items():
        if path:
            aliases = ["latest"] + ["best"] * (path == best) + ["last"] * (path == last)
            number = None if score is None else float(score)
            about = {"score": number, "original_filename": Path(path).name, name: metadata}
            found.append(Saved(str(path), number, tuple(aliases), about))
    return found


def _alive(callback: Any) -> bool:
    try:
        return callback.__class__ is not None
    except ReferenceError:
        return False
