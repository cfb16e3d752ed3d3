"""Is it the whole file, and is every byte what was written? Laws over bytes."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.manifest import (
    ARCHIVE_END_NUM_BYTES,
    MAX_SEAL_NUM_BYTES,
    MAX_SEALED_DIGESTS,
    SEALED_BLOCK_NUM_BYTES,
    TAIL_NUM_BYTES,
    Digests,
    Manifest,
    PassedOver,
    archive_damage,
    end_with_room,
    is_archive,
    newest_that_verifies,
    read_seal,
    read_sealed_metadata,
    seal_archive,
    seal_metadata,
    seal_num_bytes,
)


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
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1" * 50)
    assert damage(file.getvalue()) is None
    assert damage(file.getvalue()[:-1])


# ---- digests of blocks

BLOCKS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


@given(BLOCKS, st.integers(1, 50), st.data())
def test_any_other_block_is_found_and_the_digest_that_stands_for_it_is_named(
    blocks: list[bytes], max_digests: int, data: st.DataObject
) -> None:
    digests = Digests.of_blocks(10 * len(blocks) - 3, blocks, 10, max_digests)
    assert len(digests.digests) <= max_digests
    assert digests.is_possible
    assert digests.damaged(blocks) is None
    index = data.draw(st.integers(0, len(blocks) - 1))
    other = bytes([blocks[index][0] ^ 1]) + blocks[index][1:]
    assert digests.damaged([*blocks[:index], other, *blocks[index + 1 :]]) == index // digests.num_blocks
    start, end = digests.span(index // digests.num_blocks)
    assert start <= index * 10 < end <= digests.num_bytes
    assert digests.damaged(blocks[:-1]) is not None or len(blocks) == 1


@given(BLOCKS, st.integers(1, SEALED_BLOCK_NUM_BYTES))
def test_a_seal_is_read_as_it_was_made(blocks: list[bytes], last: int) -> None:
    num_bytes = (len(blocks) - 1) * SEALED_BLOCK_NUM_BYTES + last
    seal = seal_archive(num_bytes, blocks)
    assert len(seal) == seal_num_bytes(num_bytes) <= MAX_SEAL_NUM_BYTES
    digests = read_seal(b"before" + seal, num_bytes + len(seal))
    assert digests is not None
    assert digests.num_bytes == num_bytes
    assert digests.damaged(blocks) is None


@given(st.integers(1, 10**13))
def test_a_seal_fits_into_the_comment_of_an_archive_whatever_its_size(num_bytes: int) -> None:
    assert seal_num_bytes(num_bytes) <= MAX_SEAL_NUM_BYTES < 2**16
    assert (seal_num_bytes(num_bytes) - 80) // 32 <= MAX_SEALED_DIGESTS


@given(st.data())
def test_a_flipped_bit_of_a_seal_is_noticed(data: st.DataObject) -> None:
    seal = bytearray(seal_archive(100, [hashlib.sha256(b"").digest()]))
    bit = data.draw(st.integers(0, 8 * len(seal) - 1))
    seal[bit // 8] ^= 1 << bit % 8
    try:
        found = read_seal(bytes(seal), 100 + len(seal))
    except ValueError:
        return
    assert found is None  # its last bytes: then the archive's own end contradicts what follows it


def test_a_seal_of_another_file_is_refused() -> None:
    seal = seal_archive(100, [b"1" * 32])
    with pytest.raises(ValueError, match="another file"):
        read_seal(seal, 101 + len(seal))


def test_only_the_last_record_of_an_archive_gets_room_for_a_seal() -> None:
    end = WHOLE[-ARCHIVE_END_NUM_BYTES:]
    changed = end_with_room(end, len(WHOLE))
    assert changed is not None
    assert struct.unpack("<H", changed[-2:]) == (seal_num_bytes(len(WHOLE)),)
    assert changed[:-2] == end[:-2]
    assert end_with_room(b"x" * 22, 22) is None
    assert end_with_room(end[:-1], 22) is None


# ---- the manifest of a folder

DIGESTS = st.integers(0, 3).flatmap(
    lambda number: st.builds(
        Digests,
        st.integers(max(0, 10 * number - 9), 10 * number),
        st.lists(st.binary(min_size=32, max_size=32), min_size=number, max_size=number).map(tuple),
        st.just(10),
    )
)
MANIFESTS = st.builds(Manifest, st.dictionaries(st.text(), DIGESTS), st.dictionaries(st.text(), st.lists(st.text())))


@given(st.binary(max_size=50), MANIFESTS)
def test_a_manifest_is_read_as_it_was_written_and_leaves_the_pickle_alone(pickled: bytes, manifest: Manifest) -> None:
    content = seal_metadata(pickled, manifest)
    assert content.startswith(pickled)
    assert read_sealed_metadata(content) == (pickled, manifest)


@given(MANIFESTS, st.data())
def test_a_flipped_bit_of_the_description_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(seal_metadata(b"pickle.", manifest))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        pickled, found = read_sealed_metadata(bytes(content))
    except ValueError:
        return
    assert found is None
    assert len(pickled) == len(content)  # all of it goes to the unpickler, which refuses what follows a pickle


@given(st.binary(max_size=100))
def test_what_something_else_wrote_has_no_manifest(content: bytes) -> None:
    assert read_sealed_metadata(content) == (content, None)


# ---- the newest that verifies


@given(st.lists(st.tuples(st.integers(), st.one_of(st.none(), st.text()))))
def test_the_first_without_damage_is_taken_and_those_before_it_are_named(found: list[tuple[int, str | None]]) -> None:
    asked: list[tuple[int, str | None]] = []

    def damage_of(candidate: tuple[int, str | None]) -> str | None:
        asked.append(candidate)
        return candidate[1]

    taken, passed_over = newest_that_verifies(found, damage_of)
    expected = next((candidate for candidate in found if candidate[1] is None), None)
    assert taken == expected
    before = found if expected is None else found[: found.index(expected)]
    assert passed_over == [PassedOver(candidate, str(candidate[1])) for candidate in before]
    assert len(asked) == len(before) + (expected is not None)
