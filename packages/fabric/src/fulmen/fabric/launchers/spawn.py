"""Fork or spawn a function, once per process of this node; this process waits for them and is none of them.

The arguments travel by value: what the function changes in a module stays in its process, and it must return what the
caller wants to have. What rank 0 returns, comes back.
"""

from __future__ import annotations

import gc
import importlib
import io
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch

from fulmen.fabric.ending import end_children, exit_soon_after
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, ProcessFailedError
from fulmen.fabric.gloo_threads import close_group
from fulmen.fabric.launchers.agent import tell_agent_of_errors
from fulmen.fabric.launchers.base import (
    GATHER_CAUSE_S,
    GATHER_S,
    GRACE_S,
    TERMINATE_S,
    UNHEARD_GRACE_S,
    Launcher,
    die_with_parent,
    host_store,
    process_variables,
)
from fulmen.fabric.launchers.failures import (
    Failure,
    Weight,
    describe,
    ended_unheard,
    failure_from_error,
    failure_from_exit,
    first_failure,
)
from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.fabric.seeding import collect_rng_state, restore_rng_state

_SERVER_ENDS_AT_ONCE = "fulmen.fabric.launchers.fork_server"
# Unless the program catches the error.
_END_WITHIN_S = 2.0
StartMethod = Literal["spawn", "fork", "forkserver"]


@dataclass(frozen=True, slots=True)
class _Call:
    """What every process is to do."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a process says when it fails; `error` is the pickled exception, if it pickles."""

    failure: Failure
    error: bytes | None


@dataclass(frozen=True, slots=True)
class _Globals:
    """State of the torch library that a new Python does not have."""

    rng: dict[str, Any]
    deterministic: bool
    warn_only: bool
    benchmark: bool

    @classmethod
    def collect(cls) -> _Globals:
        return cls(
            collect_rng_state(include_cuda=False),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )

    def restore(self) -> None:
        restore_rng_state(self.rng)
        torch.cuda.manual_seed_all(torch.initial_seed())
        if self.deterministic:
            # Only then: this function imports torch's compiler, which takes seconds.
            torch.use_deterministic_algorithms(True, warn_only=self.warn_only)
        torch.backends.cudnn.benchmark = self.benchmark


