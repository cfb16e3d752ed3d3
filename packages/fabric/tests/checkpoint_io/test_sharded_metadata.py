"""The description of a sharded folder is read, and nothing that a stranger puts into it is run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from fulmen.fabric.checkpoint_io.sharded import load_sharded, read_metadata, save_sharded
from fulmen.fabric.checkpoint_io.sharded_metadata import UnsafeMetadataError, unpickle_metadata
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError

# Whatever the fuzzer finds to call makes this folder, or does nothing at all.
CALLS = {
    "os": ["mkdir", "system"],
    "posix": ["system"],
    "builtins": ["eval", "exec", "getattr"],
    "torch": ["load", "ones"],
}


def described(name: str = "__0_0.distcp", offset: int = 0, chunk: tuple[int, ...] = (2, 3)) -> Metadata:
    tensor = TensorStorageMetadata(
        TensorProperties(dtype=torch.bfloat16),
        torch.Size([2, 3]),
        [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size(chunk))],
    )
    return Metadata(
        {"a.w": tensor, "b": BytesStorageMetadata()},
        planner_data={"a.w": ("a", "w"), "b": ("b", 0)},
        storage_data={
            MetadataIndex("a.w", [0, 0], 0): _StorageInfo(name, offset, 12),
            MetadataIndex("b"): _StorageInfo("__1_0.distcp", 12, 5),
        },
        version="1.0.0",
    )


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_description_is_read_as_torch_reads_it(protocol: int) -> None:
    read = unpickle_metadata(pickle.dumps(described(), protocol=protocol))
    theirs = described()
    assert read.state_dict_metadata == theirs.state_dict_metadata
    assert read.storage_data == theirs.storage_data
    assert read.planner_data == theirs.planner_data
    assert read.version == theirs.version


def test_what_torch_itself_writes_is_read(tmp_path: Path) -> None:
    dcp.save(
        {"a": {"w": torch.ones(3, 4)}, "n": [1, {"x": torch.zeros(2)}]}, checkpoint_id=tmp_path / "a", no_dist=True
    )
    with (tmp_path / "a" / ".metadata").open("rb") as file:
        theirs = pickle.load(file)
    ours = read_metadata(tmp_path / "a")
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    assert ours.planner_data == theirs.planner_data


@pytest.mark.parametrize(
    "metadata",
    [
        described(name="../secret"),
        described(name="/etc/passwd"),
        described(name="a/b"),
        described(name=".."),
        described(offset=-1),
        described(chunk=(3, 3)),
        described(chunk=(2,)),
        Metadata({"a": 3}, storage_data={}),  # type: ignore[dict-item]
        Metadata({}, storage_data={"a": _StorageInfo("x", 0, 0)}),
        Metadata({}, storage_data={MetadataIndex("a"): _StorageInfo("x", 0, 0, ["zstd"])}),
        Metadata({}, planner_data={"a": "b"}, storage_data={}),
        Metadata({}, planner_data=3, storage_data={}),
        Metadata([], storage_data={}),  # type: ignore[arg-type]
        Metadata({}),
        described,  # a function of this module
        3,
    ],
)
def test_what_makes_no_sense_is_refused(metadata: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpickle_metadata(pickle.dumps(metadata))


class Planted:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> Any:
        return self._reduced


def planted_in(metadata: Metadata, place: str, planted: Any) -> Metadata:
    if place == "instead":
        return planted  # type: ignore[no-any-return]
    if place == "storage_meta":
        metadata.storage_meta = planted
    elif place == "planner_data":
        metadata.planner_data["a.w"] = planted
    elif place == "key":
        metadata.state_dict_metadata[planted] = BytesStorageMetadata()
    else:
        metadata.state_dict_metadata["a.w"].properties.dtype = planted  # type: ignore[union-attr]
    return metadata


@pytest.mark.parametrize("place", ["instead", "storage_meta", "planner_data", "key", "dtype"])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_planted_code_is_never_run(tmp_path: Path, place: str, is_sealed: bool) -> None:
    from fulmen.fabric.checkpoint_io.manifest import Manifest, seal_metadata

    proof = tmp_path / "proof"
    for planted in (Planted(os.mkdir, str(proof)), Planted(eval, f"__import__('os').mkdir({str(proof)!r})")):
        path = tmp_path / "a.ckpt"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        content = pickle.dumps(planted_in(described(), place, planted))
        (path / ".metadata").write_bytes(seal_metadata(content, Manifest({})) if is_sealed else content)
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*(mkdir|eval)"):
            read_metadata(path)
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*(mkdir|eval)"):
            load_sharded(path, {"a": {"w": torch.zeros(2, 3)}})
    assert not proof.exists()


@pytest.mark.parametrize("name", ["__0_0.distcp", "meta.pt"])
def test_planted_code_among_the_values_is_never_run(tmp_path: Path, name: str) -> None:
    """In a folder of torch, which has no digests that would tell."""
    proof = tmp_path / "proof"
    path = tmp_path / "a.ckpt"
    planted = Planted(os.mkdir, str(proof))
    dcp.save({"w": torch.ones(2), "n": planted if name.startswith("__") else 3}, checkpoint_id=path, no_dist=True)
    torch.save({"m": planted}, path / "meta.pt") if name == "meta.pt" else None
    with pytest.raises(CheckpointError, match=rf"a\.ckpt.*mkdir, in {name}"):
        load_sharded(path, {"w": torch.zeros(2), "n": 0})
    assert not proof.exists()


@given(st.data())
def test_no_pickle_runs_anything_or_raises_anything_unknown(data: st.DataObject) -> None:
    """Bytes of a real description, changed anywhere, with names put in that something could be called by."""
    content = bytearray(pickle.dumps(described(), protocol=data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        if data.draw(st.booleans()):
            module = data.draw(st.sampled_from(sorted(CALLS)))
            call = f"c{module}\n{data.draw(st.sampled_from(CALLS[module]))}\n".encode()
            content[place:place] = call + b"(X\x04\x00\x00\x00/tmptR"
        else:
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    with suppress(UnsafeMetadataError, ValueError):
        assert isinstance(unpickle_metadata(bytes(content)), Metadata)
    # The real classes are as they were.
    assert read_back() == described().storage_data


def read_back() -> Any:
    return unpickle_metadata(pickle.dumps(described())).storage_data


def test_classes_cannot_be_changed_by_a_pickle() -> None:
    """BUILD with a second dictionary sets attributes, also of a class."""
    attack = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadataIndex\n(N}X\x08\x00\x00\x00__hash__K\x03stb."
    with pytest.raises(ValueError, match=r"\w"):
        unpickle_metadata(attack)
    assert hash(MetadataIndex("a")) == hash(MetadataIndex("a"))


def test_bytes_behind_the_description_are_no_part_of_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="something follows"):
        unpickle_metadata(pickle.dumps(described()) + b"x")
    save_sharded(tmp_path / "a", {"w": torch.ones(1)})
    content = (tmp_path / "a" / ".metadata").read_bytes()
    (tmp_path / "a" / ".metadata").write_bytes(content[:-1] + b"?")
    with pytest.raises(CheckpointDamagedError, match=r"\.metadata"):
        read_metadata(tmp_path / "a")
