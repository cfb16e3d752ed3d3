"""One checkpoint in one folder: every process writes its own shards, in the layout of `torch.distributed.checkpoint`.

| file | holds |
| --- | --- |
| `__<rank>_0.distcp` | the shards of one process |
| `meta.pt` | the entries of the state that hold no tensor |
| `.metadata` | which shard stands where, and the SHA-256 of the other files |

The folder is written aside and renamed when all of it is on the disk. Nothing is unpickled but tensors and plain data.
Folders of `torch.distributed.checkpoint` and of Lightning are read too; they have no digests to check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder
from fulmen.fabric.checkpoint_io.shards import plan_shards, write_shards
from fulmen.fabric.types import PathLike

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata


def save_sharded(path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
    """Write `state` to the folder `path`, whole or not at all. Every process must call it.

    Args:
        path: A folder, local or remote. All processes must reach it under this path.
        state: Nested dictionaries of tensors, DTensors and plain data. A value that is no DTensor is saved once, from
            the first of the processes that have it.
        process_group: The processes that take part; None is all of them.

    Raises:
        CheckpointError: On every process, if one of them fails; what was at `path` before is unchanged.
        ConfigurationError: If something in `state` has no place in a sharded checkpoint.
    """
    ranks = Ranks(process_group)
    write_shards(path, plan_shards(path, state, ranks), ranks)


def load_sharded(path: PathLike, state: dict[str, Any], *, process_group: Any | None = None) -> None:
    """Read the folder `path` into `state`. Every process must call it; their number need not be that of the save.

    Tensors and DTensors are filled where they are, on any device and any mesh; other values are put into the
    dictionary. What the folder holds and `state` does not name is left out.

    Args:
        path: What `save_sharded`, `torch.distributed.checkpoint.save` or Lightning wrote.
        state: What to fill, nested as it was saved.
        process_group: The processes that take part; None is all of them.

    Raises:
        CheckpointNotFoundError: If there is no such folder.
        CheckpointKeyError: If `state` names something that is not there.
        CheckpointDamagedError: If a byte that is read is not what was written.
        CheckpointError: If the folder holds more than tensors and plain data, or another process fails.
    """
    Ranks(process_group).each(lambda: ShardedFolder(path).load(state))


def read_metadata(path: PathLike) -> Metadata:
    """What the folder `path` holds, as `torch.distributed.checkpoint` describes it. Runs nothing that is in it.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError, CheckpointError: As `load_sharded`.
    """
    return ShardedFolder(path).metadata