class SpawnLauncher(Launcher):
    """Runs the function in `num_processes` new processes of this node.

    Args:
        environment: Says whether the processes exist already, and where to meet.
        num_processes: Per node.
        num_nodes: Number of nodes.
        start_method: "fork" is quick and works in notebooks, and not once CUDA was used. "spawn" and "forkserver" start
            new Pythons: the program must guard what it does with `if __name__ == "__main__":`.
        preload: Modules that every process will import. They are imported once: here, before a fork, or in the server
            that forks.
    """

    def __init__(
        self,
        environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int = 1,
        start_method: StartMethod = "spawn",
        preload: Sequence[str] = (),
    ) -> None:
        if start_method not in multiprocessing.get_all_start_methods():
            raise ConfigurationError(
                f"start_method={start_method!r} is not available here."
                f" This system can start processes by: {', '.join(multiprocessing.get_all_start_methods())}."
                " Pass start_method='spawn', or strategy='ddp_spawn'."
            )
        self._environment = environment
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self._start_method = start_method
        self._preload = tuple(preload)
        self._processes: list[BaseProcess] = []
        self._parent = 0  # the process that has started them
        self._sent = 0  # the last signal sent to them, also to those that start later

    @property
    def is_interactive_compatible(self) -> bool:
        """True for fork: new Pythons cannot import what was typed at a prompt."""
        return self._start_method == "fork"

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in every process; what it returned on this node's first process, on the CPU.

        Inside a process that exists already, the function simply runs there.

        Raises:
            ConfigurationError: If CUDA was used before a fork.
            ArgumentTypeError: If the function, its arguments or its result do not pickle.
            ProcessFailedError: If a process was killed, or its own error does not pickle.
            Exception: The error of the process that failed first, with its traceback as a note.
        """
        self._environment.validate_settings(self._num_processes, self._num_nodes)
        if self._environment.creates_processes_externally:
            tell_agent_of_errors()
            return function(*args, **kwargs)
        self._parent, self._sent = os.getpid(), 0
        call = _Call(function, args, kwargs)
        if self._start_method == "fork":
            _check_cuda_allows_fork()
        sent = call if self._start_method == "fork" else _by_value(call)
        # Kept in this process, and only as long as the others run: they all are its clients.
        store = host_store(self._environment, self._num_processes * self._num_nodes)
        pipes: list[Connection] = []
        try:
            self._start(sent, pipes)
            return self._wait(pipes)
        except KeyboardInterrupt:
            # It reached the processes too: they may clean up before they are ended, unless it comes a second time.
            _join(self._processes, GRACE_S)
            raise
        finally:
            _end(self._processes)
            for pipe in pipes:
                pipe.close()
            self._processes = []
            del store

    def kill(self, signum: int) -> None:
        """Send the signal to every process that this launcher started, or is about to start."""
        if self._parent != os.getpid():  # forked, with a list of processes that are not its own
            return
        self._sent = signum
        for process in self._processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signum)

    def _start(self, call: _Call | bytes, pipes: list[Connection]) -> None:
        context = multiprocessing.get_context(self._start_method)
        if self._start_method == "fork":
            for name in self._preload:
                importlib.import_module(name)
        elif self._start_method == "forkserver":
            # Means nothing to a server that runs already, as in a second launch.
            context.set_forkserver_preload([_SERVER_ENDS_AT_ONCE, "__main__", __name__, *self._preload])
        before = None if self._start_method == "fork" else _Globals.collect()
        parent = None if self._start_method == "forkserver" else os.getpid()
        for local_rank in range(self._num_processes):
            reader, writer = context.Pipe(duplex=False)
            pipes.append(reader)
            variables = process_variables(self._environment, local_rank, self._num_processes, self._num_nodes)
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(call, variables, before, parent, writer), daemon=False
            )
            process.start()
            self._processes.append(process)
            writer.close()
            if self._sent:  # it came before this process was there to hear of it
                self.kill(self._sent)

    def _wait(self, pipes: list[Connection]) -> Any:
        """Until all are done, or the first failed."""
        sources: dict[Any, int] = {process.sentinel: place for place, process in enumerate(self._processes)}
        sources |= {pipe: place for place, pipe in enumerate(pipes)}
        done: dict[int, str] = {}
        failed: dict[int, _Failed] = {}
        start: float | None = None
        deadline: float | None = None
        try:
            while len(done) + len(failed) < len(pipes):
                timeout_s = None if deadline is None else deadline - time.monotonic()
                if timeout_s is not None and timeout_s <= 0:
                    break
                for source in wait(list(sources), timeout_s):
                    place = sources.pop(source)
                    if place in done or place in failed:
                        continue
                    message = _receive(pipes[place])
                    if isinstance(message, str):
                        done[place] = message
                    else:
                        failed[place] = message or self._failed_silently(place)
                if failed:
                    start = time.monotonic() if start is None else start
                    deadline = start + _others_may_take_s([one.failure for one in failed.values()])
            if failed:
                _end(self._processes)
                self._raise_first(list(failed.values()))
            result = _load_result(done[0])
            for process in self._processes:
                process.join()
            return result
        finally:
            if done.get(0):
                os.unlink(done[0])

    def _failed_silently(self, place: int) -> _Failed:
        self._processes[place].join(TERMINATE_S)
        exit_code = self._processes[place].exitcode or 0
        rank = self._environment.node_rank() * self._num_processes + place
        return _Failed(failure_from_exit(rank, exit_code, time.time()), None)

    def _raise_first(self, failed: list[_Failed]) -> None:
        first = first_failure(one.failure for one in failed)
        pickled = next(one.error for one in failed if one.failure is first)
        text = describe(first, self._num_processes * self._num_nodes)
        try:
            error = pickle.loads(pickled) if pickled else None
        except Exception:  # an error whose own __init__ wants more than its message
            error = None
        if isinstance(error, BaseException):
            # A note is printed after the error itself: the traceback of the one who failed comes last.
            error.add_note("\n" + text)
        else:
            error = ProcessFailedError(text)
        exit_soon_after(error, _END_WITHIN_S)
        raise error


def _others_may_take_s(failures: Sequence[Failure]) -> float:
    """How long the others go on after the first of the failures that are known so far."""
    weight = min(one.weight for one in failures)
    if weight is Weight.REQUESTED:
        return UNHEARD_GRACE_S if any(ended_unheard(one.exit_code) for one in failures) else GRACE_S
    return GATHER_S if weight < Weight.REQUESTED else GATHER_CAUSE_S


def _work(
    call: _Call | bytes,
    variables: dict[str, str],
    before: _Globals | None,
    parent: int | None,
    writer: Connection,
) -> None:
    """What each process does."""
    die_with_parent(parent)
    rank = int(variables["RANK"])
    os.environ.update(variables)
    rank_zero_only.rank = rank
    if before is not None:
        before.restore()
    else:
        # What was garbage at the fork is the parent's to collect. Threads did not survive it: a store would wait for
        # its own for ever, and so would OpenMP in a parallel region.
        gc.freeze()
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
    try:
        todo: _Call = pickle.loads(call) if isinstance(call, bytes) else call
        result = todo.function(*todo.args, **todo.kwargs)
        path = _save_result(result) if variables["LOCAL_RANK"] == "0" else ""
        close_group()
        writer.send(path)
    except BaseException as error:
        writer.send(_Failed(failure_from_error(rank, error, time.time()), _pickled_or_none(error)))
        sys.stdout.flush()
        sys.stderr.flush()
        end_children()
        # An unfinished collective would wait for its peers when Python exits, up to half an hour.
        os._exit(1)


def _by_value(call: _Call) -> bytes | _Call:
    """The call, pickled such that tensors are copied: processes that share parameters would train each other's."""
    try:
        return pickle.dumps(call)
    except RuntimeError:
        # Queues and locks go along only while a process is being started.
        return call
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ArgumentTypeError(
            f"{call.function!r} and its arguments cannot be sent to other processes: {error}."
            " New Python processes import the function by its name and get its arguments by pickle."
            " Move the function to the top level of a module, or pass strategy='ddp' or 'ddp_fork'."
        ) from error


