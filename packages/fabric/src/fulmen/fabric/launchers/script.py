"""Run the same program again, once per further process of this node; this process is the first.

```text
python train.py            rank 0: runs train.py, starts the others, watches them, ends them
  python train.py          rank 1: runs train.py, reports how it failed to rank 0
  python train.py          rank 2
```
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fulmen.fabric.ending import end_children, exit_within
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.errors import ConfigurationError, ProcessFailedError
from fulmen.fabric.gloo_threads import close_group
from fulmen.fabric.launchers.agent import tell_agent_of_errors
from fulmen.fabric.launchers.base import (
    GATHER_CAUSE_S,
    GATHER_S,
    GRACE_S,
    TERMINATE_S,
    UNHEARD_GRACE_S,
    Launcher,
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
    is_request,
)
from fulmen.fabric.launchers.reports import Reports, is_expected, remember_time, report_errors, time_of

# How long the main thread of rank 0 may clean up after another process has failed.
_CLEAN_UP_S = 1.5
# From the first sign of a failure to the end of rank 0, whatever it does then.
_END_WITHIN_S = 4.0
# When all is said and the program's own handlers have run: Python takes its modules apart.
_TAKE_APART_S = 1.0


class ScriptLauncher(Launcher):
    """Starts one process per device of this node by running the program again; the program is its own first process.

    Everything before `launch` runs in every process. What somebody else has started is not started again.

    Args:
        environment: Says whether the processes exist already, and where to meet.
        num_processes: Per node.
        num_nodes: Number of nodes.
    """

    def __init__(self, environment: ClusterEnvironment, num_processes: int, num_nodes: int = 1) -> None:
        self._environment = environment
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self._children: _Children | None = None

    @property
    def is_interactive_compatible(self) -> bool:
        """False: there is no program to run again."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the processes, once; run `function` in this one and return what it returned here.

        Raises:
            ConfigurationError: If the number of processes does not fit, or the program cannot be run again.
        """
        self._environment.validate_settings(self._num_processes, self._num_nodes)
        if self._num_processes > 1 and not self._environment.creates_processes_externally:
            self._start()
        elif is_expected():
            report_errors()
        else:
            tell_agent_of_errors()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            remember_time(error)
            if self._children is not None and isinstance(error, SystemExit):
                self._children.main_leaves(error.code)
            raise

    def kill(self, signum: int) -> None:
        """Send the signal to every process that this launcher started."""
        if self._children is not None:
            self._children.send(signum)

    def _start(self) -> None:
        command = command_again()
        world_size = self._num_processes * self._num_nodes
        store = host_store(self._environment, world_size)

        def variables(local_rank: int) -> dict[str, str]:
            return process_variables(self._environment, local_rank, self._num_processes, self._num_nodes)

        mine = variables(0)
        children = _Children(int(mine["RANK"]), world_size, store)
        try:
            for local_rank in range(1, self._num_processes):
                children.start(command, variables(local_rank))
        except OSError as error:
            children.stop()
            raise ProcessFailedError(
                f"devices={self._num_processes} could not start {command!r}: {error}."
                " The program is run again, once per device."
                " Check that this command can be run here, or pass strategy='ddp_spawn'."
            ) from error
        # From here on this process is one of many, also for a second run in the same program.
        os.environ.update(mine)
        self._environment.set_world_size(world_size)
        self._environment.set_global_rank(int(mine["RANK"]))
        self._children = children
        children.watch()


class _Children:
    """The processes that this one has started, and how they end."""

    def __init__(self, rank: int, world_size: int, store: Any) -> None:
        self._rank = rank
        self._world_size = world_size
        self._store = store  # must live as long as the processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ranks: list[int] = []
        self._reports = Reports()
        self._exits: dict[int, tuple[int, float]] = {}  # place: (exit code, time)
        self._lock = threading.RLock()
        self._first: Failure | None = None
        self._stopped: frozenset[int] | None = None  # places of those that `stop` ended
        self._main_is_ending = threading.Event()
        self._is_at_exit = threading.Event()
        self._is_said = threading.Lock()  # taken, and never given back, by who prints the first failure
        self._is_asked_by_stop = False
        self._others_may_take_s: float | None = None  # once the main thread has left by `SystemExit`
        self._own: Failure | None = None

    def start(self, command: list[str], variables: dict[str, str]) -> None:
        said, inherited = self._reports.expect()
        process = subprocess.Popen(
            _tied_to_this_process(command),
            env={**os.environ, **variables, **said},
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
        )
        self._processes.append(process)
        self._ranks.append(int(variables["RANK"]))

    def watch(self) -> None:
        """From now on, the first failure of any process, this one included, ends all."""
        for place in range(len(self._processes)):
            threading.Thread(target=self._await, args=(place,), daemon=True).start()
        self._reports.all_started()
        threading.Thread(target=self._listen, daemon=True).start()
        pid, show_before = os.getpid(), sys.excepthook

        def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
            if os.getpid() != pid:
                show_before(kind, error, traceback)
                return
            self._main_is_ending.set()
            self._own = failure_from_error(self._rank, error, time_of(error))
            first = self.stop(self._own)
            if not self._is_said.acquire(blocking=False):
                return
            if first is self._own or first is None:
                show_before(kind, error, traceback)
            else:
                _print_last(describe(first, self._world_size))

        sys.excepthook = show
        atexit.register(self._at_exit, pid)

    def main_leaves(self, code: object) -> None:
        """This process ends by `SystemExit(code)`, which Python's hook for errors does not see."""
        self._others_may_take_s = GRACE_S if is_request(code) else _CLEAN_UP_S
        # Who is ended by `stop` takes that for a request, and hands it on to all, this process included.
        self._is_asked_by_stop = is_request(code) and self._stopped is not None
        self._main_is_ending.set()

    def send(self, signum: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signum)

    def stop(self, own: Failure | None = None) -> Failure | None:
        """End every process; which failure was the first, if there was one."""
        with self._lock:
            if self._stopped is None:
                self._gather(own)
                alive = [place for place, process in enumerate(self._processes) if process.poll() is None]
                self._stopped = frozenset(alive)
                for place in alive:
                    # Who has said why it fails is ending already.
                    if self._reports.read(place, self._ranks[place]) is None:
                        self._processes[place].terminate()
                deadline = time.monotonic() + TERMINATE_S
                for place in alive:
                    _wait(self._processes[place], deadline - time.monotonic())
                for place in alive:
                    self._processes[place].kill()
                    _wait(self._processes[place], TERMINATE_S)
                failures = self._failures(own)
                self._first = first_failure(failures) if failures else None
            elif own is not None:
                # The others may have noticed that this process had left before it came to say why.
                self._first = own if self._first is None else first_failure([self._first, own])
            return self._first

    def _gather(self, own: Failure | None) -> None:
        start = time.monotonic()
        wait_s = GATHER_S
        while time.monotonic() - start < wait_s and any(process.poll() is None for process in self._processes):
            time.sleep(0.05)
            is_known = any(failure.weight < Weight.ECHO for failure in self._failures(own))
            wait_s = GATHER_S if is_known else GATHER_CAUSE_S

    def _failures(self, own: Failure | None) -> list[Failure]:
        found = [failure for failure in map(self._failure, range(len(self._processes))) if failure]
        return found if own is None else [*found, own]

    def _await(self, place: int) -> None:
        code = self._processes[place].wait()
        self._exits[place] = (code, time.time())
        if code == 0 or self._stopped is not None:
            return
        # Who is asked to end, ends by itself; this process, or another one, may still be saving.
        grace_s = UNHEARD_GRACE_S if ended_unheard(code) else GRACE_S
        if is_request(code) and self._main_is_ending.wait(grace_s):
            return
        self._end_from_watcher()

    def _listen(self) -> None:
        while self._reports.wait():
            if self._stopped is None and any(one.weight != Weight.REQUESTED for one in self._failures(None)):
                self._end_from_watcher()

    def _end_from_watcher(self) -> None:
        exit_within(_END_WITHIN_S)
        first = self.stop()
        if first is None:
            return
        # With its peers gone, the main thread fails in its next collective, and cleans up after itself. It may also be
        # deep in a computation, or have caught the error.
        ready_by = time.monotonic() + _CLEAN_UP_S
        if self._main_is_ending.wait(_CLEAN_UP_S) and (
            not self._is_asked_because_of(first)
            # What the program does on its way out is done before; then `_at_exit` says it.
            or self._is_at_exit.wait(max(0.0, ready_by - time.monotonic()))
        ):
            return
        if self._is_said.acquire(blocking=False):
            _print_last(describe(first, self._world_size))
            _exit_now(first.exit_code)

    def _is_asked_because_of(self, first: Failure) -> bool:
        """Does this process end on a request that there would not be without this failure?"""
        return self._is_asked_by_stop and first.weight < Weight.REQUESTED

    def _at_exit(self, pid: int) -> None:
        if os.getpid() != pid:
            return
        self._main_is_ending.set()
        self._is_at_exit.set()
        if self._stopped is None:
            # Not closed, it would keep processes waiting that this one is about to wait for.
            close_group()
            self._store = None
            start = time.monotonic()
            for process in self._processes:
                if self._others_may_take_s is None:
                    process.wait()
                else:
                    _wait(process, start + self._others_may_take_s - time.monotonic())
        if self._others_may_take_s is not None:
            first = self.stop()
            if first is not None and self._is_asked_because_of(first):
                if self._is_said.acquire(blocking=False):
                    _print_last(describe(first, self._world_size))
                    _exit_now(first.exit_code)
                time.sleep(_TAKE_APART_S)  # the thread that says it ends this process, too
            return  # Python ends with the code that the program gave
        first = self.stop() if any(process.returncode for process in self._processes) else None
        if first is None:
            return
        if self._own is None:
            if self._is_said.acquire(blocking=False):
                _print_last(describe(first, self._world_size))
            _exit_now(first.exit_code)
        elif first is not self._own and first.exit_code != 1:
            # Python itself would end with 1, and whoever started this program may want to know of SIGKILL.
            _exit_now(first.exit_code)
        else:
            exit_within(_TAKE_APART_S)

    def _failure(self, place: int) -> Failure | None:
        """How this process failed, by its own report or by its exit code; None if it did not, or was ended by us."""
        rank, code = self._ranks[place], self._processes[place].returncode
        if said := self._reports.read(place, rank):
            return said
        if not code or place in (self._stopped or ()):
            return None
        return failure_from_exit(rank, code, self._exits.get(place, (code, time.time()))[1])


