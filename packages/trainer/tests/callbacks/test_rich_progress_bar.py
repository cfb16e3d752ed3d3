import io
import math
import pickle
import re
import signal
import sys
from types import SimpleNamespace

import pytest

from fulmen.fabric.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.callbacks import rich_columns
from fulmen.trainer.callbacks.rich_progress_bar import RichProgressBar
from fulmen.trainer.callbacks.rich_theme import RichProgressBarTheme

pytest.importorskip("rich")

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def frames(screen):
    """What was drawn, one after the other, as plain text."""
    drawn = re.split(r"(?:\r\x1b\[2K|\x1b\[1A\x1b\[2K)+", screen.getvalue())
    return [CONTROL.sub("", frame) for frame in drawn]


def bar_on(width=120, **given):
    screen = io.StringIO()
    kwargs = {"file": screen, "width": width, "force_terminal": True, "_environ": {"TERM": "xterm"}}
    return RichProgressBar(**given, console_kwargs=kwargs), screen


def bar_in_a_file(**given):
    page = io.StringIO()
    return RichProgressBar(**given, console_kwargs={"file": page, "force_terminal": False}), page


def trainer_with_metrics(make_trainer, **given):
    setting = {"max_epochs": 10, "num_training_batches": 20, **given}
    return make_trainer(
        progress_bar_metrics={"loss": 0.12345, "acc": 0.98}, loggers=[SimpleNamespace(version=0)], **setting
    )


def train(bar, trainer, *, epochs=2, batches=20, start=0, after=None):
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        bar.on_train_epoch_start(trainer, None)
        for batch_idx in range(start, batches):
            bar.on_train_batch_end(trainer, None, None, None, batch_idx)
            if after is not None:
                after(batch_idx)
        bar.on_train_epoch_end(trainer, None)
    bar.on_train_end(trainer, None)


def evaluate(bar, trainer, batches, stage="validation"):
    getattr(bar, f"on_{stage}_start")(trainer, None)
    for dataloader_idx, num in enumerate(batches):
        for batch_idx in range(num):
            getattr(bar, f"on_{stage}_batch_start")(trainer, None, None, batch_idx, dataloader_idx)
            getattr(bar, f"on_{stage}_batch_end")(trainer, None, None, None, batch_idx, dataloader_idx)
    getattr(bar, f"on_{stage}_end")(trainer, None)


def test_the_bar_shows_epoch_rate_and_metrics(make_trainer):
    bar, screen = bar_on()
    train(bar, trainer_with_metrics(make_trainer))
    last = frames(screen)[-1]
    assert re.match(r"Epoch 1/9 ━{30} 20/20 0:00:00<0:00:00 \S+it/s v_num: 0 loss: 0.123 acc: 0.980\s", last)
    assert bar.progress is None


