"""The base of a checkpoint IO that wraps another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.fabric.arguments import check_part
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.types import PathLike


class WrappingCheckpointIO(CheckpointIO):
    """Hands everything on to another checkpoint IO; override what should be different.

    Args:
        checkpoint_io: The other one; `TorchCheckpointIO` by default.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        check_part(self, "checkpoint_io", checkpoint_io, method="save_checkpoint", kind="CheckpointIO")
        self._checkpoint_io = checkpoint_io

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The checkpoint IO that is wrapped."""
        if self._checkpoint_io is None:
            from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO

            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO | None) -> None:
        self._checkpoint_io = checkpoint_io

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As that of the wrapped one."""
        return self.checkpoint_io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: PathLike) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.remove_checkpoint(path)

    def save_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.save_sharded(path, state, process_group=process_group)

    def load_sharded(self, path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.load_sharded(path, state, process_group=process_group)

    @property
    def saves_in_background(self) -> bool:
        """As that of the wrapped one."""
        return self.checkpoint_io.saves_in_background

    def poll(self) -> list[PathLike]:
        """As that of the wrapped one."""
        return self.checkpoint_io.poll()

    def wait(self) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.wait()

    def after_saves(self, job: Callable[[], None]) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.after_saves(job)

    def teardown(self) -> None:
        """As that of the wrapped one."""
        self.checkpoint_io.teardown()
