"""Open and close the process group of a run; which backend; barriers.

There is one group per process. It stays open until the process ends, so that a program may fit and then test.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from datetime import timedelta
from types import TracebackType
from typing import Any, Final

import torch
import torch.distributed as dist

from fulmen.fabric.ending import exit_within
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ConfigurationError, ProcessFailedError
from fulmen.fabric.gloo_threads import close_group

default_pg_timeout: Final = timedelta(seconds=1800)

# Set for processes whose launcher (torchrun or ours) keeps the store; else rank 0 keeps it.
_HOSTED = "TORCHELASTIC_USE_AGENT_STORE"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_EXIT_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.2


class _Opened:
    """How many groups this process has opened: stores outlive groups, and old keys must not be read."""

    num_groups = 0
    num_connections = 0
    last: weakref.ref[Any] | None = None
    pid = 0  # of the process that opened the last one


def is_initialized() -> bool:
    """Is there an open process group?"""
    return dist.is_available() and dist.is_initialized()


def default_backend(device: torch.device) -> str:
    """The backend that talks between devices of this type."""
    return "nccl" if device.type == "cuda" else "gloo"


def check_backend(backend: str) -> None:
    """Refuse a backend that this build of torch does not have.

    Args:
        backend: "gloo", or one for each kind of device: "cpu:gloo,cuda:nccl".

    Raises:
        ConfigurationError: If so.
    """
    if not dist.is_available():
        raise ConfigurationError(
            f"process_group_backend={backend!r} is not available. This build of torch has no torch.distributed."
            " Install a build with it, or pass devices=1."
        )
    absent = {
        name for name, is_there in (("nccl", dist.is_nccl_available), ("mpi", dist.is_mpi_available)) if not is_there()
    }
    known = [name for name in dist.Backend.backend_list if name not in {"undefined", *absent}]
    for part in backend.split(","):
        name = part.rpartition(":")[2].strip().lower()
        if name not in known:
            raise ConfigurationError(
                f"process_group_backend={backend!r} cannot be used: this build of torch has no {name!r}."
                f" It has: {', '.join(known)}. Pass one of these, or leave it out to take what fits the device."
            )


def init_distributed(
    environment: ClusterEnvironment,
    backend: str,
    timeout: timedelta | None = default_pg_timeout,
    device_id: torch.device | None = None,
) -> None:
    """Open the process group, together with all other processes. Does nothing if it is open.

    Args:
        environment: Says the rank of this process and where to meet.
        backend: "gloo", "nccl", or any that torch knows.
        timeout: How long a collective waits for the others.
        device_id: The device of this process, for a backend that binds to one.

    Raises:
        ConfigurationError: If torch has no such backend, or another group is open, or one from before a fork.
        ProcessFailedError: If not all processes have come within the timeout.
    """
    check_backend(backend)
    rank, world_size = environment.global_rank(), environment.world_size()
    if dist.is_initialized():
        if _is_inherited():
            raise ConfigurationError(
                "This process was forked from one that had a process group open. Of that group it has no threads, and"
                " would wait for them without end. Run what forks first, pass start_method='spawn' to the strategy, or"
                " split the program into two."
            )
        if dist.get_world_size() != world_size:
            raise ConfigurationError(
                f"{world_size} processes were asked for, and a process group of {dist.get_world_size()} is open."
                " The number of processes cannot change while a program runs."
                " Pass the same devices and num_nodes everywhere in the program, or split it into two programs."
            )
        return
    store = _meet(environment, rank, timeout or default_pg_timeout)
    _await_all(store, world_size, timeout or default_pg_timeout)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device_id
    )
    if _Opened.num_groups == 0:
        atexit.register(close)
        _end_soon_after_errors()
    _Opened.num_groups += 1
    _Opened.last, _Opened.pid = weakref.ref(dist.group.WORLD), os.getpid()


def _meet(environment: ClusterEnvironment, rank: int, timeout: timedelta) -> Any:
    """The key-value store that all processes share, without what earlier groups and attempts left in it."""
    is_host = rank == 0 and os.environ.get(_HOSTED) != "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
        environment.main_address,
        environment.main_port,
        environment.world_size(),
        is_master=is_host,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=environment.listening_socket() if is_host else None,
    )
    # The store of torchrun's agent survives a restart of the processes. Without a prefix of its own, a new attempt
    # reads the addresses of dead processes and hangs. A store of rank 0 is new with each attempt, and the count of
    # restarts must not name it: machines that have come later have counted less.
    attempt = os.environ.get(_RESTARTS, "0") if os.environ.get(_HOSTED) == "True" else "0"
    prefix = f"fulmen/attempt{attempt}/group{_Opened.num_groups}"
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # as above


def _await_all(store: Any, world_size: int, timeout: timedelta) -> None:
    """Until all processes have come. Unlike in torch's own waiting, signals and Ctrl-C are heard meanwhile."""
    start_s = time.monotonic()
    if store.add("here", 1) >= world_size:
        store.set("all here", "")
    while not store.check(["all here"]):
        waited_s = time.monotonic() - start_s
        if waited_s > timeout.total_seconds():
            raise ProcessFailedError(
                f"Only {store.add('here', 0)} of {world_size} processes have come within {timeout}, the timeout."
                " The others have failed, hang, or were never started, and without them there is nothing to do."
                " See what they printed; if they only need longer, pass a longer timeout, as in"
                " strategy=DDPStrategy(timeout=timedelta(hours=1))."
            )
        time.sleep(min(_LOOK_EVERY_S, 0.001 + waited_s / 20))


def shared_store() -> Any:
    """A key-value store that all processes share, empty, over a connection of its own; None when alone.

    For what cannot wait for a collective, and may be used in another thread. The n-th call in one process gets the
    store of the n-th call in every other.
    """
    if not is_initialized() or dist.get_world_size() == 1:
        return None
    _Opened.num_connections += 1
    # The store of the group itself is busy while a collective sets up, and its calls wait for each other.
    own_connection = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # as above
    name = f"fulmen/shared{_Opened.num_connections}"
    return dist.PrefixStore(name, own_connection)  # type: ignore[attr-defined]  # as above


def close() -> None:
    """Close the process group, if there is one. A process that was forked since it was opened leaves it alone."""
    # A fork has none of the group's threads, and would wait for them.
    if not _is_inherited():
        close_group()


def _is_inherited() -> bool:
    last = _Opened.last() if _Opened.last is not None else None
    return last is not None and last is dist.group.WORLD and _Opened.pid != os.getpid()


def barrier(device: torch.device | None = None) -> None:
    """Wait until all processes are here. Returns at once when alone."""
    if not is_initialized():
        return
    if dist.get_backend() == "nccl" and device is not None and device.index is not None:
        dist.barrier(device_ids=[device.index])
    else:
        dist.barrier()


def broadcast_object(obj: Any, src: int = 0, device: torch.device | None = None) -> Any:
    """The `obj` of rank `src`, anything that pickles. `obj` itself when alone."""
    if not is_initialized() or dist.get_world_size() == 1:
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src, device=device if dist.get_backend() == "nccl" else None)
    return box[0]


def _end_soon_after_errors() -> None:
    """From now on, an uncaught exception ends this process within seconds.

    A group with an unfinished collective waits for it when Python exits, up to the timeout of half an hour; the peers,
    and whoever watches this process, would wait with it.
    """
    show_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        show_before(kind, error, traceback)
        exit_within(_EXIT_WITHIN_S)

    sys.excepthook = show
