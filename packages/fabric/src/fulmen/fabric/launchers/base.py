"""Start the processes that a strategy needs; what all ways to do so share.

A run's processes live and die together: when one fails, its launcher ends the others within seconds; when the process
that started them is gone, so are they.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ConfigurationError

# From the first sign of a failure, how long others may report theirs: errors come in a burst, and the loudest is seldom
# the first. Longer while all that is known is that some process is gone.
GATHER_S = 0.3
GATHER_CAUSE_S = 1.5
# From asking a process to end because another one failed, to killing it.
TERMINATE_S = 1.0
# Where the whole run was asked to end (SIGTERM, Ctrl-C), each process may save what it has first. As long as torchrun
# and cluster managers wait.
GRACE_S = 30.0
# Where one process was killed by such a signal because it did not listen yet: nobody saves together with it.
UNHEARD_GRACE_S = 1.0


class Launcher(ABC):
    """Starts processes and runs a function in each."""

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Does it work in a notebook or at the Python prompt?"""

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in every process; what it returned on rank 0, or in this process."""

    def kill(self, signum: int) -> None:  # noqa: B027 (no processes, nothing to kill)
        """Send the signal to every process that this launcher started."""


def host_store(environment: ClusterEnvironment, num_processes: int) -> Any:
    """The key-value store at which the processes meet, kept by this process; None on all nodes but the first.

    Raises:
        ConfigurationError: If the port is taken.
    """
    if environment.node_rank() != 0:
        return None
    address, port = environment.main_address, environment.main_port
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
            address,
            port,
            num_processes,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=environment.listening_socket(),
        )
    except RuntimeError as error:
        raise ConfigurationError(
            f"MASTER_ADDR={address!r}, MASTER_PORT={port} cannot be used to meet: {error}"
            " The first node must be able to open this port."
            " Set MASTER_PORT to a free port, or leave it unset on a single machine."
        ) from error


def process_variables(
    environment: ClusterEnvironment, local_rank: int, num_processes: int, num_nodes: int
) -> dict[str, str]:
    """The environment variables that tell a process its place.

    Args:
        environment: Knows the node and where to meet.
        local_rank: Of the process.
        num_processes: Per node.
        num_nodes: Number of nodes.
    """
    node_rank = environment.node_rank()
    return {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(node_rank),
        "LOCAL_RANK": str(local_rank),
        "RANK": str(node_rank * num_processes + local_rank),
        "WORLD_SIZE": str(num_processes * num_nodes),
        # The launcher keeps the store, so no process needs to. torch's own launcher says it in the same words.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def die_with_parent(parent: int | None = None) -> None:
    """From now on, this process is killed when the one that started it is gone, however that ended.

    Args:
        parent: The process id of the latter, if it is known: it may be gone already.
    """
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    elif sys.platform != "win32":
        watched = os.getppid()
        threading.Thread(target=_poll_parent, args=(watched,), daemon=True).start()
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
