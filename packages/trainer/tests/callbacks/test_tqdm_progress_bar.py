import io
import os
import pickle
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.callbacks.tqdm_bar import Tqdm
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar

CLOCKS = ("time", "monotonic")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    # Not sys.stdout itself: pytest sets that anew after fixtures have run.
    monkeypatch.setattr("fulmen.trainer.callbacks.tqdm_progress_bar.sys", SimpleNamespace(stdout=screen))
    return screen


@pytest.fixture
def page(monkeypatch):
    page = io.StringIO()
    monkeypatch.setattr("fulmen.trainer.callbacks.tqdm_progress_bar.sys", SimpleNamespace(stdout=page))
    return page


def train(bar, trainer, *, epochs=2, batches=20, start=0):
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        bar.on_train_epoch_start(trainer, None)
        for batch_idx in range(start, batches):
            bar.on_train_batch_end(trainer, None, None, None, batch_idx)
        bar.on_train_epoch_end(trainer, None)
    bar.on_train_end(trainer, None)


def trainer_with_metrics(make_trainer, **given):
    setting = {"max_epochs": 10, "num_training_batches": 20, **given}
    return make_trainer(
        progress_bar_metrics={"loss": 0.12345, "acc": 0.98}, loggers=[SimpleNamespace(version=0)], **setting
    )


def test_the_bar_shows_epoch_rate_and_metrics(screen, make_trainer):
    train(TQDMProgressBar(), trainer_with_metrics(make_trainer))
    last = screen.getvalue().split("\r")[-1]
    assert last.startswith("Epoch 1/9: 100%|")
    assert "| 20/20 [00:00<00:00, " in last
    assert last.rstrip().endswith("it/s, v_num=0, loss=0.123, acc=0.98]")


