"""Files seen as blocks: written with their SHA-256, and read with it checked.

`hashlib` works without Python's lock on what is large, so that digests are made while other threads read and write.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from threading import Thread
from typing import IO, Any

from fulmen.fabric.checkpoint_io.linux_calls import give_pages
from fulmen.fabric.checkpoint_io.manifest import (
    ARCHIVE_END_NUM_BYTES,
    BLOCK_NUM_BYTES,
    SEALED_BLOCK_NUM_BYTES,
    Digests,
    end_with_room,
    seal_archive,
)

# Below this, a thread costs more than it saves.
_WORTH_A_THREAD = 4 * 2**20
_MAX_THREADS = 4
_NUM_CACHED = 2
# What is smaller is collected up to this: torch writes an archive in pieces of a few dozen bytes.
_COLLECTED_NUM_BYTES = 2**18


class BlockDigester:
    """The SHA-256 of each block of bytes that come in order, made by several threads.

    Args:
        block_num_bytes: The size of a block.
    """

    def __init__(self, block_num_bytes: int) -> None:
        self._block_num_bytes = block_num_bytes
        self._num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._digests: list[bytes] = []
        self._begun: Any = None
        self.num_bytes = 0

    def begin(self, view: memoryview, fill: Callable[[memoryview, int], None] | None = None) -> Callable[[], None]:
        """Begin to digest the next bytes; what comes back ends it. Until then the memory must not change.

        Args:
            view: The bytes.
            fill: Called with each piece and its place before the piece is digested, in the same thread: to read it.
        """
        work = deque(self._pieces(view))
        failures: list[BaseException] = []

        def run() -> None:
            while work:
                try:
                    piece, at, number, hasher = work.popleft()
                except IndexError:
                    return
                try:
                    if fill is not None:
                        fill(piece, at)
                    hasher.update(piece)
                except BaseException as error:
                    failures.append(error)
                    work.clear()
                    return
                if (at + len(piece)) % self._block_num_bytes == 0:
                    self._digests[number] = hasher.digest()

        # The last block that is not full goes on with the next bytes, and the thread that ends it may be another.
        num_threads = self._num_threads - 1 if len(view) >= _WORTH_A_THREAD else 0
        threads = [Thread(target=run, name="fulmen-digest") for _ in range(num_threads)]
        for thread in threads:
            thread.start()

        def end() -> None:
            run()
            for thread in threads:
                thread.join()
            if failures:
                raise failures[0]

        return end

    def blocks(self) -> list[bytes]:
        """The SHA-256 of each block so far."""
        return [*self._digests[:-1], self._begun.digest()] if self._begun is not None else list(self._digests)

    def _pieces(self, view: memoryview) -> Iterator[tuple[memoryview, int, int, Any]]:
        while len(view):
            inside = self.num_bytes % self._block_num_bytes
            piece = view[: self._block_num_bytes - inside]
            if inside == 0:
                self._digests.append(b"")
                self._begun = hashlib.sha256()
            yield piece, self.num_bytes, len(self._digests) - 1, self._begun
            self.num_bytes += len(piece)
            if self.num_bytes % self._block_num_bytes == 0:
                self._begun = None
            view = view[len(piece) :]


class DigestingWriter:
    """A file that is written from its beginning to its end, and digested meanwhile.

    Args:
        file: The open file.
        block_num_bytes: The size of a block.
    """

    def __init__(self, file: IO[bytes], block_num_bytes: int = BLOCK_NUM_BYTES) -> None:
        self._file = file
        self._block_num_bytes = block_num_bytes
        self._digester = BlockDigester(block_num_bytes)

    def write(self, data: Any) -> int:
        """Write and digest `data`, whole."""
        view = memoryview(data).cast("B")
        # The memory is the caller's: all is done with it when this returns.
        end = self._digester.begin(view)
        try:
            _write_whole(self._file, view)
        finally:
            end()
        return len(view)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._digester.num_bytes

    def flush(self) -> None:
        """Nothing is held back."""

    def digests(self) -> Digests:
        """The digests of all that was written."""
        return Digests.of_blocks(self.tell(), self._digester.blocks(), self._block_num_bytes)


class SealingWriter(DigestingWriter):
    """Takes an archive from `torch.save` and puts the seal with its digests behind it, as its comment.

    Args:
        file: The open file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, SEALED_BLOCK_NUM_BYTES)
        self._held = bytearray()  # with the newest small piece whole: it may be the last record of the archive

    def write(self, data: Any) -> int:
        """Write and digest `data`; what is small waits for more."""
        view = memoryview(data).cast("B")
        if len(self._held) + len(view) > _COLLECTED_NUM_BYTES:
            self._write_held()
        if len(view) < _COLLECTED_NUM_BYTES:
            self._held += view
        else:
            super().write(view)
        return len(view)

    def tell(self) -> int:
        """How many bytes were written."""
        return super().tell() + len(self._held)

    def flush(self) -> None:
        """What is held back is written by `seal`."""

    def seal(self) -> None:
        """End the archive. What is no archive stays without a seal."""
        num_bytes = self.tell()
        end = end_with_room(bytes(self._held[-ARCHIVE_END_NUM_BYTES:]), num_bytes)
        if end is not None:
            self._held[-ARCHIVE_END_NUM_BYTES:] = end
        self._write_held()
        if end is not None:
            _write_whole(self._file, memoryview(seal_archive(num_bytes, self._digester.blocks())))

    def _write_held(self) -> None:
        held, self._held = self._held, bytearray()
        super().write(held)


