"""Save in a thread: the caller waits only for the copy to memory."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from fulmen.fabric.arguments import check_function
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.checkpoint_io.safe import CANNOT_PICKLE, cannot_be_saved
from fulmen.fabric.checkpoint_io.shards import plan_shards, write_shards
from fulmen.fabric.checkpoint_io.staging import Staging
from fulmen.fabric.checkpoint_io.wrapper import WrappingCheckpointIO
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.types import PathLike

_OF_THIS_PROCESS = ("_staging", "_state", "_jobs", "_thread", "_failure", "_durable", "_groups")


class AsyncCheckpointIO(WrappingCheckpointIO):
    """Saves in a thread what another checkpoint IO would save at once. The file is the same.

    A save copies the state to memory and returns; the state may change after that. Only one save is under way: the next
    one waits for it. What is removed goes only when the saves before have succeeded, so that a failed save never costs
    an older checkpoint. A failed save is raised by the next call of any method, by `poll`, and by `teardown`; the
    process does not end before the last save is on the disk.

    One more copy of the state is held in memory until `teardown`.

    Args:
        checkpoint_io: Writes the checkpoints; `TorchCheckpointIO` by default.
        on_durable: Called with the path of each checkpoint once it is on the disk, in the thread that wrote it.
    """

    def __init__(
        self, checkpoint_io: CheckpointIO | None = None, on_durable: Callable[[PathLike], Any] | None = None
    ) -> None:
        super().__init__(checkpoint_io)
        check_function(self, "on_durable", on_durable, "It is called with the path of each checkpoint on the disk.")
        self.on_durable = on_durable
        self._begin_idle()

    def _begin_idle(self) -> None:
        self._staging = Staging()
        self._state = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._durable: list[PathLike] = []
        self._groups: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Another process has its own thread and its own copy; what is under way here stays here.
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_idle()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Copy `checkpoint`, and write it to `path` in the background.

        Raises:
            CheckpointError: If something in it cannot be copied, or an earlier save has failed.
        """
        self.wait()
        try:
            copied = self._staging.copy(checkpoint)
        except CANNOT_PICKLE as error:
            raise cannot_be_saved(path, checkpoint, str(error)) from error
        self._begin(lambda: self.checkpoint_io.save_checkpoint(copied, path, storage_options), path)

    def save_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """Copy the shards of this process, and write them to the folder `path` in the background. Collective.

        Raises:
            ConfigurationError: If the wrapped checkpoint IO has a sharded layout of its own.
            CheckpointError: As `save_checkpoint`.
        """
        if type(self.checkpoint_io).save_sharded is not CheckpointIO.save_sharded:
            raise ConfigurationError(
                f"{type(self).__name__} cannot save shards through {type(self.checkpoint_io).__name__} in the"
                " background. That writes sharded folders in its own way, which the copy for the thread would not"
                " reach. Use one of the two alone."
            )
        ranks = Ranks(process_group)
        # What failed on one process only must not leave the others waiting for it.
        ranks.each(self.wait)
        shards = plan_shards(path, state, ranks)
        items = [item for item, _ in shards.tensors]
        copies = ranks.each(lambda: self._staging.copy_tensors(tensor for _, tensor in shards.tensors))
        shards.tensors = list(zip(items, copies, strict=True))
        own_ranks = Ranks(self._own_group(process_group)) if ranks.world_size > 1 else ranks
        self._begin(lambda: write_shards(path, shards, own_ranks), path)

    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As that of the wrapped one, after what is under way."""
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def load_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """As that of the wrapped one, after what is under way."""
        self.wait()
        super().load_sharded(path, state, process_group=process_group)

    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove a checkpoint, after the saves before have succeeded; if one fails, it stays."""
        self.after_saves(lambda: super(AsyncCheckpointIO, self).remove_checkpoint(path))

    @property
    def saves_in_background(self) -> bool:
        """True."""
        return True

    def after_saves(self, job: Callable[[], None]) -> None:
        """Call `job` in the thread, after the saves before have succeeded; if one fails, it is not called.

        Raises:
            CheckpointError: Or whatever the background save has failed with.
        """
        self._raise_failure()
        self._submit(job)

    def poll(self) -> list[PathLike]:
        """The checkpoints that have come to the disk since the last call. Waits for nothing.

        Raises:
            CheckpointError: Or whatever the background save has failed with.
        """
        self._raise_failure()
        if not self._durable:
            return []
        with self._state:
            durable, self._durable = self._durable, []
        return durable

    def wait(self) -> None:
        """Wait until all that was begun is on the disk.

        Raises:
            CheckpointError: Or whatever the background save has failed with.
        """
        with self._state:
            self._state.wait_for(lambda: self._thread is None)
        self._raise_failure()

    def teardown(self) -> None:
        """Wait for the last save, give the memory back, and end the wrapped one.

        Raises:
            CheckpointError: Or whatever the background save has failed with.
        """
        try:
            self.wait()
        finally:
            self._staging.release()
            self._close_groups()
            super().teardown()

    def _begin(self, save: Callable[[], None], path: PathLike) -> None:
        def job() -> None:
            save()
            with self._state:
                self._durable.append(path)
            if self.on_durable is not None:
                self.on_durable(path)

        self._submit(job)

    def _submit(self, job: Callable[[], None]) -> None:
        with self._state:
            # What comes before may have failed since the caller asked: then this must not be done.
            is_taken = self._failure is None
            if is_taken:
                self._jobs.append(job)
            if is_taken and self._thread is None:
                # Not a daemon: the process does not end before it has.
                self._thread = threading.Thread(target=self._work, name="fulmen-save", daemon=False)
                self._thread.start()
        if not is_taken:
            self._raise_failure()

    def _work(self) -> None:
        while True:
            with self._state:
                if not self._jobs:
                    self._thread = None
                    self._state.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:
                with self._state:
                    self._failure = error
                    self._jobs.clear()
                if not threading.main_thread().is_alive():
                    # Nobody will ask any more.
                    traceback.print_exception(error, file=sys.stderr)

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        with self._state:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _own_group(self, process_group: Any | None) -> Any:
        """A group for the thread: two threads in one group would take each other's messages."""
        import torch.distributed as dist

        if process_group not in self._groups:
            if process_group is None:
                self._groups[process_group] = dist.new_group(backend="gloo")
            else:
                ranks = dist.get_process_group_ranks(process_group)
                self._groups[process_group] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        return self._groups[process_group]

    def _close_groups(self) -> None:
        import torch.distributed as dist

        groups, self._groups = self._groups, {}
        if dist.is_available() and dist.is_initialized():
            for group in groups.values():
                dist.destroy_process_group(group)
