"""MPI: processes that `mpiexec`, `mpirun` or a cluster manager with MPI started. Needs the package mpi4py."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from fulmen.fabric.environments.base import ClusterEnvironment, check_host, read_int
from fulmen.fabric.environments.reserved_port import ReservedPort
from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import require

# What Open MPI, MPICH and its kin (Intel MPI, MVAPICH, Cray), and Microsoft MPI tell the processes that they start.
_SIGNS: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")


class MPIEnvironment(ClusterEnvironment):
    """The processes of an MPI program. Every one of them must make this object.

    Where the processes meet is agreed upon by MPI when the object is made; nothing waits for others afterwards.

    Raises:
        MissingPackageError: If mpi4py, or the MPI that it needs, is not installed.
    """

    def __init__(self) -> None:
        world = _world()
        self._global_rank: int = world.Get_rank()
        self._world_size: int = world.Get_size()
        hosts = world.allgather(socket.gethostname())
        self._local_rank, self._local_world_size, self._node_rank = place_among(hosts, self._global_rank)
        self._hosts: list[str] = list(dict.fromkeys(hosts))
        self._reserved = ReservedPort(self._hosts[0]) if self._global_rank == 0 else None
        self._main_port: int = world.bcast(None if self._reserved is None else self._reserved.number, root=0)

    @property
    def creates_processes_externally(self) -> bool:
        """True: MPI starts them."""
        return True

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, or the host of rank 0."""
        return os.environ.get("MASTER_ADDR") or check_host(self._hosts[0], "MPI")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or a port that was free on the host of rank 0."""
        return read_int("MASTER_PORT", self._main_port)

    def listening_socket(self) -> int | None:
        """On rank 0 the one that keeps the port; None where `MASTER_PORT` says another."""
        is_ours = self._reserved is not None and self._reserved.number == self.main_port
        return self._reserved.descriptor() if self._reserved is not None and is_ours else None

    @staticmethod
    def detect() -> bool:
        """Is this process one of several that MPI started?

        Looking into mpi4py starts MPI, so that is done only where a launcher has left a sign, or the program did it.
        """
        if not any(sign in os.environ for sign in _SIGNS) and "mpi4py" not in sys.modules:
            return False
        try:
            return bool(_world().Get_size() > 1)
        except MissingPackageError:
            return False

    def world_size(self) -> int:
        """Number of processes of MPI's world."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """Nothing: MPI knows."""

    def global_rank(self) -> int:
        """Rank in MPI's world."""
        return self._global_rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: MPI knows."""

    def local_rank(self) -> int:
        """How many processes of lower rank run on this host."""
        return self._local_rank

    def node_rank(self) -> int:
        """The place of this host among all, in the order of ranks."""
        return self._node_rank

    def local_world_size(self) -> int | None:
        """Number of processes on this host."""
        return self._local_world_size

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a number of processes that is not MPI's.

        Raises:
            ConfigurationError: If there are other numbers of processes or of hosts than asked for.
        """
        if (num_devices, num_nodes) == (self._local_world_size, len(self._hosts)):
            return
        raise ConfigurationError(
            f"devices={num_devices} and num_nodes={num_nodes} do not fit the processes that MPI started:"
            f" {self._world_size} on {len(self._hosts)} host(s), {self._local_world_size} of them on this one."
            " One process runs on each device."
            f" Pass num_nodes={len(self._hosts)} and devices='auto', or start another number of processes."
        )


def place_among(hosts: Sequence[str], rank: int) -> tuple[int, int, int]:
    """Local rank, number of processes on the same host, and number of the host, for the process of this rank.

    >>> place_among(["b", "a", "b"], 2)
    (1, 2, 0)

    Args:
        hosts: The host of each process, by rank.
    """
    mine = hosts[rank]
    return list(hosts[:rank]).count(mine), list(hosts).count(mine), list(dict.fromkeys(hosts)).index(mine)


def _world() -> Any:
    return require("mpi4py.MPI", purpose="MPIEnvironment()").COMM_WORLD
