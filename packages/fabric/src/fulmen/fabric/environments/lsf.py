"""LSF: processes that IBM's `jsrun` started."""

from __future__ import annotations

import os
import socket
from typing import Final

from fulmen.fabric.environments.base import ClusterEnvironment, check_host, read_int
from fulmen.fabric.errors import ConfigurationError

_NEEDED: Final = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
_FIRST_PORT: Final = 10000


class LSFEnvironment(ClusterEnvironment):
    """The tasks of an LSF job, one per process, started by `jsrun` (the Job Step Manager).

    Read are `JSM_NAMESPACE_RANK`, `JSM_NAMESPACE_SIZE`, `JSM_NAMESPACE_LOCAL_RANK`, `LSB_JOBID` and the file
    `LSB_DJOB_RANKFILE`, which lists the hosts: the node from which the job was launched, and then those that compute.
    """

    def __init__(self) -> None:
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigurationError(
                f"LSFEnvironment() needs {', '.join(missing)}, which is not set."
                " The place of this process among all processes is read from it."
                " Start the program by `jsrun` in an LSF job, or leave the environment out."
            )
        hosts = _read_hosts(os.environ["LSB_DJOB_RANKFILE"])
        self._main_address = hosts[0]
        self._node_rank = _find_host(hosts, socket.gethostname())

    @property
    def creates_processes_externally(self) -> bool:
        """True: `jsrun` starts them."""
        return True

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, or the first host that computes."""
        return os.environ.get("MASTER_ADDR", self._main_address)

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or a port made of the job's number, the same in all its processes."""
        if "MASTER_PORT" in os.environ:
            return read_int("MASTER_PORT")
        return _FIRST_PORT + read_int("LSB_JOBID") % 1000

    @staticmethod
    def detect() -> bool:
        """Did `jsrun` start this process?"""
        return all(name in os.environ for name in _NEEDED)

    def world_size(self) -> int:
        """`JSM_NAMESPACE_SIZE`."""
        return read_int("JSM_NAMESPACE_SIZE", tool="jsrun")

    def set_world_size(self, size: int) -> None:
        """Nothing: LSF knows."""

    def global_rank(self) -> int:
        """`JSM_NAMESPACE_RANK`."""
        return read_int("JSM_NAMESPACE_RANK", tool="jsrun")

    def set_global_rank(self, rank: int) -> None:
        """Nothing: LSF knows."""

    def local_rank(self) -> int:
        """`JSM_NAMESPACE_LOCAL_RANK`."""
        return read_int("JSM_NAMESPACE_LOCAL_RANK", tool="jsrun")

    def node_rank(self) -> int:
        """The place of this host among those that compute."""
        return self._node_rank

    def local_world_size(self) -> int | None:
        """`JSM_NAMESPACE_LOCAL_SIZE`, if it is set."""
        return read_int("JSM_NAMESPACE_LOCAL_SIZE") if "JSM_NAMESPACE_LOCAL_SIZE" in os.environ else None

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a number of processes that is not that of the job's tasks.

        Raises:
            ConfigurationError: If there are other numbers of tasks than asked for.
        """
        on_node = self.local_world_size()
        if num_devices * num_nodes != self.world_size() or on_node not in (None, num_devices):
            where = "" if on_node is None else f", {on_node} of them on this node"
            raise ConfigurationError(
                f"devices={num_devices} and num_nodes={num_nodes} ask for {num_devices * num_nodes} processes,"
                f" and jsrun started {self.world_size()}{where}. One process runs on each device."
                " Pass the devices and num_nodes of the job, or change the resource sets of jsrun."
            )


def _read_hosts(path: str) -> list[str]:
    """The hosts that compute, each once, in the order of the rank file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise ConfigurationError(
            f"The environment variable LSB_DJOB_RANKFILE is {path!r}, which cannot be read: {error}."
            " It lists the hosts of the job. Start the program by `jsrun` in an LSF job, or leave the environment out."
        ) from error
    if not lines:
        raise ConfigurationError(
            f"The file {path!r} (LSB_DJOB_RANKFILE) is empty. It lists the hosts of the job."
            " Start the program by `jsrun` in an LSF job, or leave the environment out."
        )
    # The first line is the node from which the job was launched; it computes only if it is listed again.
    return [check_host(host, f"The file {path!r} (LSB_DJOB_RANKFILE)") for host in dict.fromkeys(lines[1:] or lines)]


def _find_host(hosts: list[str], mine: str) -> int:
    if mine in hosts:
        return hosts.index(mine)
    # One of the two names may have a domain.
    short = [host.split(".")[0] for host in hosts]
    if mine.split(".")[0] in short:
        return short.index(mine.split(".")[0])
    raise ConfigurationError(
        f"This host calls itself {mine!r}, and the rank file of LSF lists {', '.join(hosts[:8])}."
        " The number of this node is its place in that list."
        " Start the program by `jsrun`, on the nodes of the job."
    )