@pytest.mark.parametrize("start", [0, 7])
def test_the_rate_is_that_of_the_first_batch_from_the_first_batch_on(start, make_trainer, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr("fulmen.trainer.callbacks.rich_progress_bar.monotonic", lambda: now_s)
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    for batch_idx in range(start, 20):
        now_s += 0.2
        bar.on_train_batch_end(trainer, None, None, None, batch_idx)
    bar.on_train_end(trainer, None)
    rates = {float(rate) for frame in frames(screen) for rate in re.findall(r"(\S+)it/s", frame)}
    assert rates - {0.0} == {5.0}


def test_validation_is_no_part_of_the_rate_and_the_steps_before_it_are(make_trainer, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr("fulmen.trainer.callbacks.rich_progress_bar.monotonic", lambda: now_s)
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer, num_training_batches=300, num_val_batches=[1])
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    for batch_idx in range(300):
        now_s += 0.03125
        bar.on_train_batch_end(trainer, None, None, None, batch_idx)
        if batch_idx % 3 == 1:
            bar.on_validation_start(trainer, None)
            now_s += 2.0
            bar.on_validation_end(trainer, None)
    bar.on_train_end(trainer, None)
    rates = {float(rate) for frame in frames(screen) for rate in re.findall(r"300 \S+ (\S+)it/s", frame)}
    assert rates - {0.0} == {32.0}


def test_on_a_narrow_screen_metrics_have_their_own_line_and_keep_it(make_trainer):
    bar, screen = bar_on(width=60)
    trainer = trainer_with_metrics(make_trainer)
    train(bar, trainer, epochs=1, after=lambda _: setattr(trainer, "progress_bar_metrics", {"loss": 1.0}))
    last = frames(screen)[-1].splitlines()
    assert re.match(r"Epoch 0/9 ━{15} 20/20 0:00:00<0:00:00 \S+it/s *$", last[0])
    assert last[1].rstrip() == "v_num: 0 loss: 1.000"


def test_it_is_drawn_by_the_clock_and_not_by_the_step(make_trainer):
    asked = []

    class Counting(RichProgressBar):
        def get_metrics(self, trainer, pl_module):
            asked.append(trainer.current_epoch)
            return super().get_metrics(trainer, pl_module)

    bar = Counting(1, console_kwargs={"file": io.StringIO(), "force_terminal": True, "_environ": {"TERM": "xterm"}})
    train(bar, trainer_with_metrics(make_trainer), epochs=1, batches=20_000)
    assert 2 <= len(asked) < 2000  # a machine as slow as this would need minutes for it


def test_slow_batches_are_shown_although_the_rate_is_100(make_trainer, monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr("fulmen.trainer.callbacks.rich_progress_bar.monotonic", lambda: now.s)
    bar, screen = bar_on()
    train(bar, trainer_with_metrics(make_trainer), epochs=1, batches=5, after=lambda _: setattr(now, "s", now.s + 1.0))
    assert [count for count in range(1, 6) if f" {count}/20" in screen.getvalue()] == [1, 2, 3, 4, 5]


def test_validation_has_a_row_below_once_there_is_time_to_read_it(make_trainer, monkeypatch):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("fulmen.trainer.callbacks.rich_progress_bar.monotonic", lambda: now.s)
    bar, screen = bar_on(refresh_rate=1)
    trainer = trainer_with_metrics(make_trainer, num_val_batches=[3, 2])

    def validate(batch_idx):
        evaluate(bar, trainer, [3, 2])  # in no time

    train(bar, trainer, epochs=1, batches=2, after=validate)
    assert "Validation" not in screen.getvalue()

    def validate_slowly(batch_idx):
        bar.on_validation_start(trainer, None)
        for batch in range(2):
            bar.on_validation_batch_start(trainer, None, None, batch, 1)
            now.s += 1.0
            bar.on_validation_batch_end(trainer, None, None, None, batch, 1)
        assert bar.val_progress_bar.visible
        bar.on_validation_end(trainer, None)

    train(bar, trainer, epochs=1, batches=2, after=validate_slowly)
    assert re.search(r"Epoch 0/9 .* 1/20 .*\nValidation DataLoader 1 ━+ 2/2 ", "\n".join(frames(screen)))
    assert "Validation" not in frames(screen)[-1]


def test_the_sanity_check_comes_and_goes(make_trainer):
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    trainer.sanity_checking = True
    bar.on_sanity_check_start(trainer, None)
    evaluate(bar, trainer, [1])
    assert "Sanity Checking" in frames(screen)[-1]
    bar.on_sanity_check_end(trainer, None)
    trainer.sanity_checking = False
    train(bar, trainer, epochs=1)
    assert "Sanity Checking" not in frames(screen)[-1]


@pytest.mark.parametrize("stage", ["test", "predict", "validation"])
def test_each_loader_of_other_stages_is_a_row(stage, make_trainer):
    bar, screen = bar_on()
    totals = {f"num_{name}_batches": [2, 3] for name in ("test", "predict", "val")}
    trainer = make_trainer(**totals)
    bar.setup(trainer, None, stage)
    evaluate(bar, trainer, [2, 3], stage)
    word = {"test": "Testing", "predict": "Predicting", "validation": "Validation"}[stage]
    assert re.search(rf"{word} DataLoader 0 ━+ 2/2 .*\n{word} DataLoader 1 ━+ 3/3 ", frames(screen)[-1])


def test_data_without_a_length_have_one_when_they_are_over(make_trainer):
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer, num_training_batches=math.inf)
    seen = []
    train(bar, trainer, epochs=1, after=lambda _: seen.append(bar.train_progress_bar.total))
    assert set(seen) == {None}
    assert "/?" in screen.getvalue()
    assert "20/20" in frames(screen)[-1]


def test_going_on_inside_an_epoch_counts_what_was_done_and_not_its_time(make_trainer):
    bar, screen = bar_on(refresh_rate=1)
    train(bar, trainer_with_metrics(make_trainer), epochs=1, start=12)
    assert "13/20" in screen.getvalue()
    assert "20/20" in frames(screen)[-1]


@pytest.mark.parametrize("leave", [False, True])
def test_bars_of_epochs_stay_if_asked(leave, make_trainer):
    bar, screen = bar_on(leave=leave)
    train(bar, trainer_with_metrics(make_trainer), epochs=3)
    text = CONTROL.sub("", screen.getvalue())
    # Below the last frame of an epoch the next one begins, and is not drawn over it.
    assert bool(re.search(r"Epoch 0/9 .* 20/20 [^\n]*\n\s*Epoch 1/9", text)) == leave


def test_in_a_file_there_is_a_line_for_each_epoch_and_nothing_else(make_trainer):
    bar, page = bar_in_a_file()
    train(bar, trainer_with_metrics(make_trainer))
    lines = page.getvalue().splitlines()
    assert [line.split(" [")[0] for line in lines] == ["Epoch 0/9: 20/20", "Epoch 1/9: 20/20"]
    assert lines[0].endswith("it/s, v_num: 0 loss: 0.123 acc: 0.980]")
    bar, page = bar_in_a_file()
    trainer = make_trainer(num_test_batches=[2, 3])
    bar.setup(trainer, None, "test")
    evaluate(bar, trainer, [2, 3], "test")
    assert [line.split(" [")[0] for line in page.getvalue().splitlines()] == [
        "Testing DataLoader 0: 2/2",
        "Testing DataLoader 1: 3/3",
    ]


@pytest.mark.parametrize("silence", ["refresh_rate", "disable", "rank"])
def test_a_disabled_bar_writes_nothing(silence, make_trainer):
    bar, screen = bar_on(refresh_rate=0 if silence == "refresh_rate" else 1)
    if silence == "disable":
        bar.disable()
    trainer = trainer_with_metrics(make_trainer, is_global_zero=silence != "rank")
    train(bar, trainer)
    evaluate(bar, trainer, [1], "test")
    assert bar.is_disabled
    assert screen.getvalue() == ""
    bar.enable()
    assert bar.is_enabled == (silence != "refresh_rate")


def test_an_exception_leaves_the_cursor_below(make_trainer):
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    bar.on_train_batch_end(trainer, None, None, None, 0)
    bar.on_exception(trainer, None, RuntimeError())
    bar.teardown(trainer, None, "fit")
    assert screen.getvalue().endswith("\n\x1b[?25h")  # and shows it again


def test_ctrl_c_is_said_above_the_bars_and_once(make_trainer):
    """What the handler of the signal has written is drawn over."""
    bar, screen = bar_on()
    trainer = trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    bar.on_train_batch_end(trainer, None, None, None, 0)
    assert "Ctrl-C" not in screen.getvalue()
    trainer.context.signals.caught = signal.SIGINT
    bar.on_train_end(trainer, None)
    bar.teardown(trainer, None, "fit")
    assert screen.getvalue().count("Ctrl-C: the run ends after this batch.") == 1


def test_themes_columns_and_metrics_are_the_users(make_trainer):
    class Mine(RichProgressBar):
        def configure_columns(self, trainer):
            return ["{task.description}!", super().configure_columns(trainer)[-1]]

    screen = io.StringIO()
    theme = RichProgressBarTheme(metrics_text_delimiter=" | ", metrics_format=".1e", metrics="red")
    kwargs = {"file": screen, "width": 80, "force_terminal": True, "_environ": {"TERM": "xterm"}}
    bar = Mine(theme=theme, console_kwargs=kwargs)
    train(bar, trainer_with_metrics(make_trainer), epochs=1)
    assert frames(screen)[-1].startswith("Epoch 0/9! v_num: 0 | loss: 1.2e-01 | acc: 9.8e-01")
    assert "\x1b[31mv_num" in screen.getvalue()
    assert RichProgressBarTheme() == RichProgressBarTheme(progress_bar="#6206E0")


def test_it_can_be_sent_to_another_process(make_trainer):
    bar = RichProgressBar(refresh_rate=3)
    bar.setup(make_trainer(), None, "test")
    assert bar._start(make_trainer())
    bar._trainer = None  # what the trainer itself sends is its own matter
    copy = pickle.loads(pickle.dumps(bar))
    assert (copy.refresh_rate, copy.progress) == (3, None)
    bar.teardown(None, None, "test")


def test_negative_rates_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match="refresh_rate=-1"):
        RichProgressBar(refresh_rate=-1)
    with pytest.raises(TypeError, match="bar of training"):
        _ = RichProgressBar().train_progress_bar
    from fulmen.trainer.callbacks import CustomBarColumn

    assert CustomBarColumn(bar_width=3).bar_width == 3
    monkeypatch.setattr("fulmen.trainer.callbacks.rich_columns.is_installed", lambda _: False)
    monkeypatch.setitem(sys.modules, "rich", None)
    stand_in = rich_columns.CustomBarColumn
    with pytest.raises(ModuleNotFoundError, match=r"CustomBarColumn needs"):
        stand_in()
    with pytest.raises(ModuleNotFoundError, match=r"RichProgressBar needs .*'fulmen-trainer\[rich\]'"):
        RichProgressBar()


