"""torchrun: processes that torch's own launcher started."""

from __future__ import annotations

import os

import torch.distributed

from fulmen.fabric.environments.base import ClusterEnvironment, read_int
from fulmen.fabric.errors import ConfigurationError


class TorchElasticEnvironment(ClusterEnvironment):
    """The processes of `torchrun`; everything is read from the variables that it sets."""

    @property
    def creates_processes_externally(self) -> bool:
        """True: torchrun starts them."""
        return True

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`."""
        return read_int("MASTER_PORT")

    @staticmethod
    def detect() -> bool:
        """Did torchrun start this process?"""
        return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()

    def world_size(self) -> int:
        """`WORLD_SIZE`."""
        return read_int("WORLD_SIZE")

    def set_world_size(self, size: int) -> None:
        """Nothing: torchrun knows."""

    def global_rank(self) -> int:
        """`RANK`."""
        return read_int("RANK")

    def set_global_rank(self, rank: int) -> None:
        """Nothing: torchrun knows."""

    def local_rank(self) -> int:
        """`LOCAL_RANK`."""
        return read_int("LOCAL_RANK")

    def node_rank(self) -> int:
        """`GROUP_RANK`, or 0."""
        return read_int("GROUP_RANK", 0)

    def local_world_size(self) -> int | None:
        """`LOCAL_WORLD_SIZE`."""
        return read_int("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else None

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a number of processes that is not torchrun's.

        Raises:
            ConfigurationError: If `num_devices * num_nodes` is not `WORLD_SIZE`.
        """
        if num_devices * num_nodes != self.world_size():
            raise ConfigurationError(
                f"devices={num_devices} and num_nodes={num_nodes} ask for {num_devices * num_nodes} processes,"
                f" and torchrun started {self.world_size()}. Both must say the same."
                " Pass devices='auto' with the right num_nodes, or change torchrun's --nproc-per-node or --nnodes."
            )
