"""Is it the whole file?"""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.manifest import TAIL_NUM_BYTES, archive_damage, is_archive


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.arange(300.0), "names": ["PK\x05\x06"] * 3}, file)
    return file.getvalue()


WHOLE = saved()


def damage(data: bytes) -> str | None:
    return archive_damage(data[-TAIL_NUM_BYTES:], len(data))


def test_what_torch_writes_is_whole() -> None:
    assert is_archive(WHOLE)
    assert damage(WHOLE) is None


@given(st.integers(0, len(WHOLE) - 1))
def test_cut_short_anywhere_it_is_damaged(num_bytes: int) -> None:
    assert damage(WHOLE[:num_bytes])


@given(st.binary(min_size=1, max_size=200))
def test_grown_at_its_end_it_is_damaged(more: bytes) -> None:
    assert damage(WHOLE + more)


@given(st.integers(1, len(WHOLE) - 500), st.integers(1, 300))
def test_with_a_piece_missing_in_the_middle_it_is_damaged(start: int, size: int) -> None:
    assert damage(WHOLE[:start] + WHOLE[start + size :])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a checkpoint"])
def test_what_never_was_an_archive_is_damaged(data: bytes) -> None:
    assert damage(data)


def test_an_archive_with_32_bit_places_only_is_whole_too() -> None:
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1" * 50)
    assert damage(file.getvalue()) is None
    assert damage(file.getvalue()[:-1])
