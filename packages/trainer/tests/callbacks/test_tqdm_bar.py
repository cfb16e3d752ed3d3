"""A bar in the width that there is."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.callbacks import tqdm_bar
from fulmen.trainer.callbacks.tqdm_bar import FORMATS, Tqdm
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar


class Screen(io.StringIO):
    """A terminal of one line."""

    def isatty(self):
        return True


@pytest.fixture
def make_bar(monkeypatch):
    monkeypatch.setattr(tqdm_bar, "can_draw_over", lambda file: True)
    made = []

    def make(width, **kwargs):
        made.append(Tqdm(file=Screen(), ncols=width, bar_format=FORMATS[0], desc="Epoch 0/1", mininterval=0, **kwargs))
        return made[-1]

    yield make
    for bar in made:
        bar.close()


def drawn(bar, n, **metrics):
    bar.n = n
    bar.set_postfix(metrics, refresh=False)
    return str(bar)


def test_the_widest_format_is_that_of_the_callback():
    assert FORMATS[0] == TQDMProgressBar.BAR_FORMAT


def test_the_bar_goes_before_a_metric_does(make_bar):
    bar = make_bar(80, total=40)
    assert "|" in drawn(bar, 4, loss=0.5)
    text = drawn(bar, 9, train_loss=0.0743, val_loss=0.255, val_acc=0.5)
    assert text.endswith("train_loss=0.0743, val_loss=0.255, val_acc=0.5]")
    assert "|" not in text
    narrow = drawn(make_bar(50, total=40), 9, train_loss=0.0743, val_loss=0.2)
    assert narrow == "Epoch 0/1: 9/40, train_loss=0.0743, val_loss=0.2"


def test_a_bar_that_has_gone_does_not_come_and_go(make_bar):
    bar = make_bar(60, total=40)
    assert "|" in drawn(bar, 1)
    assert "|" not in drawn(bar, 2, train_loss=0.0743, val_loss=0.2553)
    assert "|" not in drawn(bar, 3, train_loss=0.1)
    bar.ncols = 100  # the window was made wider
    assert "|" in drawn(bar, 4, train_loss=0.0743)


@given(st.integers(24, 120), st.none() | st.integers(1, 10**6), st.lists(st.floats(-1e3, 1e3), max_size=4))
def test_it_fits_and_says_nothing_of_a_time_that_nobody_knows(width, total, values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm_bar, "can_draw_over", lambda file: True)
        bar = Tqdm(file=Screen(), ncols=width, bar_format=FORMATS[0], desc="Epoch 0/1", total=total, mininterval=0)
        text = drawn(bar, 1, **{f"metric_{index}": value for index, value in enumerate(values)})
        bar.close()
    assert len(text) <= width
    assert text.startswith("Epoch 0/1: ")
    if total is None:
        assert "<" not in text
        assert "1/?" in text
        assert "|" not in text
    else:
        assert f"1/{total}" in text


def test_a_ctrl_c_that_the_terminal_writes_behind_it_stays_on_its_line(make_bar):
    for width in range(24, 100):
        bar = make_bar(width, total=40)
        text = drawn(bar, 1, train_loss=0.0743, val_loss=0.2553)
        assert len(text) + len("^C") <= width
        assert text.endswith(("…", "]", "0.2553", "0.255"))
        bar.close()


def test_a_format_of_the_users_is_left_alone(make_bar):
    bar = make_bar(40, total=4)
    bar.bar_format = "{desc} {n_fmt} of {total_fmt}"
    assert drawn(bar, 2, loss=1.0) == "Epoch 0/1 2 of 4"


def test_lines_of_a_file_have_no_bar():
    file = io.StringIO()
    for total, times in ((4, "<"), (None, "[")):
        bar = Tqdm(file=file, ncols=30, bar_format=FORMATS[0], desc="Epoch 0/1", total=total, mininterval=0)
        bar.n = 2
        bar.set_postfix({"a_metric_with_a_long_name": 1.0}, refresh=False)
        bar.write_line()
        bar.close()
        line = file.getvalue().splitlines()[-1]
        assert line.startswith(f"Epoch 0/1: 2/{total or '?'} [")
        assert line.endswith("a_metric_with_a_long_name=1]")
        assert times in line
        assert ("<" in line) == (total is not None)
