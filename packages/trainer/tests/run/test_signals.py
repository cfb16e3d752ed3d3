import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fulmen.trainer import Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.errors import InterruptedBySignal
from fulmen.trainer.run import signals as module
from fulmen.trainer.run.signals import Signals

NUMBERS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _handlers_as_before():
    # Whoever started these tests may have had a signal ignored, as nohup does with SIGHUP.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@given(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4))
def test_the_first_signal_is_the_one_that_ends_the_run(numbers):
    signals = Signals()
    with pytest.raises(InterruptedBySignal) as caught, signals.listening():  # noqa: PT012  # what raises is the block
        for number in numbers:
            os.kill(os.getpid(), number)
        signals.finish()
    assert signals.caught == caught.value.signum == numbers[0]
    assert caught.value.code == 128 + numbers[0]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_afterwards_every_handler_is_as_it_was(handler):
    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(ZeroDivisionError), Signals().listening():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_users_handler_is_called_too():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    signals = Signals()
    with pytest.raises(InterruptedBySignal), signals.listening():  # noqa: PT012  # what raises is the block
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught
        signals.finish()
    assert heard == [signal.SIGTERM]


def test_a_signal_that_the_program_ignores_ends_nothing():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signals = Signals()
    with signals.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not signals.caught


def test_a_signal_that_came_too_late_for_the_loop_is_not_lost():
    signals = Signals()
    after = []
    with pytest.raises(InterruptedBySignal), signals.listening():  # noqa: PT012  # what raises is the block
        os.kill(os.getpid(), signal.SIGTERM)
        after.append("the run came to its end")
    assert after


def test_a_new_run_listens_anew():
    signals = Signals()
    signals.caught = signal.SIGTERM
    with signals.listening():
        signals.finish()


def test_what_came_before_a_process_of_the_run_listens_for_itself_is_not_lost():
    signals = Signals()
    with pytest.raises(InterruptedBySignal), signals.listening():  # noqa: PT012  # what raises is the inner block
        os.kill(os.getpid(), signal.SIGTERM)  # to the process that starts the others, or to a forked one
        with signals.listening():
            assert signals.caught == signal.SIGTERM
            signals.finish()
    with signals.listening():
        assert not signals.caught


def test_who_is_told_to_end_does_not_wait_for_ever_for_the_others_to_come(monkeypatch):
    monkeypatch.setattr(module, "_SET_UP_WITHIN_S", 0.1)
    signals = Signals()
    with pytest.raises(InterruptedBySignal) as caught, signals.listening(), signals.setting_up():  # noqa: PT012  # as above
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(50)
        pytest.fail("went on")
    assert caught.value.signum == signal.SIGTERM


def test_who_has_met_the_others_keeps_to_a_signal_that_is_acted_on_in_good_order(monkeypatch):
    monkeypatch.setattr(module, "_SET_UP_WITHIN_S", 0.0)
    signals, ended = Signals(), []
    before = signal.getsignal(signal.SIGUSR1)
    with contextlib.suppress(InterruptedBySignal), signals.listening(also=[signal.SIGUSR1]):
        with signals.setting_up():
            signals.stop_with_others(None, 0, 1)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.7)  # the watch looks every 0.2 s
        ended.append(signals.caught)
        signals.finish()
    assert ended == [signal.SIGUSR1]
    assert signals.stopped
    assert signal.getsignal(signal.SIGUSR1) == before


def test_who_is_told_to_end_while_the_others_come_goes_on_to_where_all_stop():
    signals = Signals()
    with pytest.raises(InterruptedBySignal), signals.listening():  # noqa: PT012  # what raises is the last line
        with signals.setting_up():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught
        signals.finish()


