import io
from types import SimpleNamespace

import pytest

from fulmen.trainer.callbacks.above_bars import PrintsAboveBars, underlying


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bar:
    """Writes what is done to it where it is done."""

    def __init__(self, screen):
        self.screen = screen

    def clear(self):
        self.screen.write("<clear>")

    def refresh(self):
        self.screen.write("<draw>")


@pytest.fixture
def sys(monkeypatch):
    screen = Terminal()
    # Not sys itself: pytest sets its streams anew after fixtures have run.
    sys = SimpleNamespace(stdout=screen, stderr=screen)
    monkeypatch.setattr("fulmen.trainer.callbacks.above_bars.sys", sys)
    return sys


def begun(screen):
    above = PrintsAboveBars()
    above.begin(lambda: [Bar(screen)])
    above.begin(lambda: [Bar(screen)])  # nothing is put before it twice
    return above


def test_lines_go_out_whole_and_bars_come_back_below(sys):
    screen = sys.stdout
    above = begun(screen)
    print("one", "line", file=sys.stdout)
    print("half ", end="", file=sys.stdout)
    assert screen.getvalue() == "<clear>one line\n<draw>"
    print("of it", file=sys.stdout)
    sys.stderr.writelines(["told\n", "rest"])
    assert screen.getvalue().endswith("<draw><clear>half of it\n<draw><clear>told\n<draw>")
    assert sys.stdout.isatty()
    assert underlying(sys.stdout) is screen
    above.end()
    assert sys.stdout is sys.stderr is screen
    assert screen.getvalue().endswith("<clear>rest")  # nothing is lost


def test_a_question_stands_alone_until_it_is_answered(sys):
    screen = sys.stdout
    above = begun(screen)
    print("(Pdb) ", end="", flush=True, file=sys.stdout)
    assert screen.getvalue() == "<clear>(Pdb) "
    print(file=sys.stdout)
    assert screen.getvalue() == "<clear>(Pdb) \n<draw>"
    above.end()


def test_what_is_no_terminal_and_what_others_have_put_there_is_left_alone(sys):
    sys.stderr = page = io.StringIO()
    above = begun(sys.stdout)
    assert sys.stderr is page
    sys.stdout = other = Terminal()
    above.end()
    assert sys.stdout is other