def _write_whole(file: IO[bytes], view: memoryview) -> None:
    while len(view):
        view = view[file.write(view) :]


class DamagedBlockError(Exception):
    """A block is not what its digest says; the message tells which bytes."""


class BlockReader:
    """A file that is read block by block; what a digest contradicts is never handed out.

    Args:
        file: Unbuffered and seekable.
        digests: None reads without a check.
        num_bytes: The size of the file.
    """

    def __init__(self, file: IO[bytes], digests: Digests | None, num_bytes: int) -> None:
        self._file = file
        self._digests = digests
        self.num_bytes = num_bytes
        if digests is not None and digests.num_bytes != num_bytes:
            raise DamagedBlockError(f"it has {num_bytes} bytes and should have {digests.num_bytes}")
        if digests is not None and (digests.num_blocks != 1 or digests.block_num_bytes > 16 * BLOCK_NUM_BYTES):
            raise DamagedBlockError("its blocks are larger than is read at once")
        self._block_num_bytes = BLOCK_NUM_BYTES if digests is None else digests.block_num_bytes
        self._cached: dict[int, memoryview] = {}
        # What came in the way of reading: torch hides what a file raises.
        self.failure: Exception | None = None

    def read_into(self, at: int, target: memoryview) -> int:
        """Fill `target` with what stands at `at`; how many bytes there were."""
        end = min(at + len(target), self.num_bytes)
        done = 0
        while at + done < end:
            index, inside = divmod(at + done, self._block_num_bytes)
            block = self._block(index)
            piece = block[inside : inside + end - at - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def verify(self) -> None:
        """Read all of it once."""
        buffer = memoryview(bytearray(self._block_num_bytes))
        for index in range(-(-self.num_bytes // self._block_num_bytes)):
            self._read(index, buffer)

    def _block(self, index: int) -> memoryview:
        found = self._cached.pop(index, None)
        if found is None:
            # The oldest buffer is used again: new memory costs more than reading into it.
            oldest = next(iter(self._cached)) if len(self._cached) >= _NUM_CACHED else None
            buffer = memoryview(bytearray(self._block_num_bytes)) if oldest is None else self._cached.pop(oldest).obj
            found = self._read(index, memoryview(buffer))
        self._cached[index] = found
        return found

    def _read(self, index: int, buffer: memoryview) -> memoryview:
        start = index * self._block_num_bytes
        block = buffer[: min(self._block_num_bytes, self.num_bytes - start)]
        try:
            self._file.seek(start)
            if read_whole(self._file, block) != len(block):
                raise DamagedBlockError(f"it ends within bytes {start} to {start + len(block)}")
            if self._digests is not None and hashlib.sha256(block).digest() != self._digests.digests[index]:
                raise DamagedBlockError(f"bytes {start} to {start + len(block)} are not those that were written")
        except Exception as error:
            self.failure = error
            raise
        return block


class _Seekable(io.RawIOBase):
    """What `torch.load` takes: a file that can be read from any place.

    Args:
        length: Where its end is.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The place where it is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def _rest(self, buffer: Any) -> memoryview:
        """What of `buffer` can be filled before the end."""
        return memoryview(buffer).cast("B")[: max(0, self._length - self._at)]


class Window(_Seekable):
    """A piece of a file, as a file: what `torch.load` takes.

    Args:
        reader: The file.
        start: Where the piece begins.
        length: How long it is.
    """

    def __init__(self, reader: BlockReader, start: int, length: int) -> None:
        super().__init__(length)
        if start + length > reader.num_bytes:
            raise DamagedBlockError(f"it ends before byte {start + length}")
        self._reader = reader
        self._start = start

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; less only at the end of the piece."""
        view = self._rest(buffer)
        done = self._reader.read_into(self._start + self._at, view)
        self._at += done
        return done


def read_whole(file: IO[bytes], target: memoryview) -> int:
    """Fill `target` from a file that may give less at a time; how many bytes there were."""
    readinto: Callable[[Any], int | None] | None = getattr(file, "readinto", None)
    done = 0
    while done < len(target):
        if readinto is not None:
            count = readinto(target[done:]) or 0
        else:
            read = file.read(len(target) - done)
            count = len(read)
            target[done : done + count] = read
        if count == 0:
            break
        done += count
    return done


class VerifyingFile(_Seekable):
    """A sealed file for `torch.load`, digested while it is read: the bytes go into their place and are read once.

    Args:
        file: Unbuffered.
        digests: What the seal says.
        num_bytes: The size of the file with its seal.
        is_local: Has it a descriptor that several threads can read at once?
    """

    def __init__(self, file: IO[bytes], digests: Digests, num_bytes: int, *, is_local: bool) -> None:
        super().__init__(num_bytes)
        self._file = file
        self._digests = digests
        self._digester = BlockDigester(digests.block_num_bytes)
        self._fill = self._pread if is_local and hasattr(os, "preadv") else None
        # What came in the way of reading: torch hides what a file raises.
        self.failure: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, and digest what comes next in the file; what is read again, or far ahead, is not digested."""
        view = self._rest(buffer)
        gap = self._at - self._digester.num_bytes
        try:
            if 0 <= gap <= _WORTH_A_THREAD and self._at + len(view) <= self._digests.num_bytes:
                self._digest_gap(gap)
                self._digest(view)
            else:
                self._read(view, self._at)
        except OSError as error:
            self.failure = error
            raise
        self._at += len(view)
        return len(view)

    def damage(self) -> str | None:
        """Digest the rest; what is wrong with the file, or None."""
        try:
            while gap := min(_WORTH_A_THREAD, self._digests.num_bytes - self._digester.num_bytes):
                self._digest_gap(gap)
        except EOFError:
            return "it is cut short"
        index = self._digests.damaged(self._digester.blocks())
        if index is None:
            return None
        start, end = self._digests.span(index)
        return f"bytes {start} to {end} are not those that were written"

    def _digest_gap(self, num_bytes: int) -> None:
        self._digest(memoryview(bytearray(num_bytes)))

    def _digest(self, view: memoryview) -> None:
        if self._fill is None:
            self._read(view, self._digester.num_bytes)
        self._digester.begin(view, self._fill)()

    def _read(self, view: memoryview, at: int) -> None:
        if self._fill is not None:
            self._fill(view, at)
            return
        self._file.seek(at)
        if read_whole(self._file, view) != len(view):
            raise EOFError(f"the file ends before byte {at + len(view)}")

    def _pread(self, view: memoryview, at: int) -> None:
        descriptor = self._file.fileno()
        # torch has just asked for this memory; getting its pages by faults is a tenth of what a verified load costs.
        give_pages(view)
        while len(view):
            count = os.preadv(descriptor, [view], at)
            if count == 0:
                raise EOFError(f"the file ends before byte {at + len(view)}")
            at, view = at + count, view[count:]
