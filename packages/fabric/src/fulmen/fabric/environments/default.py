"""The environment without a cluster manager: what our launchers set, or the user by hand.

Read are `MASTER_ADDR`, `MASTER_PORT`, `WORLD_SIZE`, `NODE_RANK`, `LOCAL_RANK` and `RANK`.
"""

from __future__ import annotations

import os
import socket

from fulmen.fabric.environments.base import ClusterEnvironment, read_int
from fulmen.fabric.environments.reserved_port import ReservedPort
from fulmen.fabric.errors import ConfigurationError


class LightningEnvironment(ClusterEnvironment):
    """One machine or several, without a cluster manager.

    On one machine the launchers fill in everything. On several, start the program on each with `MASTER_ADDR`,
    `MASTER_PORT` and `NODE_RANK` set. If `LOCAL_RANK` is set too, every process has been started by hand.
    """

    def __init__(self) -> None:
        # Processes that exist already know their place before any strategy tells them.
        exists = self.creates_processes_externally
        self._reserved: ReservedPort | None = None
        self._global_rank = read_int("RANK", read_int("LOCAL_RANK")) if exists else 0
        self._world_size = read_int("WORLD_SIZE", 1) if exists else 1

    @property
    def creates_processes_externally(self) -> bool:
        """True where `LOCAL_RANK` is set."""
        return "LOCAL_RANK" in os.environ

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, or this machine."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or a free port, which then stays the same, and is kept for this run."""
        if "MASTER_PORT" in os.environ:
            return read_int("MASTER_PORT")
        if self._reserved is None:
            self._reserved = ReservedPort(self.main_address)
        return self._reserved.number

    def listening_socket(self) -> int | None:
        """The one that keeps the free port; None where `MASTER_PORT` says another."""
        port = self.main_port
        return self._reserved.descriptor() if self._reserved is not None and self._reserved.number == port else None

    @staticmethod
    def detect() -> bool:
        """Always true: this is where everything else is not."""
        return True

    def world_size(self) -> int:
        """Number of processes; 1 until the strategy or the launcher says so."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """Take the number of processes from the strategy."""
        self._world_size = size

    def global_rank(self) -> int:
        """Rank of this process; 0 until the strategy or the launcher says so."""
        return self._global_rank

    def set_global_rank(self, rank: int) -> None:
        """Take the rank from the strategy."""
        self._global_rank = rank

    def local_rank(self) -> int:
        """`LOCAL_RANK`, or 0."""
        return read_int("LOCAL_RANK", 0)

    def node_rank(self) -> int:
        """`NODE_RANK` or `GROUP_RANK`, or 0."""
        return read_int("NODE_RANK", read_int("GROUP_RANK", 0))

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse settings that would leave processes waiting for others that do not come.

        Raises:
            ConfigurationError: If the processes that exist are not as many, or several nodes have no place to meet.
        """
        wanted = num_devices * num_nodes
        if self.creates_processes_externally and "WORLD_SIZE" in os.environ and read_int("WORLD_SIZE") != wanted:
            raise ConfigurationError(
                f"devices={num_devices} and num_nodes={num_nodes} ask for {wanted} processes,"
                f" and this program runs as {os.environ['WORLD_SIZE']} already (WORLD_SIZE)."
                " The number of processes cannot change while a program runs."
                " Pass the same devices and num_nodes everywhere in the program, or split it into two programs."
            )
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if num_nodes > 1 and missing:
            raise ConfigurationError(
                f"num_nodes={num_nodes} was asked for, and {', '.join(missing)} is not set."
                " Without a cluster manager the nodes cannot find each other by themselves."
                " Set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node, or start the program with torchrun."
            )


def find_free_network_port() -> int:
    """A TCP port on this machine that nobody uses now; the next moment, somebody may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
