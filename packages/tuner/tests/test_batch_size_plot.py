import pytest

from fulmen.fabric.errors import MissingPackageError
from fulmen.tuner.batch_size import BatchSizeTrials
from fulmen.tuner.batch_size_search import BatchSizeSearch

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def trials(limit):
    search = BatchSizeSearch(2, 64, bisects=True)
    while (size := search.next_size) is not None:
        search = search.after(size, fits=size <= limit)
    return BatchSizeTrials(search, margin=0.0)


def test_every_trial_is_drawn_and_the_suggestion_is_named(tmp_path):
    figure = trials(21).plot(suggest=True)
    [ax] = figure.axes
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("trial", "batch size")
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["fits"].get_ydata()) == [2, 16, 20, 21]
    assert list(lines["out of memory"].get_ydata()) == [32, 24, 22]
    assert list(lines["suggestion: 21"].get_ydata()) == [21, 21]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fits", "out of memory", "suggestion: 21"]
    figure.savefig(tmp_path / "trials.png")


def test_what_did_not_happen_has_no_name_in_the_legend():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert trials(100).plot(ax=ax) is figure
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fits"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingPackageError, match=r"fulmen-tuner\[plots\]"):
        trials(3).plot()
