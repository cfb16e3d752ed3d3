"""Files as blocks, with real bytes and real threads."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.blocks import (
    BlockDigester,
    BlockReader,
    DamagedBlockError,
    DigestingWriter,
    SealingWriter,
    VerifyingFile,
    Window,
)
from fulmen.fabric.checkpoint_io.manifest import BLOCK_NUM_BYTES, Digests, read_seal

LARGE = bytes(range(256)) * (9 * 2**20 // 256) + b"end"


def digests_of(data: bytes, block_num_bytes: int) -> Digests:
    blocks = [hashlib.sha256(data[at : at + block_num_bytes]).digest() for at in range(0, len(data), block_num_bytes)]
    return Digests.of_blocks(len(data), blocks, block_num_bytes)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20))
def test_the_digests_do_not_depend_on_how_the_bytes_come(pieces: list[bytes], block_num_bytes: int) -> None:
    digester = BlockDigester(block_num_bytes)
    for piece in pieces:
        digester.begin(memoryview(piece))()
    data = b"".join(pieces)
    assert digester.num_bytes == len(data)
    assert tuple(digester.blocks()) == digests_of(data, block_num_bytes).digests


def test_threads_digest_what_is_large_in_the_same_way() -> None:
    file = io.BytesIO()
    writer = DigestingWriter(file)
    for piece in (b"head", LARGE, b"", LARGE[:5_000_000]):
        assert writer.write(piece) == len(piece)
    data = b"head" + LARGE + LARGE[:5_000_000]
    assert file.getvalue() == data
    assert writer.tell() == len(data)
    assert writer.digests() == digests_of(data, BLOCK_NUM_BYTES)


def test_an_error_in_a_thread_is_raised_where_its_end_is_awaited() -> None:
    def fill(piece: memoryview, at: int) -> None:
        raise OSError(5, "Input/output error")

    digester = BlockDigester(2**20)
    with pytest.raises(OSError, match="Input/output"):
        digester.begin(memoryview(bytearray(9 * 2**20)), fill)()


class Reluctant(io.BytesIO):
    """Writes and reads a few bytes at a time, as raw files may."""

    def write(self, data: Any) -> int:
        return super().write(memoryview(data)[:700])

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:700])


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=3000), st.integers(500, 900), st.lists(st.tuples(*[st.integers(0, 3000)] * 2)))
def test_a_window_is_like_a_file_of_its_own(data: bytes, block_num_bytes: int, reads: list[tuple[int, int]]) -> None:
    reader = BlockReader(Reluctant(data), digests_of(data, block_num_bytes), len(data))
    start, end = sorted(reads[0] if reads else (0, len(data)))
    start, end = min(start, len(data)), min(end, len(data))
    window, plain = Window(reader, start, end - start), io.BytesIO(data[start:end])
    for place, size in reads:
        assert window.seek(place) == plain.seek(place) == window.tell()
        assert window.read(size) == plain.read(size)
    assert window.seek(-1 if end > start else 0, io.SEEK_END) == max(0, end - start - 1)
    assert window.readable()
    assert window.seekable()


@given(st.data())
def test_what_a_digest_contradicts_is_never_handed_out(data: st.DataObject) -> None:
    content = bytes(range(200))
    index = data.draw(st.integers(0, 199))
    changed = content[:index] + bytes([content[index] ^ 255]) + content[index + 1 :]
    reader = BlockReader(io.BytesIO(changed), digests_of(content, 30), 200)
    for start in range(0, 200, 30):
        target = bytearray(30)
        if start <= index < start + 30:
            with pytest.raises(DamagedBlockError, match=f"bytes {start} to"):
                reader.read_into(start, memoryview(target))
        else:
            count = reader.read_into(start, memoryview(target))
            assert target[:count] == content[start : start + 30]


def test_a_file_of_another_size_is_not_read() -> None:
    with pytest.raises(DamagedBlockError, match="has 3 bytes and should have 4"):
        BlockReader(io.BytesIO(b"123"), digests_of(b"1234", 10), 3)
    with pytest.raises(DamagedBlockError, match="ends within"):
        BlockReader(io.BytesIO(b"123"), digests_of(b"1234", 10), 4).verify()
    with pytest.raises(DamagedBlockError, match="ends before byte 7"):
        Window(BlockReader(io.BytesIO(b"1234"), None, 4), 3, 4)


def test_a_sealed_archive_is_one_that_every_reader_of_zip_files_and_torch_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    state = {"weight": torch.arange(2_000_000.0), "step": 3}
    with path.open("wb") as file:
        writer = SealingWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]
        writer.seal()
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["weight"], state["weight"])  # type: ignore[arg-type]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    content = path.read_bytes()
    digests = read_seal(content, len(content))
    assert digests is not None
    assert digests == digests_of(content[: digests.num_bytes], 2**20)


def test_what_is_no_archive_gets_no_seal() -> None:
    file = io.BytesIO()
    writer = SealingWriter(file)
    for piece in (b"x" * 22, b"y" * 5, b"z" * 22):
        writer.write(piece)
    assert writer.tell() == 49
    writer.seal()
    assert file.getvalue() == b"x" * 22 + b"y" * 5 + b"z" * 22


@pytest.mark.parametrize("is_local", [True, False])
def test_a_file_is_verified_however_much_of_it_is_read(tmp_path: Path, is_local: bool) -> None:
    path = tmp_path / "a"
    digests = digests_of(LARGE, 2**20)
    for damaged_at in (None, 0, 5 * 2**20 + 17, len(LARGE) - 1):
        content = bytearray(LARGE + b"seal")
        if damaged_at is not None:
            content[damaged_at] ^= 1
        path.write_bytes(content)
        for reads in ([], [(0, 4), (len(LARGE), 4), (100, 2**20), (3, 9 * 2**20)], [(8 * 2**20, 2**20)]):
            with path.open("rb", buffering=0) as file:
                verifying = VerifyingFile(file, digests, len(content), is_local=is_local)
                for place, size in reads:
                    verifying.seek(place)
                    assert verifying.read(size) == content[place : place + size]
                damage = verifying.damage()
                if damaged_at is None:
                    assert damage is None
                else:
                    assert f"bytes {damaged_at // 2**20 * 2**20} to" in str(damage)
    path.write_bytes(LARGE[:-1])
    with path.open("rb", buffering=0) as file:
        assert VerifyingFile(file, digests, len(LARGE), is_local=is_local).damage() == "it is cut short"
