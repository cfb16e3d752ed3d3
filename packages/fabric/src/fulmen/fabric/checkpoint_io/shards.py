"""Who writes what of a sharded checkpoint, and the writing of it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

import torch

from fulmen.fabric.checkpoint_io.blocks import DigestingWriter
from fulmen.fabric.checkpoint_io.commit import FolderAside, storage_failures
from fulmen.fabric.checkpoint_io.manifest import Digests, Manifest, seal_metadata
from fulmen.fabric.checkpoint_io.nested import Entry, flatten, holds_tensor
from fulmen.fabric.checkpoint_io.ranks import Ranks
from fulmen.fabric.checkpoint_io.safe import encode
from fulmen.fabric.checkpoint_io.sharded_names import METADATA, PLAIN
from fulmen.fabric.errors import CheckpointError, ConfigurationError
from fulmen.fabric.filesystem import exists, is_dir, list_dir
from fulmen.fabric.types import PathLike

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import SavePlan, WriteItem


@dataclass
class Shards:
    """What one process writes of a state.

    Args:
        tensors: What it writes of which tensor.
        values: Entries that are no tensor, as bytes.
        plain: What goes into `meta.pt`, as bytes; on rank 0 only.
        paths: For the manifest; on rank 0 only.
        metadata: On rank 0 only.
    """

    tensors: list[tuple[WriteItem, torch.Tensor]]
    values: list[tuple[WriteItem, bytes]]
    plain: bytes | None = None
    paths: dict[str, list[Any]] = field(default_factory=dict)
    metadata: Metadata | None = None


def plan_shards(path: PathLike, state: dict[str, Any], ranks: Ranks) -> Shards:
    """Agree on who writes what. Collective; copies no tensor."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.planner import WriteItemType

    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    entries: dict[str, Entry] = {}
    described: list[Metadata] = []

    def plan_here() -> SavePlan:
        entries.update(flatten({key: value for key, value in state.items() if holds_tensor(value)}))
        planner.set_up_planner({name: _saved(entry) for name, entry in entries.items()}, is_coordinator=ranks.is_zero)
        # Of an entry that is no tensor, torch wants to know only its name until it is written.
        paths = {name: entry.path for name, entry in entries.items()}
        return replace(planner.create_local_plan(), planner_data=paths)

    def plan_together(plans: list[SavePlan]) -> list[SavePlan]:
        seen: set[str] = set()
        paths: dict[str, Any] = {}
        for index, plan in enumerate(plans):
            # torch would spread these over the processes: whose value is saved should not be chance.
            kept = [item for item in plan.items if item.type != WriteItemType.BYTE_IO or item.index.fqn not in seen]
            seen.update(item.index.fqn for item in kept if item.type == WriteItemType.BYTE_IO)
            paths = {**plan.planner_data, **paths}
            plans[index] = replace(plan, items=kept, planner_data=None)
        parts, metadata = planner.create_global_plan(plans)
        described.append(replace(metadata, planner_data=paths))
        return parts

    def take(plan: SavePlan) -> Shards:
        shards = Shards([], [])
        for item in plan.items:
            name = item.index.fqn
            if item.type == WriteItemType.BYTE_IO:
                shards.values.append((item, encode(path, repr(name), entries[name].value)))
            else:
                data = planner.resolve_data(item)
                assert isinstance(data, torch.Tensor)
                shards.tensors.append((item, data))
        if ranks.is_zero:
            plain = {key: value for key, value in state.items() if not holds_tensor(value)}
            shards.plain = encode(path, "", plain) if plain else None
            shards.paths = {name: list(entry.real_path) for name, entry in entries.items() if not entry.has_plain_path}
            (shards.metadata,) = described
        return shards

    plan = ranks.plan(plan_here, plan_together)
    return ranks.each(lambda: take(plan))


