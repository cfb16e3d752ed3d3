"""SIGTERM and its kin, and the first Ctrl-C, set a flag; the loop acts on it at the next batch boundary.

A handler does nothing else: no collective, no saving, no lock. While no signal came, a batch costs an addition and the
reading of one attribute. Several processes stop at the same boundary: `common_stop` says which.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fulmen.fabric.ending import end_children, end_despite_pools, frame_of
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_only
from fulmen.trainer.errors import InterruptedBySignal
from fulmen.trainer.run.common_stop import CommonStop
from fulmen.trainer.run.peers import Peers

CTRL_C = "Ctrl-C: the run ends after this batch. Press it again to end at once."
_CAUGHT = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))
# Beyond every place that a loop begins.
_OVER = sys.maxsize
_INSTALLED = "_fulmen_installed"  # at a handler of ours: by which process, and in the place of which handlers
_LOOK_EVERY_S = 0.2
_SET_UP_WITHIN_S = 1.5
_LEAVES_WITHIN_S = 1.2
# A key pressed once reaches all processes of a terminal. Torchrun's agent hands it on to them as well, and some hear of
# it from another process first.
_ONE_PRESS_S = 0.4
_TOLD_OF_IT_S = 1.0


class Signals:
    """The signals that end a run, caught while it lasts.

    Attributes:
        caught: Number of the signal that ends the run, or 0.
        place: How many times a loop has said "so far, and no farther if you are told to stop": before each training
            batch, and before and after each evaluation. The same in all processes that are equally far.
        stopped: Have all processes stopped at a place that a checkpoint can describe?
        is_cut_short: Has Ctrl-C ended the run at once, wherever it was?
    """

    def __init__(self) -> None:
        self.caught = 0
        self.place = 0
        self.stopped = False
        self._others: CommonStop | None = None
        self._peers: Peers | None = None
        self._failed_among: Peers | None = None  # also after the run: the user may save then
        self._ends_together: bool | None = None  # not asked yet
        self.is_cut_short = False
        self._saves = 0
        self._listens = False
        self._is_overdue = self._has_raised = self._has_met = False
        self._also: frozenset[int] = frozenset()
        self._pressed_at_s: float | None = None  # Ctrl-C, which came to this process itself
        self._caught_at_s = 0.0

    @contextmanager
    def listening(
        self, pass_on: Callable[[int], None] | None = None, also: Iterable[int] = (), *, only_starts: bool = False
    ) -> Iterator[None]:
        """Catch signals until the block is left; then every handler is as it was before.

        A handler that the user installed is called too. Outside the main thread Python allows no handlers: there
        nothing is caught.

        Args:
            pass_on: Told the number of the signal, where other processes take part in the work.
            also: Further signals that end the run, beside SIGTERM, SIGHUP and SIGINT. They tell of the job's end
                in time, and mean nothing to a run whose loops are over.
            only_starts: Does this process only start those that work? Then what it forks is a part of the run, which
                keeps what it hears until it listens for itself. What others fork is not: a pool of the user's.

        Raises:
            InterruptedBySignal: If one came too late for the loop to act on it.
            KeyboardInterrupt: If that was Ctrl-C; also at the second one, and where no loop runs. What repeats one
                within 0.4 seconds is the same press.
        """
        listened = self._listens
        if not listened:  # else in a process of this run, which was started while the first one listened
            self.caught, self.place, self.stopped = 0, 0, False
            self._pressed_at_s = None
            self.is_cut_short, self._saves = False, 0
        self._listens = True
        if threading.current_thread() is not threading.main_thread():
            try:
                yield
            finally:
                self._listens = listened
                self._close()
            return
        from fulmen.fabric.data.worker_signals import let_workers_stay

        self._also = frozenset(also)
        before = {number: signal.getsignal(number) for number in {*_CAUGHT, *self._also}}
        users = {number: _of_the_user(handler, number) for number, handler in before.items()}
        pid = os.getpid()

        def catch(number: int, frame: FrameType | None) -> None:
            user_handler = users.get(number)
            if number == signal.SIGTERM and not only_starts and os.getpid() != pid:
                # A process that user code forked, in a pool perhaps, which waits until it has ended.
                signal.signal(number, user_handler)
                os.kill(os.getpid(), number)
                return
            if self._is_overdue:
                self._has_raised = True
                raise ending(number)
            if user_handler is signal.default_int_handler:
                if self._is_pressed_again() or not (self.place or _is_importing(frame)):
                    if pass_on is not None and os.getpid() == pid:
                        # It may have come to this process only. Not as a second Ctrl-C to those that heard it too.
                        pass_on(signal.SIGTERM)
                    self.is_cut_short = True
                    raise KeyboardInterrupt
                if self._pressed_at_s is None:
                    self._pressed_at_s = time.monotonic()
                    _announce_stop()
            self._hear(number)
            # A forked process inherits the handler. Ctrl-C reaches the others through the store, and only once.
            if pass_on is not None and os.getpid() == pid and (number != signal.SIGINT or self._others is None):
                pass_on(number)
            if callable(user_handler) and user_handler is not signal.default_int_handler:
                user_handler(number, frame)

        setattr(catch, _INSTALLED, (pid, users))
        let_workers_stay(catch)
        try:
            for number, handler in before.items():
                if handler != signal.SIG_IGN and handler is not None:
                    signal.signal(number, catch)
            yield
        finally:
            self._listens = listened
            self._close()
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
        if self.caught in self._also and self.place == _OVER:
            name = signal.Signals(self.caught).name
            rank_zero_info(f"{name} came when the run was over: nothing is left to do, and the program goes on.")
        elif self.caught:
            raise ending(self.caught)

    @contextmanager
    def setting_up(self, before_exit: Callable[[int], object] | None = None) -> Iterator[None]:
        """While the run is set up: a signal may wait for its first place to stop, and a few seconds at most.

        Then it ends the run wherever it is. Nothing has begun that could be lost; the other processes may be gone
        because of the same signal, and to import and to set up may take long. Who has met the others keeps to what
        comes with one of the signals in `also`: it has to be acted on in good order. Where code of C lets nothing
        through, the process ends at once.

        Args:
            before_exit: Told the number of the signal before that, in a thread of its own.

        Raises:
            InterruptedBySignal: If it took longer.
            KeyboardInterrupt: If that was Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():  # where nothing is caught
            yield
            return
        self._is_overdue = self._has_raised = self._has_met = False
        is_over = threading.Event()
        watch = threading.Thread(
            target=self._watch_setup, args=(is_over, before_exit), name="fulmen-set-up", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            is_over.set()
            try:
                watch.join()
            finally:  # it may have sent its signal just now
                self._is_overdue = False

    def _watch_setup(self, is_over: threading.Event, before_exit: Callable[[int], object] | None) -> None:
        due_s: float | None = None
        while not is_over.wait(_LOOK_EVERY_S):
            if not self.caught or (self._has_met and self.caught in self._also):
                continue
            due_s = due_s or time.monotonic() + _SET_UP_WITHIN_S
            at_prompt = self.caught == signal.SIGINT  # or in a notebook, which goes on with what is imported
            if time.monotonic() > due_s and not (at_prompt and _is_importing(frame_of(threading.main_thread().ident))):
                self._is_overdue = True
                _signal_main_thread(self.caught)  # the handler runs there, and raises
                if not (is_over.wait(_LEAVES_WITHIN_S) or hasattr(sys, "ps1")):  # a notebook goes on with its processes
                    end_children()  # on its way out it waits for a pool that works on
                if not (at_prompt or is_over.wait(_LEAVES_WITHIN_S) or self._has_raised):
                    # Deep in code of C, as where a process waits for the one that all meet at.
                    name = signal.Signals(self.caught).name
                    os.write(2, f"\nEnding the run at once: {name} came while it was set up.\n".encode())
                    try:
                        if before_exit is not None:
                            before_exit(self.caught)
                    finally:
                        os._exit(128 + self.caught)
                return

    def stop_with_others(self, store: Any, rank: int, world_size: int, *, ends_alone: bool = False) -> None:
        """From now on a signal to any process of the run stops all of them, at the same place.

        They also hear when one of them fails, dies or hangs: see `peers`.

        Args:
            store: A key-value store of all processes, or None when alone.
            rank: Of this process.
            world_size: Number of processes.
            ends_alone: Does nobody else end this process when another one fails?
        """
        self._has_met = True
        if store is None:
            return
        self._ends_together = self._failed_among = None
        self._peers = Peers(store, rank, world_size, ends_alone=ends_alone)
        self._others = CommonStop(store, rank, world_size, self._agree, lambda: self.place, self._peers.look)
        if self.caught:  # it came while the processes were set up
            self._others.ask(self.caught)

    def fail(self, error: BaseException) -> BaseException | None:
        """This process fails: the others hear of it.

        Returns:
            What to raise in its place, if another process is to blame.
        """
        if self._peers is None:
            return None
        self._failed_among = self._peers
        return self._peers.fail(error) if isinstance(error, Exception) else None

    def end_together(self) -> bool:
        """This process ends its run before its time: do all others too, so that they can still save something together?

        It is waited for them, for two seconds.
        """
        peers = self._peers or self._failed_among
        if peers is None:
            return True
        if self.is_cut_short:
            return False  # each was somewhere else, in a collective perhaps
        if self.stopped:
            return True
        if self._ends_together is None:
            self._ends_together = peers.fail_together()
        return self._ends_together

    def why_alone(self) -> str | None:
        """Why the other processes do not come to save with this one, after a run that ended before its time.

        To be asked where a process is about to save, by all that do. None if they come: then they are here too.
        """
        peers = self._peers or self._failed_among
        if peers is None:
            return None
        if not self.end_together():
            cut = "Ctrl-C had ended the run in the middle of its work"
            return cut if self.is_cut_short else "the run had failed in this rank alone"
        self._saves += 1
        return None if peers.come_together(self._saves) else "another rank had ended its run without saving"

    def stop_if_due(self, place: int) -> None:
        """Called where a signal was `caught`: end the run here, unless other processes are beyond `place` already.

        Raises:
            InterruptedBySignal: With the number of the signal.
            KeyboardInterrupt: If that was Ctrl-C.
        """
        if self._others is None or self._others.place() <= place:
            self.stopped = True
            raise ending(self.caught)

    def begin_next(self) -> None:
        """A loop is about to begin what comes next, beside training batches, which do this by themselves."""
        self.place += 1
        if self.caught:
            self.stop_if_due(self.place - 1)

    def finish(self) -> None:
        """The loops are over: who is alone and got a signal ends here, several processes have reached the end."""
        before, self.place = self.place, _OVER
        if self.caught:
            self.stop_if_due(before)

    def _hear(self, number: int) -> None:
        if self._others is None:
            self._catch(number)
        else:
            self._others.ask(number)

    def _catch(self, number: int) -> None:
        self._agree(self.caught or number)

    def _agree(self, number: int) -> None:
        self._caught_at_s = self._caught_at_s if self.caught else time.monotonic()
        self.caught = number

    def _is_pressed_again(self) -> bool:
        """Is this Ctrl-C a second one, and not the first, of which another process has told already?"""
        now_s = time.monotonic()
        if self._pressed_at_s is not None:
            return now_s - self._pressed_at_s > _ONE_PRESS_S
        return self.caught != 0 and now_s - self._caught_at_s > _TOLD_OF_IT_S

    def _close(self) -> None:
        if self._others is not None:
            self._others.close()
            self._others = None
        if self._peers is not None:
            self._peers.leave()
            self._peers = None


def _of_the_user(handler: Any, number: int) -> Any:
    """The handler that the user had. A forked process inherits ours, and installs one of its own."""
    installed: tuple[int, dict[int, Any]] | None = getattr(handler, _INSTALLED, None)
    if installed is None or installed[0] == os.getpid():
        return handler
    return installed[1][number]


def ending(number: int) -> BaseException:
    """What ends a run because of this signal."""
    return KeyboardInterrupt() if number == signal.SIGINT else InterruptedBySignal(number)


def end_on_ctrl_c() -> None:
    """What a run does last after Ctrl-C: a notebook or a prompt goes on with a usable Trainer, a program ends.

    Raises:
        SystemExit: With the code that shells expect, unless Python is interactive.
    """
    if not hasattr(sys, "ps1"):
        end_despite_pools(128 + signal.SIGINT)
        raise SystemExit(128 + signal.SIGINT) from None
    rank_zero_info("Interrupted by Ctrl-C. The Trainer can be used again.")


def _is_importing(frame: FrameType | None) -> bool:
    """Is a module being imported? Cut short, it could not be imported again: parts of it would be missing."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _signal_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # it also wakes it where it sleeps, or waits for a network
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _announce_stop() -> None:
    if rank_zero_only.rank == 0:
        # Not `print`: the handler may have come in the middle of another one.
        rest_of_line = "\x1b[K" if os.isatty(2) else ""  # of a progress bar, perhaps
        os.write(2, f"\n{CTRL_C}{rest_of_line}\n".encode())