def test_ctrl_c_leaves_no_module_half_imported(tmp_path, monkeypatch):
    source = "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n"
    (tmp_path / "imported_in_setup.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    signals, found = Signals(), []
    try:
        with pytest.raises(KeyboardInterrupt), signals.listening():  # noqa: PT012  # what raises is the last line
            with signals.setting_up():
                import imported_in_setup

                found.append(imported_in_setup.whole)
            signals.begin_next()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [True]


def test_outside_the_main_thread_nothing_is_caught_and_all_goes_on():
    before, went_on = signal.getsignal(signal.SIGTERM), []

    def run():
        with Signals().listening():
            went_on.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert went_on == [True]


def press():
    signal.raise_signal(signal.SIGINT)  # the handler has run when this returns


@pytest.fixture
def loops(monkeypatch):
    """Signals of a loop that has begun, at a prompt that has Python's own handler; and a clock to be moved."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    signals = Signals()
    with contextlib.suppress(KeyboardInterrupt), signals.listening():
        signals.place = 3
        yield signals, clock
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_another_process_has_told_of_already_is_no_second_one(loops):
    signals, clock = loops
    signals._agree(signal.SIGINT)  # from the thread that watches the store
    clock.now_s += 0.9
    press()
    press()  # an agent hands on what the terminal has sent
    assert signals.caught == signal.SIGINT
    clock.now_s += 0.5
    with pytest.raises(KeyboardInterrupt):
        press()


def test_the_second_ctrl_c_ends_at_once_also_who_had_only_been_told_of_the_first(loops):
    signals, clock = loops
    signals._agree(signal.SIGINT)
    clock.now_s += 1.1
    with pytest.raises(KeyboardInterrupt):
        press()


@given(st.lists(st.floats(0.0, 0.35), max_size=4), st.floats(0.45, 1e6))
def test_repeats_within_a_moment_are_one_press_and_the_next_one_ends_at_once(repeats_s, next_s):
    clock = SimpleNamespace(now_s=100.0)
    signals = Signals()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(KeyboardInterrupt), signals.listening():
            patched.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
            signals.place = 3
            for at_s in [0.0, *sorted(repeats_s)]:
                clock.now_s = 100.0 + at_s
                press()
            assert signals.caught == signal.SIGINT
            clock.now_s = 100.0 + next_s
            with pytest.raises(KeyboardInterrupt):
                press()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_process_takes_the_handler_of_the_user_and_not_that_of_its_parent(loops):
    parent, _ = loops
    pid = os.fork()
    if pid == 0:
        signals = Signals()
        said = 1
        try:
            with contextlib.suppress(KeyboardInterrupt), signals.listening():
                signals.place = 3
                press()
                press()
                said = 0 if signals.caught == signal.SIGINT and not parent.caught else 2
        finally:
            os._exit(said)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not parent.caught


@pytest.mark.parametrize("place", [0, 1])
def test_a_process_that_user_code_forked_heeds_sigterm_as_ever(place):
    signals = Signals()
    with signals.listening():
        signals.place = place  # `prepare_data` and `setup` come before the first one
        is_there = multiprocessing.Pipe(duplex=False)

        def work():
            is_there[1].send(True)
            time.sleep(600)

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        is_there[0].recv()  # Python forgets what comes in the midst of a fork
        process.terminate()
        process.join(100)
        exit_code = process.exitcode
        process.kill()
    assert exit_code == -signal.SIGTERM
    assert not signals.caught


def test_a_process_that_this_one_starts_for_the_run_keeps_what_it_hears():
    signals = Signals()
    with signals.listening(only_starts=True):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if signals.caught == signal.SIGTERM else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not signals.caught


def exit_code_of(function):
    """Of a forked process in a group of its own, which runs the function."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            torch.set_num_threads(1)
            function()
            code = 0
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_who_is_set_up_in_code_of_c_ends_too():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        told, tells = os.pipe()

        def wait_for_the_others():
            signals = Signals()
            with signals.listening(), signals.setting_up(lambda number: os.write(tells, bytes([number]))):
                os.kill(os.getpid(), signal.SIGTERM)
                timeout = timedelta(seconds=90)
                torch.distributed.TCPStore("127.0.0.1", silent.getsockname()[1], 2, is_master=False, timeout=timeout)

        assert exit_code_of(wait_for_the_others) == 143
        os.close(tells)
        with os.fdopen(told, "rb") as all_told:
            assert all_told.read() == bytes([signal.SIGTERM])


class TellsAll(BoringModel):
    """The whole group gets the signal, workers of the loader and a pool as well."""

    lost = False

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 64), num_workers=2)

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            os.killpg(os.getpgrp(), signal.SIGTERM)
            time.sleep(0.5)  # for workers to end, if they do
            if self.lost:
                raise BrokenProcessPool
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_to_the_whole_group_takes_no_worker_from_the_batch_in_work(lost, tmp_path):
    def fit():
        module = TellsAll()
        module.lost = lost
        flags = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=1000)
        Trainer(accelerator="cpu", callbacks=[kept], default_root_dir=tmp_path, **flags).fit(module)

    assert exit_code_of(fit) == 143
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ([] if lost else ["stopped.ckpt"])
