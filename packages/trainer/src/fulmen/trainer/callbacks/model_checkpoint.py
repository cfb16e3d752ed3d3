"""When to save, and what to keep."""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fulmen.fabric.filesystem import exists, get_filesystem, is_local, list_dir
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.checkpoint import Checkpoint
from fulmen.trainer.callbacks.monitored import MetricNotLoggedError, check_mode, not_logged
from fulmen.trainer.callbacks.outdated import give_second_name, remove_outdated
from fulmen.trainer.callbacks.save_rules import (
    check_filename,
    check_intervals,
    check_save_last,
    check_top_k,
    gets_fresher,
    refuse_unwritable,
    saves_at_epoch_end,
    values_of,
)
from fulmen.trainer.checkpoint.filename import (
    default_template,
    fill_template,
    first_free,
    pattern_of,
)
from fulmen.trainer.checkpoint.kept import moved_ranking, refound
from fulmen.trainer.checkpoint.paths import checkpoint_dir
from fulmen.trainer.checkpoint.place import absolute, is_in_folder
from fulmen.trainer.checkpoint.ranking import Ranking, best_first, worst_possible
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.run.agreed_clock import AgreedClock
from fulmen.trainer.stages import EntryPoint


class ModelCheckpoint(Checkpoint):
    """Save checkpoints while training, and keep the best ones, the last one, or all.

    Args:
        dirpath: Folder; by default `checkpoints` in the folder of the first logger, else of the Trainer.
        filename: Template such as "{epoch}-{val_loss:.2f}", without extension; by default "{epoch}-{step}".
        monitor: Name of the logged metric to rank by; without one, the youngest is the best.
        verbose: Log what is saved and what is not.
        save_last: Also keep the last one as `last.ckpt`, another name of the same file if that is kept anyway; "link":
            as a symbolic link to the file that was saved last.
        save_top_k: How many to keep; -1 for all, 0 for none.
        save_on_exception: Also save when the run fails.
        save_weights_only: Leave out what only resuming needs.
        mode: "min" if a small metric is good, "max" if a large one is.
        auto_insert_metric_name: Put `name=` in front of the values in file names.
        every_n_train_steps: Save after every so many steps.
        train_time_interval: Save when so much time has passed.
        every_n_epochs: Save after every so many epochs; 1 if no other interval is given, and 0 is never.
        save_on_train_epoch_end: Save at the end of training epochs rather than after validation. By default it
            follows when validation runs.
        enable_version_counter: Do not overwrite files of earlier runs: append `-v1`, `-v2`, ...

    Raises:
        ConfigurationError: For arguments that contradict each other.
        MetricNotLoggedError: While training, if `monitor` is not logged although validation has run.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__()
        self.mode = check_mode(mode, "ModelCheckpoint")
        check_top_k(save_top_k, monitor)
        check_intervals(every_n_train_steps, train_time_interval, every_n_epochs)
        check_save_last(save_last)
        check_filename(filename)
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self.dirpath: str | None = absolute(dirpath) if dirpath else None
        self.filename = filename
        self.current_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(worst_possible(self.mode))
        self.best_model_score: Tensor | None = None
        self.best_model_path = ""
        self.last_model_path = ""
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        self._train_time_interval = train_time_interval
        if every_n_train_steps is None and every_n_epochs is None and train_time_interval is None:
            every_n_epochs = 1
        self._every_n_train_steps, self._every_n_epochs = every_n_train_steps or 0, every_n_epochs or 0
        self._looks_at_steps = bool(self._every_n_train_steps) or train_time_interval is not None
        self._last_global_step_saved, self._last_checkpoint_saved = 0, ""  # before the first step: nothing to save
        self._waits_for_validation = self._has_validated = False
        self._restored_from: str | None = None
        self._trains = True  # until setup says what runs
        self._last_save_s, self._agreement = time.monotonic(), AgreedClock()

    @property
    def every_n_epochs(self) -> int | None:
        """Save after every so many epochs."""
        return self._every_n_epochs

    @property
    def state_key(self) -> str:
        """Two of these are told apart by what they watch and when they save."""
        return self.generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    # ---- when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder, the same on all processes."""
        self.dirpath = trainer.strategy.broadcast(self.folder(trainer))
        self._trains = stage == EntryPoint.FIT
        saves = self._trains and trainer.is_global_zero and self.save_top_k != 0 and not trainer.fast_dev_run
        if saves and self.dirpath and list_dir(self.dirpath):
            rank_zero_warn(f"The checkpoint folder {self.dirpath!r} is not empty. Files in it are not overwritten.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say now if no checkpoint can be written."""
        if self.save_top_k != 0 or self.save_last or self.save_on_exception:
            refuse_unwritable(trainer, self.folder(trainer), pl_module, self.filename)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first time interval begins."""
        self._last_save_s, self._agreement = time.monotonic(), AgreedClock()
        self._has_validated = self._waits_for_validation = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save by steps or by time."""
        if not self._looks_at_steps or self._is_idle(trainer):
            return
        by_steps = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        by_time = self._is_interval_over(trainer)
        if by_time:
            self._last_save_s = time.monotonic()
        if not by_steps and not by_time:
            return
        if self.monitor is not None and gets_fresher(trainer, self.monitor, batch_idx):
            self._waits_for_validation = True
            return
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save by epochs, if not after validation."""
        if self._is_idle(trainer):
            return
        # Validation by the clock may not come after the batch after which it was expected.
        was_let_down = self._waits_for_validation and self.monitor in trainer.callback_metrics
        if was_let_down or (saves_at_epoch_end(trainer, self._save_on_train_epoch_end) and self._is_epoch_due(trainer)):
            self._waits_for_validation = False
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save by epochs, if not at their end; and what waited for the metrics of validation."""
        if trainer.state.fn != EntryPoint.FIT or trainer.sanity_checking:
            return
        self._has_validated = True
        waited, self._waits_for_validation = self._waits_for_validation, False
        if self._is_idle(trainer):
            return
        if waited or (not saves_at_epoch_end(trainer, self._save_on_train_epoch_end) and self._is_epoch_due(trainer)):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """`save_last` is kept, also in a run too short for any interval."""
        if self.save_last and not self._last_checkpoint_saved and not self._is_idle(trainer):
            before = self.last_model_path
            self._save_last(trainer, self._path_of_last(trainer, values_of(trainer)))
            self._remove(trainer, [before])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if so asked."""
        if not self.save_on_exception or self._is_idle(trainer) or self.fails_alone(trainer):
            return
        values = values_of(trainer)
        self._save_checkpoint(trainer, self._free_path(trainer, values, self.filename, reusable=""))
        before = self.last_model_path
        self._save_last(trainer, self._path_of_last(trainer, values))
        self._remove(trainer, [before])

    def _is_idle(self, trainer: Trainer) -> bool:
        return (
            bool(trainer.fast_dev_run)
            or trainer.state.fn != EntryPoint.FIT
            or bool(trainer.sanity_checking)
            or bool(self._last_global_step_saved == trainer.global_step)
        )

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _is_interval_over(self, trainer: Trainer) -> bool:
        if self._train_time_interval is None:
            return False
        remaining_s = self._last_save_s + self._train_time_interval.total_seconds() - time.monotonic()
        return self._agreement.is_over(remaining_s, trainer.strategy, trainer.world_size)

    def _save(self, trainer: Trainer) -> None:
        values, before = values_of(trainer), self.last_model_path
        # Known before anything is saved: it stands in the file that gets this second name.
        last = self._path_of_last(trainer, values)
        outdated = self._save_ranked(trainer, values, last)
        self._save_last(trainer, last)
        self._remove(trainer, [outdated, before])

    def _save_ranked(self, trainer: Trainer, values: dict[str, Any], last: str) -> str | None:
        """Save if it is worth keeping; answer with the path that it replaces."""
        if self.save_top_k == 0:
            return None
        if self.monitor is None:
            replaced = self.best_model_path if self.save_top_k == 1 else ""
            path = self._free_path(trainer, values, self.filename, reusable=self.best_model_path)
            self._save_as(trainer, path, best_model_path=path, last_model_path=last)
            return replaced
        current = values.get(self.monitor)
        if current is None:
            message = not_logged(self.monitor, trainer.callback_metrics, "ModelCheckpoint")
            if self._has_validated:
                raise MetricNotLoggedError(message)
            rank_zero_warn(message)
            return None
        score = torch.as_tensor(current).detach().cpu().clone()
        if not self.check_monitor_top_k(trainer, score):
            self._tell(trainer, f"{self.monitor} = {float(score):.5f} is not among the best {self.save_top_k}.")
            return None
        return self._save_scored(trainer, values, score, last)

    def _save_scored(self, trainer: Trainer, values: dict[str, Any], score: Tensor, last: str) -> str | None:
        before = self._ranking()
        replaced = before.gives_way() or ""
        path = self._free_path(trainer, values, self.filename, reusable=replaced)
        after = before.add(path, float(score))
        scores = {kept: self.best_k_models.get(kept, score) for kept in after.scores}
        scores[path] = torch.full_like(score, after.scores[path]) if torch.isnan(score) else score
        best, worst = after.best or "", after.worst or ""
        is_full = self.save_top_k == -1 or after.is_full
        self._save_as(
            trainer,
            path,
            current_score=scores[path],
            best_k_models=scores,
            kth_best_model_path=worst if is_full else self.kth_best_model_path,
            kth_value=scores[worst] if is_full else self.kth_value,
            best_model_path=best,
            best_model_score=scores[best],
            last_model_path=last,
        )
        self._tell(trainer, f"{self.monitor} = {float(score):.5f} (best {float(scores[best]):.5f}): saved {path!r}.")
        return replaced

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Would a checkpoint with this score be kept? All processes get the same answer."""
        accepted = current is not None and self._ranking().accepts(float(current))
        return current is not None and bool(trainer.strategy.reduce_boolean_decision(accepted))

    def _ranking(self) -> Ranking:
        return Ranking(self.save_top_k, self.mode, {path: float(score) for path, score in self.best_k_models.items()})

    def _save_last(self, trainer: Trainer, path: str) -> None:
        """Give the checkpoint of this step the second name `path`; save it, if there is none."""
        if not self.save_last:
            return
        saved = self._last_checkpoint_saved
        is_saved = self.save_last == "link" or self._last_global_step_saved == trainer.global_step
        if is_saved and saved and saved != path and self.save_top_k != 0 and is_local(path):
            self.last_model_path = path
            give_second_name(trainer, saved, path, symbolic=self.save_last == "link")
        else:
            self._save_as(trainer, path, last_model_path=path)

    def _path_of_last(self, trainer: Trainer, values: dict[str, Any]) -> str:
        if not self.save_last:
            return self.last_model_path
        return self._free_path(trainer, values, self.CHECKPOINT_NAME_LAST, reusable=self.last_model_path)

    def _save_as(self, trainer: Trainer, path: str, **changes: Any) -> None:
        """Save with these changes of state in the checkpoint; if that fails, they did not happen."""
        before = {name: getattr(self, name) for name in changes}
        vars(self).update(changes)
        try:
            self._save_checkpoint(trainer, path)
        except BaseException:
            vars(self).update(before)
            raise

    def _save_checkpoint(self, trainer: Trainer, path: str) -> None:
        with self._saving(trainer, path):
            trainer.save_checkpoint(path, self.save_weights_only)
        self.tell_loggers(trainer, path)

    def _remove(self, trainer: Trainer, outdated: list[str | None]) -> None:
        kept = {self.best_model_path, self.last_model_path, *self.best_k_models}
        gone = [path for path in outdated if path and path not in kept and is_in_folder(path, self.dirpath)]
        remove_outdated(trainer, gone, self.last_model_path)

    def _tell(self, trainer: Trainer, what: str) -> None:
        if self.verbose:
            rank_zero_info(f"Epoch {trainer.current_epoch}, step {trainer.global_step}: {what}")

    # ---- where

    def folder(self, trainer: Trainer) -> str:
        """Where this run's checkpoints are."""
        if self.dirpath is not None:
            return self.dirpath
        if not trainer.loggers:
            return os.path.join(trainer.default_root_dir, "checkpoints")
        return checkpoint_dir(trainer.loggers[0], trainer.default_root_dir)

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path for these metrics.

        >>> ModelCheckpoint(filename="{epoch}-{val_loss:.2f}").format_checkpoint_name({"epoch": 2, "val_loss": 0.5})
        'epoch=2-val_loss=0.50.ckpt'
        """
        template = filename or self.filename or default_template(self.CHECKPOINT_JOIN_CHAR)
        name = fill_template(
            template, metrics, insert_names=self.auto_insert_metric_name, equals=self.CHECKPOINT_EQUALS_CHAR
        )
        parts = [prefix, name, None if ver is None else f"v{ver}"]
        name = self.CHECKPOINT_JOIN_CHAR.join(part for part in parts if part) + self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    def _free_path(self, trainer: Trainer, values: dict[str, Any], template: str | None, reusable: str) -> str:
        """The path to save to: `reusable` may be overwritten, other files only without version counter."""

        def is_taken(path: str) -> bool:
            return self._enable_version_counter and path != reusable and self.file_exists(path, trainer)

        def versions(version: int | None) -> str:
            return self.format_checkpoint_name(values, template, version)

        return first_free(versions, is_taken, starting_version=self.STARTING_VERSION)

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Is there such a file? What rank zero sees counts for all processes."""
        trainer.strategy.checkpoint_io.wait()  # it may just be written
        return bool(trainer.strategy.broadcast(exists(os.fspath(filepath))))

    def find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """The files that `save_last` has left in the folder, also in earlier runs."""
        folder = self.folder(trainer)
        return {os.path.join(folder, name) for name in list_dir(folder) if self.is_last_name(name)}

    def is_last_name(self, name: str) -> bool:
        """Is it the name of a file that `save_last` leaves?"""
        pattern = pattern_of(self.CHECKPOINT_NAME_LAST, join=self.CHECKPOINT_JOIN_CHAR, extension=self.FILE_EXTENSION)
        return pattern.fullmatch(name) is not None

    def checkpoints_by_score(self) -> list[str]:
        """What this callback keeps, the best first."""
        paths = [self.best_model_path, *best_first(self._ranking().scores, self.best_model_path)]
        return list(filter(None, dict.fromkeys(paths)))

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """The ranking, and where the files are."""
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": dict(self.best_k_models),
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the ranking, if the files are in this folder too, also after it was moved."""
        saved_dir = state_dict.get("dirpath", self.dirpath)
        if self.dirpath is None:  # set up in another process, whose state comes home
            self.dirpath = saved_dir
        if self.dirpath != saved_dir and (moved := moved_ranking(state_dict, self.dirpath or "")) is not None:
            state_dict, saved_dir = moved, self.dirpath
        if self.dirpath == saved_dir:
            self._last_global_step_saved = max(self._last_global_step_saved, self._restored_step)
            self.best_model_score = state_dict["best_model_score"]
            self.current_score = state_dict.get("current_score", self.current_score)
            self.kth_best_model_path = state_dict.get("kth_best_model_path", self.kth_best_model_path)
            self.kth_value = state_dict.get("kth_value", self.kth_value)
            self.best_k_models = dict(state_dict.get("best_k_models", self.best_k_models))
            self.last_model_path = state_dict.get("last_model_path", self.last_model_path)
        elif self._trains:  # an evaluation ranks nothing
            rank_zero_warn(
                f"ModelCheckpoint(dirpath={self.dirpath!r}) goes on from a run that saved to {saved_dir!r}."
                " Its ranking belongs to the files there. Only best_model_path is taken over; ranking starts afresh."
            )
        best = state_dict["best_model_path"]
        self.best_model_path = refound(best, saved_dir, [self._restored_from]) or best

    def to_yaml(self, filepath: str | Path | None = None) -> None:
        """Write the kept paths with their scores; by default to `best_k_models.yaml` in the folder."""
        import yaml

        path = os.fspath(filepath) if filepath is not None else os.path.join(self.dirpath or "", "best_k_models.yaml")
        with get_filesystem(path).open(path, "w") as file:
            yaml.safe_dump({kept: float(score) for kept, score in self.best_k_models.items()}, file)
