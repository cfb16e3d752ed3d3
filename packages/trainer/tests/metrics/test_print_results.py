import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.metrics.print_results import print_results, render_results

NAME = st.text("abcdefgh_/", min_size=1, max_size=60)
RESULTS = st.lists(st.dictionaries(NAME, st.floats(allow_nan=True), max_size=5), min_size=1, max_size=12)


@given(results=RESULTS, width=st.integers(40, 200))
def test_never_wider_than_the_terminal_and_nothing_is_lost(results, width):
    text = render_results(results, "test", width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    pieces = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert all(name in pieces for result in results for name in result)
    if text and len(results) > 1:
        assert all(f"DataLoader {index}" in text for index in range(len(results)))


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            80,
            [
                "┌───────────────────┬──────────────┬──────────────┐",
                "│ Validation metric │ DataLoader 0 │ DataLoader 1 │",
                "├───────────────────┼──────────────┼──────────────┤",
                "│ acc               │          1.0 │       0.9744 │",
                "│ only_first        │         0.25 │              │",
                "└───────────────────┴──────────────┴──────────────┘",
            ],
        ),
    ],
)
def test_loaders_beside_each_other(width, lines):
    results = [{"acc/dataloader_idx_0": 1.0, "only_first": 0.25}, {"acc/dataloader_idx_1": 0.9744}]
    assert render_results(results, "validate", width).splitlines() == lines


def test_nothing_to_show_prints_no_table():
    assert render_results([{}], "test", 80) == ""


def test_a_terminal_without_box_characters():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_results([{"acc": 0.5}], "test", file=file)
    file.flush()
    assert b"| acc         |   0.5 |" in raw.getvalue()
