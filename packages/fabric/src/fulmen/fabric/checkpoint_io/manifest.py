"""Is this the whole of a checkpoint file? Judged from its ends, in bytes; reads no file and no tensor.

A checkpoint of torch is a zip archive without compression: its directory stands at the end and says where everything
lies, so that a file cut short, grown, or cut in the middle contradicts it.
"""

from __future__ import annotations

import struct

# The record that ends an archive is 22 bytes, its 64-bit form 56 and the pointer to that 20; torch writes no comment.
TAIL_NUM_BYTES = 22 + 56 + 20

_LOCAL_FILE = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")


def is_archive(head: bytes) -> bool:
    """Do these first bytes begin a zip archive? Checkpoints from before torch 1.6 are none."""
    return head.startswith(_LOCAL_FILE)


def archive_damage(tail: bytes, num_bytes: int) -> str | None:
    """What is wrong with an archive, or None.

    Args:
        tail: Its last `TAIL_NUM_BYTES` bytes, or all of it if it is shorter.
        num_bytes: The size of the file.
    """
    if num_bytes == 0:
        return "it is empty"
    end_at = tail.rfind(b"PK\x05\x06")
    if end_at < 0 or len(tail) - end_at < _END.size:
        return "its end is missing"
    *_, directory_size, directory_at, comment_size = _END.unpack_from(tail, end_at)
    if end_at + _END.size + comment_size != len(tail):
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
