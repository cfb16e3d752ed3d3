"""Calls of Linux change no byte, and where they are not there nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io import linux_calls


@given(st.integers(1, 5 * 4096), st.integers(0, 4096), st.integers(0, 4096))
def test_getting_pages_changes_no_byte(size, start, end):
    memory = bytearray(range(256)) * (size // 256 + 1)
    before = bytes(memory)
    linux_calls.give_pages(memoryview(memory)[start : len(memory) - end])
    assert memory == before


@pytest.mark.parametrize("call", [None, lambda *_: -1])
def test_where_a_call_is_missing_or_fails_nothing_happens(call, monkeypatch, tmp_path):
    monkeypatch.setattr(linux_calls, "_call", lambda name: call)
    linux_calls.give_pages(memoryview(bytearray(2**16)))
    linux_calls.begin_to_sync(0, 0, 1)
    assert not linux_calls.exchange_names(str(tmp_path / "a"), str(tmp_path / "b"))
