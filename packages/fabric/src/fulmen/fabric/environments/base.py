"""Who am I among the processes of a run, and who leads it?

An environment answers from what started the processes (a cluster manager, `torchrun`, or our own launchers). It opens
no connection and starts no process.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod

from fulmen.fabric.errors import ConfigurationError

# Names and IP addresses, with dots, dashes and colons; nothing that means something to a shell or in a path.
_HOST = re.compile(r"(?!-)[A-Za-z0-9._:%-]{1,255}")


class ClusterEnvironment(ABC):
    """The place of this process in a run. Users may subclass it for cluster managers of their own.

    Ranks are 0-based: `global_rank` counts over all nodes, `local_rank` within this node.
    """

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Does something else than our launchers start the processes?"""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Host name or IP address of the node of rank 0."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """The port on the main node at which the processes find each other."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Does this process run in such an environment?"""

    @abstractmethod
    def world_size(self) -> int:
        """Number of processes over all nodes."""

    @abstractmethod
    def set_world_size(self, size: int) -> None:
        """Told by the strategy; an environment that knows better ignores it."""

    @abstractmethod
    def global_rank(self) -> int:
        """Rank over all nodes."""

    @abstractmethod
    def set_global_rank(self, rank: int) -> None:
        """Told by the strategy; an environment that knows better ignores it."""

    @abstractmethod
    def local_rank(self) -> int:
        """Rank within this node."""

    @abstractmethod
    def node_rank(self) -> int:
        """Rank of this node."""

    def local_world_size(self) -> int | None:
        """Number of processes on this node, if the environment knows it before anybody says how many devices to use."""
        return None

    def listening_socket(self) -> int | None:
        """A descriptor of a socket that listens at `main_port` already, for its taker to close; None if there is none.

        So an environment that chooses the port itself can keep others from taking it meanwhile.
        """
        return None

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:  # noqa: B027 (nothing to check is an answer)
        """Raise a `ConfigurationError` if the processes that exist are not `num_devices` on `num_nodes` nodes each."""

    def teardown(self) -> None:  # noqa: B027 (nothing to undo is an answer)
        """Undo what this environment changed in the process."""


def read_int(variable: str, default: int | None = None, *, tool: str = "torchrun") -> int:
    """The environment variable as a number.

    Args:
        variable: Its name.
        default: Stands in where it is not set.
        tool: What sets it; named in the error.

    Raises:
        ConfigurationError: If it is no number, or is missing and there is no default.
    """
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    try:
        return int(text if text is not None else "")
    except ValueError:
        raise ConfigurationError(
            f"The environment variable {variable} is {'not set' if text is None else repr(text)}."
            " It must hold a whole number: the place of this process among all processes is read from it."
            f" Set {variable}, or start the program with the tool that sets it (such as {tool})."
        ) from None


def check_host(name: str, source: str) -> str:
    """`name`, if it can be a host name or an IP address.

    Args:
        name: What was read.
        source: Where it comes from; quoted in the error.

    Raises:
        ConfigurationError: If it holds anything else.
    """
    if _HOST.fullmatch(name) is None:
        raise ConfigurationError(
            f"{source} names the host {name!r}. It is neither a host name nor an IP address, and the processes would"
            " try to meet there. Set MASTER_ADDR to the address of the node of rank 0."
        )
    return name