def command_again() -> list[str]:
    """The command that runs this program again, with the arguments that it has now.

    Raises:
        ConfigurationError: At a prompt, in a notebook, or if the program came through standard input.
    """
    options, target = split_command(sys.orig_argv)
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if not sys.executable or not target or (path is None and target[0] != "-c"):
        raise ConfigurationError(
            f"This program ({sys.orig_argv!r}) cannot be run again for every device."
            " It was typed at a prompt, in a notebook, or read from standard input."
            " Pass strategy='ddp_notebook' or 'ddp_spawn', or write the program to a file."
        )
    if target[0] not in ("-c", "-m"):
        # A script is known by its absolute path; a folder or a zip file that is run has a spec instead.
        is_script = getattr(main, "__spec__", None) is None and path is not None
        target = [os.path.abspath(path if is_script and path else target[0])]
    return [sys.executable, *options, *target, *sys.argv[1:]]


def split_command(argv: list[str]) -> tuple[list[str], list[str]]:
    """The options of the interpreter, and what it runs: `["-m", name]`, `["-c", code]`, `[path]`, or nothing.

    >>> split_command(["python", "-W", "error", "-um", "pkg.mod", "--lr", "1"])
    (['-W', 'error', '-u'], ['-m', 'pkg.mod'])
    """
    place = 1
    options: list[str] = []
    while place < len(argv):
        word = argv[place]
        place += 1
        if word == "-":
            return options, []
        if not word.startswith("-"):
            return options, [word]
        if word.startswith("--"):
            options.append(word)
            if word == "--check-hash-based-pycs":
                options += argv[place : place + 1]
                place += 1
            continue
        for at, letter in enumerate(word[1:], start=1):
            if letter not in "cmWX":
                continue
            # The rest of the word is the value; without a rest, the next word is.
            value = word[at + 1 :]
            if not value:
                value = argv[place] if place < len(argv) else ""
                place += 1
            if letter in "cm":
                options += ["-" + word[1:at]] if at > 1 else []
                return options, [f"-{letter}", value]
            options += [f"{word[: at + 1]}", value]
            break
        else:
            options.append(word)
    return options, []


def _tied_to_this_process(command: list[str]) -> list[str]:
    """The command, such that its process is killed when this one is gone, from its first moment on."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        # Linux counts the thread that started a process as its parent; elsewhere the process looks by itself.
        return command
    # In a process of its own rather than in `preexec_fn`, which may deadlock where there are threads.
    tie = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9);"
        " os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-I", "-S", "-c", tie, str(os.getpid()), *command]


def _print_last(text: str) -> None:
    sys.stdout.flush()
    # Not sys.stderr: torch's own hook has put a buffer there, and would name the wrong rank in front of every line.
    stream = sys.__stderr__ or sys.stderr
    stream.write("\n" + text)
    stream.flush()


def _exit_now(exit_code: int) -> None:
    sys.stdout.flush()
    end_children()  # workers of loaders would notice only seconds later, and pools never
    os._exit(exit_code if exit_code > 0 else 128 - exit_code)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    # Not Popen.wait(timeout): a thread is already in Popen.wait().
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