def _save_result(result: Any) -> str:
    """The path of a file with the result, in a private temporary file; empty if there is nothing to hand back."""
    if result is None:
        return ""
    buffer = io.BytesIO()
    try:
        torch.save(result, buffer)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise ArgumentTypeError(
            f"The result {type(result).__name__} cannot be sent back from the process of rank 0: {error}."
            " Results travel by pickle. Return tensors, numbers, texts, lists and dictionaries of these."
        ) from error
    # The work is done by now, and must not be lost because the folder for temporary files is full.
    folders = [tempfile.gettempdir(), *(place for place in ("/dev/shm", os.getcwd()) if os.path.isdir(place))]
    refusals = []
    for folder in folders:
        try:
            return _write_aside(folder, buffer.getbuffer())
        except OSError as error:
            refusals.append(f"{folder!r}: {error.strerror or error}")
    raise ProcessFailedError(
        f"The result of rank 0, {buffer.getbuffer().nbytes} bytes, cannot be sent back: {'; '.join(refusals)}."
        " It travels in a file in the folder for temporary files."
        " Make room there, or set TMPDIR to a folder with room for one model."
    )


def _write_aside(folder: str, content: memoryview) -> str:
    handle, path = tempfile.mkstemp(prefix="fulmen-result-", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(content)
    except OSError:
        os.unlink(path)
        raise
    return path


def _load_result(path: str | None) -> Any:
    if not path:
        return None
    # Our own process wrote it a moment ago, into a file that only this user can write.
    return torch.load(path, map_location="cpu", weights_only=False)


def _pickled_or_none(error: BaseException) -> bytes | None:
    try:
        return pickle.dumps(error)
    except Exception:  # errors may hold anything
        return None


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        return None


def _check_cuda_allows_fork() -> None:
    if torch.cuda.is_initialized():
        raise ConfigurationError(
            "start_method='fork' (strategy='ddp_fork' or 'ddp_notebook') was asked for after CUDA was used."
            " A forked process cannot use CUDA again."
            " Move no tensor to a GPU before this point, or pass strategy='ddp' or 'ddp_spawn'."
        )


def _join(processes: list[BaseProcess], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _end(processes: list[BaseProcess]) -> None:
    """No process is left when this returns."""
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.terminate()
    _join(alive, TERMINATE_S)
    for process in alive:
        process.kill()
        process.join()