def _saved(entry: Entry) -> Any:
    value = entry.value
    if isinstance(value, tuple) and holds_tensor(value):
        raise ConfigurationError(
            f"The entry {entry.name!r} of the state is a tuple that holds tensors. In a sharded checkpoint, tensors"
            " stand in dictionaries and lists, where they can be filled. Save it as a list."
        )
    if isinstance(value, torch.Tensor) and value.is_meta:
        raise ConfigurationError(
            f"The tensor {entry.name!r} is on the meta device. It has a shape and no values that could be saved."
            " Materialize the module first."
        )
    return value.detach() if isinstance(value, torch.Tensor) else value


def write_shards(path: PathLike, shards: Shards, ranks: Ranks) -> None:
    """Write what was planned, and let the folder appear when all processes have done so. Collective."""
    aside = ranks.on_zero(lambda: _begin(path))
    name = f"__{aside.prefix}{ranks.rank}_0.distcp"
    try:
        ranks.plan(
            lambda: _write_part(aside, name, shards),
            lambda found: _finish(aside, shards, [part for part in found if part is not None], len(found)),
        )
    except Exception:
        if ranks.is_zero:
            aside.abandon()
        raise


def _begin(path: PathLike) -> FolderAside:
    with storage_failures(path):
        _refuse_what_is_no_checkpoint(path)
    return FolderAside.begin(path)


def _refuse_what_is_no_checkpoint(path: PathLike) -> None:
    if exists(path) and not is_dir(path):
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} could not be written: 0 bytes, for there is a file of this name. A"
            " sharded checkpoint is a folder. Remove the file, or pass another path."
        )
    # Parts without a description are what an interrupted upload has left.
    foreign = [name for name in list_dir(path) if not name.endswith((".distcp", PLAIN))] if is_dir(path) else []
    if foreign and METADATA not in foreign:
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} could not be written: 0 bytes, for there is a folder of this name that"
            f" is no checkpoint. What is in it ({foreign[0]!r}, ...) would be lost. Remove it, or pass another path."
        )


@dataclass(frozen=True)
class _Part:
    """What one process has written: the file, where each item begins in it and how long it is, and its digests."""

    name: str
    items: list[tuple[MetadataIndex, int, int]]
    digests: Digests


def _write_part(aside: FolderAside, name: str, shards: Shards) -> _Part | None:
    if not shards.values and not shards.tensors:
        return None
    items: list[tuple[MetadataIndex, int, int]] = []

    def write(writer: DigestingWriter) -> None:
        for item, data in shards.values:
            items.append((item.index, writer.tell(), len(data)))
            writer.write(data)
        for item, tensor in shards.tensors:
            start = writer.tell()
            torch.save(_compact(tensor), writer)  # type: ignore[arg-type]
            items.append((item.index, start, writer.tell() - start))

    digests = _write(aside, name, write)
    return _Part(name, items, digests)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, with a storage of its own size: a view would bring all that it looks at."""
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        return tensor
    tensor = tensor.contiguous()
    is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)


def _finish(aside: FolderAside, shards: Shards, parts: list[_Part], num_ranks: int) -> list[None]:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    digests = {part.name: part.digests for part in parts}
    plain = shards.plain
    if plain is not None:
        name = f"{aside.prefix}{PLAIN}"
        digests[name] = _write(aside, name, lambda writer: writer.write(plain))
    assert shards.metadata is not None
    storage = {index: _StorageInfo(part.name, start, size) for part in parts for index, start, size in part.items}
    metadata = replace(shards.metadata, storage_data=storage, version="1.0.0")
    content = seal_metadata(pickle.dumps(metadata), Manifest(digests, shards.paths))
    _write(aside, METADATA, lambda writer: writer.write(content))
    aside.commit({*digests, METADATA})
    return [None] * num_ranks


def _write(aside: FolderAside, name: str, write: Callable[[DigestingWriter], Any]) -> Digests:
    found: list[Digests] = []

    def write_digested(file: IO[bytes]) -> None:
        writer = DigestingWriter(file)
        write(writer)
        found.append(writer.digests())

    aside.write(name, write_digested)
    (digests,) = found
    return digests
