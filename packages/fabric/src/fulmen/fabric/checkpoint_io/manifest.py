"""What a checkpoint holds and its SHA-256, in bytes; the newest that verifies. Reads no file and no tensor.

Every file of a checkpoint is seen as blocks of `BLOCK_NUM_BYTES`, each with a SHA-256: several threads can check it,
and a reader that needs one piece checks only the blocks that hold it.

- A single file is a zip archive, as torch writes it. The comment that ends it holds the digests (`seal_archive`).
- A sharded folder has the digests of its other files behind the pickle in `.metadata` (`seal_metadata`), for one file
  can be replaced in one step.

Each seal ends with a SHA-256 of itself, and what has no seal although something stands in its place is damaged.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

# In a sharded folder, where a reader takes whole blocks; and in a single file, where threads share the work.
BLOCK_NUM_BYTES = 4 * 2**20
SEALED_BLOCK_NUM_BYTES = 2**20
# A comment of a zip archive has at most 65,535 bytes: above 1 GiB, its digests are of several blocks each.
MAX_SEALED_DIGESTS = 1024
# The record that ends an archive is 22 bytes, its 64-bit form 56 and the pointer to that 20; torch writes no comment.
ARCHIVE_END_NUM_BYTES = 22
TAIL_NUM_BYTES = ARCHIVE_END_NUM_BYTES + 56 + 20
# What `zipfile` raises for a damaged one: also for names that are no text, unknown versions, parts marked as encrypted
# (RuntimeError) or as compressed.
UNREADABLE_ARCHIVE = (
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)

_LOCAL_FILE = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")

_MAGIC = b"fulmen\x01\n"
# Bytes that are sealed, bytes of a block, blocks of a digest, number of digests.
_SEAL_HEAD = struct.Struct("<8sQIII")
# SHA-256 of the head and the digests, length of the whole seal, magic.
_SEAL_FOOT = struct.Struct("<32sI8s")
MAX_SEAL_NUM_BYTES = _SEAL_HEAD.size + 32 * MAX_SEALED_DIGESTS + _SEAL_FOOT.size
# Length of the manifest, SHA-256 of all before this, magic.
_METADATA_FOOT = struct.Struct("<Q32s8s")

Path = TypeVar("Path")


@dataclass(frozen=True)
class Digests:
    """The SHA-256 of a file, block by block.

    Args:
        num_bytes: The size of what is digested.
        digests: Of each `num_blocks` blocks: the SHA-256 of the block, or of the blocks' own SHA-256.
        block_num_bytes: The size of a block; the last one may be shorter.
        num_blocks: How many blocks one digest stands for.
    """

    num_bytes: int
    digests: tuple[bytes, ...]
    block_num_bytes: int
    num_blocks: int = 1

    @classmethod
    def of_blocks(
        cls, num_bytes: int, blocks: Sequence[bytes], block_num_bytes: int, max_digests: int | None = None
    ) -> Digests:
        """Digests from the SHA-256 of every block, at most `max_digests`."""
        num_blocks = 1
        while max_digests is not None and -(-len(blocks) // num_blocks) > max_digests:
            num_blocks *= 2
        groups = (blocks[at : at + num_blocks] for at in range(0, len(blocks), num_blocks))
        return cls(num_bytes, tuple(_together(group) for group in groups), block_num_bytes, num_blocks)

    @property
    def is_possible(self) -> bool:
        """Can there be such digests? Asked of what comes from a file."""
        if min(self.num_bytes, self.block_num_bytes - 1, self.num_blocks - 1) < 0:
            return False
        return len(self.digests) == -(-self.num_bytes // (self.block_num_bytes * self.num_blocks))

    def span(self, index: int) -> tuple[int, int]:
        """Where what the digest `index` stands for begins and ends."""
        size = self.block_num_bytes * self.num_blocks
        return index * size, min((index + 1) * size, self.num_bytes)

    def damaged(self, blocks: Sequence[bytes]) -> int | None:
        """The first digest that the SHA-256 of all blocks contradict; None if there is none."""
        groups = [blocks[at : at + self.num_blocks] for at in range(0, len(blocks), self.num_blocks)]
        if len(groups) != len(self.digests):
            return min(len(groups), len(self.digests))
        return next((i for i, group in enumerate(groups) if _together(group) != self.digests[i]), None)


def _together(blocks: Sequence[bytes]) -> bytes:
    return blocks[0] if len(blocks) == 1 else hashlib.sha256(b"".join(blocks)).digest()


def is_archive(head: bytes) -> bool:
    """Do these first bytes begin a zip archive? Checkpoints from before torch 1.6 are none."""
    return head.startswith(_LOCAL_FILE)


def archive_damage(tail: bytes, num_bytes: int, comment_num_bytes: int = 0) -> str | None:
    """What is wrong with an archive, or None, judged by its directory, which stands at the end.

    Args:
        tail: Its last `TAIL_NUM_BYTES` bytes, without its comment, or all of it if it is shorter.
        num_bytes: The size of the file, without its comment.
        comment_num_bytes: The size of the comment, which is the seal.
    """
    if num_bytes == 0:
        return "it is empty"
    end_at = tail.rfind(b"PK\x05\x06")
    if end_at < 0 or len(tail) - end_at < _END.size:
        return "its end is missing"
    *_, directory_size, directory_at, comment = _END.unpack_from(tail, end_at)
    if end_at + _END.size != len(tail) or comment != comment_num_bytes:
        return "something follows its end"
    directory_end = num_bytes - len(tail) + end_at
    locator_at = end_at - _LOCATOR_64.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        _, _, end_64_at, _ = _LOCATOR_64.unpack_from(tail, locator_at)
        record_at = end_64_at - (num_bytes - len(tail))
        if not 0 <= record_at <= locator_at - _END_64.size or tail[record_at : record_at + 4] != b"PK\x06\x06":
            return "its parts are not where its directory says"
        *_, directory_size, directory_at = _END_64.unpack_from(tail, record_at)
        directory_end = end_64_at
    if directory_at + directory_size != directory_end:
        return "its parts are not where its directory says"
    return None


def seal_num_bytes(num_bytes: int) -> int:
    """How long the seal of an archive of this size will be."""
    num_digests = -(-num_bytes // SEALED_BLOCK_NUM_BYTES)
    while num_digests > MAX_SEALED_DIGESTS:
        num_digests = -(-num_digests // 2)
    return _SEAL_HEAD.size + 32 * num_digests + _SEAL_FOOT.size


def end_with_room(end: bytes, num_bytes: int) -> bytes | None:
    """The last record of an archive of `num_bytes` bytes, changed so that a seal may follow; None if it is none."""
    if len(end) != _END.size or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        return None
    return end[:-2] + struct.pack("<H", seal_num_bytes(num_bytes))


def seal_archive(num_bytes: int, blocks: Sequence[bytes]) -> bytes:
    """The comment that ends an archive of `num_bytes` bytes, from the SHA-256 of its blocks."""
    digests = Digests.of_blocks(num_bytes, blocks, SEALED_BLOCK_NUM_BYTES, MAX_SEALED_DIGESTS)
    head = _SEAL_HEAD.pack(_MAGIC, num_bytes, SEALED_BLOCK_NUM_BYTES, digests.num_blocks, len(digests.digests))
    body = head + b"".join(digests.digests)
    return body + _SEAL_FOOT.pack(hashlib.sha256(body).digest(), len(body) + _SEAL_FOOT.size, _MAGIC)


def read_seal(tail: bytes, num_bytes: int) -> Digests | None:
    """The digests in the seal of an archive; None if it has no seal.

    Args:
        tail: Its last `MAX_SEAL_NUM_BYTES` bytes, or all of it if it is shorter.
        num_bytes: The size of the file.

    Raises:
        ValueError: If there is a seal and it is damaged.
    """
    if not tail.endswith(_MAGIC) or len(tail) < _SEAL_FOOT.size:
        return None
    digest, size, _ = _SEAL_FOOT.unpack_from(tail, len(tail) - _SEAL_FOOT.size)
    body = tail[len(tail) - size : len(tail) - _SEAL_FOOT.size] if size <= len(tail) else b""
    if len(body) < _SEAL_HEAD.size or hashlib.sha256(body).digest() != digest:
        raise ValueError("its seal is changed")
    _, sealed, block_num_bytes, num_blocks, num_digests = _SEAL_HEAD.unpack_from(body)
    found = tuple(body[at : at + 32] for at in range(_SEAL_HEAD.size, len(body), 32))
    digests = Digests(sealed, found, block_num_bytes, num_blocks)
    if sealed + size != num_bytes or len(found) != num_digests or not digests.is_possible:
        raise ValueError("its seal is that of another file")
    return digests


@dataclass(frozen=True)
class Manifest:
    """What belongs to a sharded folder.

    Args:
        parts: The digests of each file, `.metadata` apart.
        paths: Where an entry stands in the nested state, for those whose place is not its name split at dots: each
            step is a key, or `[index]` for an index into a list.
    """

    parts: Mapping[str, Digests]
    paths: Mapping[str, list[Any]] = field(default_factory=dict)


def seal_metadata(pickled: bytes, manifest: Manifest) -> bytes:
    """The content of `.metadata`: the pickle that torch reads, and the manifest behind it, which torch passes over."""
    content = {
        "parts": {
            name: {"num_bytes": part.num_bytes, "block_num_bytes": part.block_num_bytes, "sha256": _hex(part.digests)}
            for name, part in manifest.parts.items()
        },
        "paths": dict(manifest.paths),
    }
    encoded = json.dumps(content, separators=(",", ":")).encode()
    digest = hashlib.sha256(pickled + encoded).digest()
    return pickled + encoded + _METADATA_FOOT.pack(len(encoded), digest, _MAGIC)


def read_sealed_metadata(content: bytes) -> tuple[bytes, Manifest | None]:
    """The pickle in `.metadata`, and the manifest; None if something else wrote it.

    Raises:
        ValueError: If the manifest is damaged.
    """
    if not content.endswith(_MAGIC) or len(content) < _METADATA_FOOT.size:
        return content, None
    size, digest, _ = _METADATA_FOOT.unpack_from(content, len(content) - _METADATA_FOOT.size)
    sealed = content[: -_METADATA_FOOT.size]
    if size > len(sealed) or hashlib.sha256(sealed).digest() != digest:
        raise ValueError("its manifest is changed")
    try:
        read = json.loads(sealed[len(sealed) - size :])
        parts = {
            str(name): Digests(part["num_bytes"], _unhex(part["sha256"]), part["block_num_bytes"])
            for name, part in read["parts"].items()
        }
        if not all(part.is_possible for part in parts.values()):
            raise ValueError("impossible sizes")
        manifest = Manifest(parts, {str(name): list(path) for name, path in read["paths"].items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its manifest is unreadable ({error})") from error
    return sealed[: len(sealed) - size], manifest


def _hex(digests: Iterable[bytes]) -> str:
    return b"".join(digests).hex()


def _unhex(text: str) -> tuple[bytes, ...]:
    joined = bytes.fromhex(text)
    if len(joined) % 32:
        raise ValueError("a SHA-256 is cut")
    return tuple(joined[at : at + 32] for at in range(0, len(joined), 32))


@dataclass(frozen=True)
class PassedOver(Generic[Path]):
    """A checkpoint that was not taken, and why."""

    path: Path
    reason: str


def newest_that_verifies(
    newest_first: Iterable[Path], damage: Callable[[Path], str | None]
) -> tuple[Path | None, list[PassedOver[Path]]]:
    """The first of the candidates without damage, and those that were passed over on the way.

    Args:
        newest_first: The candidates, in the order in which they are wanted.
        damage: What is wrong with one, or None. Asked only until one is good.
    """
    passed_over: list[PassedOver[Path]] = []
    for path in newest_first:
        reason = damage(path)
        if reason is None:
            return path, passed_over
        passed_over.append(PassedOver(path, reason))
    return None, passed_over