def test_a_new_epoch_does_not_show_the_times_of_the_last_one(make_trainer):
    bar, _ = bar_on()
    trainer = trainer_with_metrics(make_trainer)
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    task = bar.train_progress_bar
    task.completed, task.start_time = 3, task.start_time - 100
    task.fields["per_second"] = 99.0
    bar.progress.refresh()
    bar.on_train_epoch_start(trainer, None)
    shown = [str(column(task)) for column in bar.progress.columns]
    bar.on_exception(trainer, None, KeyboardInterrupt())
    assert any(text.startswith("0:00:00<") for text in shown)
    assert not any("0:01" in text or "99" in text for text in shown)


def test_on_a_narrow_screen_numbers_stay_whole_and_the_bar_gets_shorter(make_trainer):
    bar, screen = bar_on(width=50)
    trainer = trainer_with_metrics(make_trainer)
    train(bar, trainer, epochs=1, batches=20)
    assert "…" not in screen.getvalue()
    assert "it/s" in screen.getvalue()


@pytest.mark.parametrize("theme", ["dark", RichProgressBarTheme(progress_bar="no such colour")])
def test_a_theme_that_cannot_be_drawn_with_is_refused(theme):
    with pytest.raises(MisconfigurationException, match=r"theme='dark'|progress_bar='no such colour'"):
        RichProgressBar(theme=theme)


def test_a_style_may_be_one_of_the_consoles():
    from rich.theme import Theme

    kwargs = {"theme": Theme({"mine": "red"})}
    RichProgressBar(theme=RichProgressBarTheme(progress_bar="mine", time="repr.number"), console_kwargs=kwargs)
