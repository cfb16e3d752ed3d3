"""Rows that wait, and how often the work may be done."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.loggers.waiting_rows import WaitingRows, WorkRation, read_waiting_rows


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 10)), max_size=30),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from([0.0, 1.0]),
)
def test_work_takes_its_share_of_the_time(tries: list[tuple[float, float]], share: float, burst_s: float) -> None:
    now_s, spent_s, last_s = 0.0, 0.0, 0.0
    ration = WorkRation(share, burst_s, clock=lambda: now_s)
    for passed_s, work_s in tries:
        now_s += passed_s
        if ration.is_open:
            # What was done before this fits; only the last piece may be larger than what is left.
            assert spent_s <= burst_s + share * now_s + 1e-6
            spent_s += work_s
            last_s = work_s
            ration.spend(work_s)
    assert spent_s <= burst_s + share * now_s + last_s + 1e-6


def test_a_rest_opens_it_again_and_is_not_saved_up() -> None:
    now_s = 0.0
    ration = WorkRation(share=0.1, burst_s=1.0, clock=lambda: now_s)
    now_s = 1000.0
    for _ in range(2):  # the burst, and the piece that ends it
        assert ration.is_open
        ration.spend(0.6)
    assert not ration.is_open
    now_s = 1002.1
    assert ration.is_open


@pytest.mark.parametrize("folder", ["memory://waiting", None])
def test_rows_come_back_as_they_went(tmp_path: Path, folder: str | None) -> None:
    path = f"{folder or tmp_path}/rows.jsonl"
    waiting = WaitingRows(path)
    assert read_waiting_rows(path) == []
    waiting.add([{"a": 1, "step": 0}])
    waiting.add([{"a": math.inf, "b": "text", "step": 1}, {"c": torch.ones(2), "step": 2}])
    assert [row["step"] for row in waiting.rows] == [0, 1, 2]
    read = read_waiting_rows(path)
    assert read[:2] == waiting.rows[:2]
    assert read[2] == {"c": "tensor([1., 1.])", "step": 2}
    waiting.clear()
    assert read_waiting_rows(path) == waiting.rows == []


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_waiting_rows(str(path)) == [{"a": 1}]