def test_it_is_drawn_by_the_clock_and_not_by_the_step(screen, make_trainer):
    asked = []

    class Counting(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            asked.append(time.monotonic())
            return super().get_metrics(trainer, pl_module)

    start_s = time.monotonic()
    train(Counting(), trainer_with_metrics(make_trainer, num_training_batches=2000), epochs=3, batches=2000)
    # The clock, as often again between steps, the first draw and the last.
    assert len(asked) <= 2 * (time.monotonic() - start_s) / 0.1 + 4


def test_a_step_without_drawing_costs_less_than_3_microseconds(page, make_trainer):
    bar, trainer = TQDMProgressBar(), trainer_with_metrics(make_trainer, num_training_batches=10**6)
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    fastest = min(_seconds_of(bar, trainer, 1000) for _ in range(20))
    assert fastest / 1000 < 3e-6


def _seconds_of(bar, trainer, num_steps):
    start = time.perf_counter()
    for batch_idx in range(num_steps):
        bar.on_train_batch_end(trainer, None, None, None, batch_idx)
    return time.perf_counter() - start


def test_where_there_is_no_terminal_each_epoch_is_one_line(page, make_trainer):
    trainer = trainer_with_metrics(make_trainer)
    bar = TQDMProgressBar()
    train(bar, trainer)
    lines = page.getvalue().splitlines()
    assert [line.split(" [")[0] for line in lines] == ["Epoch 0/9: 20/20", "Epoch 1/9: 20/20"]
    assert all(line.endswith("v_num=0, loss=0.123, acc=0.98]") for line in lines)
    assert "\r" not in page.getvalue()


def test_long_epochs_get_a_line_every_few_seconds(page, make_trainer, monkeypatch):
    monkeypatch.setattr("fulmen.trainer.callbacks.tqdm_progress_bar._LINE_EVERY_S", 0.0)
    train(TQDMProgressBar(refresh_rate=10), trainer_with_metrics(make_trainer), epochs=1)
    assert [line.split(" [")[0] for line in page.getvalue().splitlines()] == [
        *("Epoch 0/9: 1/20", "Epoch 0/9: 10/20", "Epoch 0/9: 20/20", "Epoch 0/9: 20/20")
    ]


def test_a_total_that_was_unknown_is_known_when_the_epoch_is_over(page, make_trainer):
    train(TQDMProgressBar(), trainer_with_metrics(make_trainer, num_training_batches=float("inf"), max_epochs=-1))
    assert page.getvalue().splitlines()[0].startswith("Epoch 0: 20/20 [")


def test_a_run_that_goes_on_does_not_count_what_was_done_before_in_its_rate(page, make_trainer):
    bar = TQDMProgressBar()
    train(bar, trainer_with_metrics(make_trainer), epochs=1, start=15)
    assert bar.train_progress_bar.initial == 15
    assert bar.train_progress_bar.n == 20


def test_validation_and_sanity_check_have_a_bar_and_leave_no_trace(screen, make_trainer, monkeypatch):
    monkeypatch.setattr("fulmen.trainer.callbacks.tqdm_progress_bar._DRAW_EVERY_S", 0.0)
    bar, trainer = TQDMProgressBar(), trainer_with_metrics(make_trainer, num_val_batches=[3, 2])
    bar.setup(trainer, None, "fit")
    trainer.sanity_checking = True
    bar.on_sanity_check_start(trainer, None)
    evaluate(bar, trainer, [1])
    bar.on_sanity_check_end(trainer, None)
    trainer.sanity_checking = False
    assert "Sanity Checking" in screen.getvalue()
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    bar.on_train_batch_end(trainer, None, None, None, 0)
    evaluate(bar, trainer, [3, 2])
    assert "Validation DataLoader 0:" in screen.getvalue()
    assert "Validation DataLoader 1:" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    bar.on_exception(trainer, None, RuntimeError())
    assert not Tqdm._instances


def test_validation_is_no_part_of_the_rate_and_the_steps_before_it_are(screen, make_trainer, monkeypatch):
    now_s = 100.0
    for clock in ("tqdm.std.time", *(f"fulmen.trainer.callbacks.tqdm_progress_bar.{name}" for name in CLOCKS)):
        monkeypatch.setattr(clock, lambda: now_s)
    bar, trainer = TQDMProgressBar(), trainer_with_metrics(make_trainer, num_training_batches=300, num_val_batches=[1])
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    for batch_idx in range(300):
        now_s += 0.03
        bar.on_train_batch_end(trainer, None, None, None, batch_idx)
        bar.on_validation_start(trainer, None)
        now_s += 0.02
        bar.on_validation_end(trainer, None)
    shown = [float(rate) for rate in re.findall(r"([0-9.]+)it/s", screen.getvalue())]
    assert len(shown) > 50
    assert all(32 < rate < 35 for rate in shown)


def evaluate(bar, trainer, batches):
    bar.on_validation_start(trainer, None)
    for dataloader_idx, num in enumerate(batches):
        for batch_idx in range(num):
            bar.on_validation_batch_start(trainer, None, None, batch_idx, dataloader_idx)
            bar.on_validation_batch_end(trainer, None, None, None, batch_idx, dataloader_idx)
    bar.on_validation_end(trainer, None)


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_each_loader_of_other_stages_is_a_line(stage, page, make_trainer):
    bar, trainer = TQDMProgressBar(), make_trainer(num_test_batches=[2, 3], num_predict_batches=[2, 3])
    bar.setup(trainer, None, stage)
    getattr(bar, f"on_{stage}_start")(trainer, None)
    for dataloader_idx, num in enumerate([2, 3]):
        for batch_idx in range(num):
            getattr(bar, f"on_{stage}_batch_start")(trainer, None, None, batch_idx, dataloader_idx)
            getattr(bar, f"on_{stage}_batch_end")(trainer, None, None, None, batch_idx, dataloader_idx)
    getattr(bar, f"on_{stage}_end")(trainer, None)
    word = {"test": "Testing", "predict": "Predicting"}[stage]
    lines = [line.split(" [")[0] for line in page.getvalue().splitlines()]
    assert lines == [f"{word} DataLoader 0: 2/2", f"{word} DataLoader 1: 3/3"]


@pytest.mark.parametrize("silence", ["refresh_rate", "disable", "rank"])
def test_a_disabled_bar_writes_nothing(silence, page, make_trainer):
    bar = TQDMProgressBar(refresh_rate=0 if silence == "refresh_rate" else 1)
    if silence == "disable":
        bar.disable()
    train(bar, trainer_with_metrics(make_trainer, is_global_zero=silence != "rank"))
    assert bar.is_disabled
    assert page.getvalue() == ""


def test_print_stands_above_the_bar(screen, make_trainer, capsys):
    bar, trainer = TQDMProgressBar(), trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    bar.print("before", 1)
    bar.on_train_start(trainer, None)
    bar.print("during", 2, sep="-", file=screen)
    assert capsys.readouterr().out == "before 1\n"
    assert re.search("Training: .*\r +\rduring-2\n\rTraining: ", screen.getvalue())


def test_users_make_their_own_bars(page, make_trainer):
    class Mine(TQDMProgressBar):
        def init_train_tqdm(self):
            bar = super().init_train_tqdm()
            bar.mine = True
            return bar

    bar = Mine(leave=True)
    train(bar, trainer_with_metrics(make_trainer))
    assert bar.train_progress_bar.mine


def test_it_can_be_sent_to_another_process(page, make_trainer):
    bar = TQDMProgressBar(refresh_rate=3)
    train(bar, trainer_with_metrics(make_trainer))
    bar._trainer = None  # what the trainer itself sends is its own matter
    copy = pickle.loads(pickle.dumps(bar))
    assert copy.refresh_rate == 3


def test_a_metric_with_a_name_of_the_bar_is_shown_and_warned_of(make_trainer):
    trainer = make_trainer(progress_bar_metrics={"v_num": 1.0}, loggers=[SimpleNamespace(version="abcdefgh")])
    with pytest.warns(UserWarning, match="v_num"):
        assert TQDMProgressBar().get_metrics(trainer, None) == {"v_num": 1.0}
    trainer.progress_bar_metrics = {}
    assert TQDMProgressBar().get_metrics(trainer, None) == {"v_num": "efgh"}


def test_negative_rates_are_refused():
    with pytest.raises(ConfigurationError, match="refresh_rate=-1"):
        TQDMProgressBar(refresh_rate=-1)
    with pytest.raises(TypeError, match="bar of training"):
        _ = TQDMProgressBar().train_progress_bar


def test_on_a_real_terminal_bars_are_drawn_over():
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import FakeTrainer
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar
bar, trainer = TQDMProgressBar(), FakeTrainer(".", max_epochs=1)
bar.setup(trainer, None, "fit")
bar.on_train_start(trainer, None)
bar.on_train_epoch_start(trainer, None)
bar.on_train_batch_end(trainer, None, None, None, 0)
print("said", "by the user")
print("without an end", end="", flush=True)
print()
bar.on_train_batch_end(trainer, None, None, None, 1)
bar.on_train_epoch_end(trainer, None)
bar.on_train_end(trainer, None)
"""
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", program], stdout=follower, env=environment, check=True, timeout=120)
    os.close(follower)
    written = os.read(leader, 65536).decode()
    os.close(leader)
    assert "\rEpoch 0/0: 100%|" in written
    assert "\rsaid by the user\r\n\rEpoch 0/0:  50%|" in re.sub(" +\r", "\r", written).replace("\r\r", "\r")
    assert "\rwithout an end\r\n\rEpoch 0/0:  50%|" in re.sub(" +\r", "\r", written).replace("\r\r", "\r")
    assert "| 2/2 [" in written
