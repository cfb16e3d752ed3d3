import math

import pytest

from fulmen.fabric.errors import MissingPackageError
from fulmen.tuner.lr_sweep import LRFinder

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def finder(mode="exponential", losses=None):
    result = LRFinder(mode, 1e-8, 1.0, 60)
    rates = [10 ** (-8 + 8 * step / 59) for step in range(60)]
    losses = losses or [
        2.3 / (1 + math.exp((step - 40) / 3)) + (5.0 * (step - 52) if step > 52 else 0) for step in range(60)
    ]
    result.results = {
        "lr": rates,
        "loss": losses,
        "raw_loss": [loss + 0.1 * (-1) ** step for step, loss in enumerate(losses)],
    }
    return result


def test_both_curves_and_the_suggestion_are_drawn_and_named(tmp_path):
    found = finder()
    figure = found.plot(suggest=True)
    [ax] = figure.axes
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    mantissa, exponent = f"{found.suggestion():.1e}".split("e")
    assert names == ["loss", "loss, smoothed", rf"suggestion: ${mantissa} \times 10^{{{int(exponent)}}}$"]
    marked = {line.get_label(): line for line in ax.lines}[names[-1]]
    assert list(marked.get_xdata()) == [found.suggestion()]
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_the_end_of_a_sweep_does_not_flatten_the_rest():
    low, high = finder().plot().axes[0].get_ylim()
    assert low < 0.0 < 2.3 < high < 5.0


def test_without_a_suggestion_none_is_marked():
    ax = finder().plot().axes[0]
    assert "suggestion" not in " ".join(text.get_text() for text in ax.get_legend().get_texts())


def test_it_draws_into_given_axes_linearly_if_the_sweep_was():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert finder("linear").plot(suggest=True, ax=ax) is figure
    assert ax.get_xscale() == "linear"


@pytest.mark.parametrize("losses", [[1.0] * 60, [float(step) for step in range(60)], [math.nan] * 60])
def test_curves_without_a_suggestion_can_be_drawn_too(losses):
    low, high = finder(losses=losses).plot(suggest=True).axes[0].get_ylim()
    assert low < high


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingPackageError, match=r"fulmen-tuner\[plots\]"):
        finder().plot()
