"""Save, load, remove one checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fulmen.fabric.types import PathLike


class CheckpointIO(ABC):
    """Where checkpoints go and how they are written; subclass it to bring your own storage.

    A strategy calls it on the processes that have something to save, with everything already collected in one dict.
    """

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all.

        Args:
            checkpoint: Tensors and plain data.
            path: A file or folder, local or remote.
            storage_options: Whatever this storage takes.
        """

    @abstractmethod
    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what was saved at `path`.

        Args:
            path: As for `save_checkpoint`.
            map_location: The device for the tensors, or what `torch.load` takes.
            weights_only: False lets the file bring classes and run code; None is True.
        """

    @abstractmethod
    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove what was saved at `path`; nothing happens if there is nothing."""

    def save_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """Write `state` to the folder `path`, each process its own shards; see `checkpoint_io.save_sharded`.

        Strategies that split a model call it on all processes. Override it for a storage with a layout of its own.
        """
        from fulmen.fabric.checkpoint_io.sharded import save_sharded

        save_sharded(path, state, process_group=process_group)

    def load_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """Fill `state` from the folder `path`; see `checkpoint_io.load_sharded`."""
        from fulmen.fabric.checkpoint_io.sharded import load_sharded

        load_sharded(path, state, process_group=process_group)

    @property
    def saves_in_background(self) -> bool:
        """Does a save return before the checkpoint is on the disk? Then `poll`, `wait` and `after_saves` say more."""
        return False

    def poll(self) -> list[PathLike]:
        """The checkpoints of background saves that have come to the disk since the last call. Waits for nothing.

        Raises:
            CheckpointError: Or whatever a save in the background has failed with.
        """
        return []

    def wait(self) -> None:
        """Wait until every checkpoint that was begun is on the disk.

        Raises:
            CheckpointError: Or whatever a save in the background has failed with.
        """
        return None

    def after_saves(self, job: Callable[[], None]) -> None:
        """Call `job` once every checkpoint that was begun is on the disk: now, unless saves go on in the background.

        If one of them fails, it is not called.
        """
        job()

    def teardown(self) -> None:
        """Finish what is going on in the background, before the process ends."""
        return None
