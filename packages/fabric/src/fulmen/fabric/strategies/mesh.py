"""What strategies share that split modules over a mesh of processes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh

from fulmen.fabric.errors import NotLaunchedError
from fulmen.fabric.strategies.sharded import ShardedStrategy


class MeshStrategy(ShardedStrategy, ABC):
    """Modules are made on the CPU, or without memory, and split over a mesh.

    A subclass makes the mesh in `setup_environment`.
    """

    _mesh: DeviceMesh | None = None

    @property
    def device_mesh(self) -> DeviceMesh:
        """The processes, ordered along axes.

        Raises:
            NotLaunchedError: If they have not been started.
        """
        if self._mesh is None:
            raise NotLaunchedError(
                f"{type(self).__name__}.device_mesh was read before the processes were started. A mesh is made of"
                " processes. Call `fabric.launch()` first."
            )
        return self._mesh

    @contextmanager
    def module_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside have the right type, and are on the CPU until they are split.

        Args:
            empty_init: Make them on the meta device: without memory, until they are split.
        """
        with ExitStack() as stack:
            stack.enter_context(self.precision.module_init_context())
            if empty_init:
                stack.enter_context(torch.device("meta"))
            yield
