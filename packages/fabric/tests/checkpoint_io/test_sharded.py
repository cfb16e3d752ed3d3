"""Sharded checkpoints of real processes: saved by two, loaded by one, two and three."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO
from fulmen.fabric.checkpoint_io.sharded import load_sharded, read_metadata, save_sharded
from fulmen.fabric.checkpoint_io.sharded_names import is_sharded
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.gloo_threads import close_group

ROWS = torch.arange(31 * 40.0).view(31, 40)
LARGE = torch.arange(900_000, dtype=torch.float64).view(300, 3000)


# ---- what runs in the processes; each function is called in all of them


def state(scale: float) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = distribute_tensor(ROWS * scale, mesh, [Shard(0)])
    return {
        "model": {
            "embed.weight": rows,
            "columns": distribute_tensor(LARGE * scale, mesh, [Shard(1)]),
            "everywhere": distribute_tensor(ROWS[0] * scale, mesh, [Replicate()]),
            "few": distribute_tensor(torch.ones(2) * scale, mesh, [Shard(0)]),
            "plain": torch.ones(3, dtype=torch.bfloat16) * scale,
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0) * scale, "m": rows * 2}},
            "param_groups": [{"lr": scale}],
        },
        "epoch": scale,
        "hyper": {"names": ["a", ("b", None)]},
    }


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


def expected(scale: float) -> dict[str, Any]:
    model = {"embed.weight": ROWS * scale, "columns": LARGE * scale, "everywhere": ROWS[0] * scale}
    model |= {"few": torch.ones(2) * scale, "plain": torch.ones(3, dtype=torch.bfloat16) * scale}
    moments = {"step": torch.tensor(3.0) * scale, "m": ROWS * 2 * scale}
    return {
        "model": model,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": scale}]},
        "epoch": scale,
        "hyper": {"names": ["a", ("b", None)]},
    }


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    else:
        assert found == wanted


def save(path: str, scale: float) -> None:
    save_sharded(path, state(scale))


def load(path: str, scale: float) -> None:
    filled = state(0.0)
    load_sharded(path, filled)
    assert_same(whole(filled), expected(scale))


def save_by_torch(path: str, scale: float) -> None:
    dcp.save(state(scale), checkpoint_id=path)


def load_by_torch(path: str, scale: float) -> None:
    filled = {key: state(0.0)[key] for key in ("model",)}
    dcp.load(filled, checkpoint_id=path)
    assert_same(whole(filled["model"]), expected(scale)["model"])


def save_by_stages(path: str) -> None:
    """As with a pipeline: the processes have other keys, and one has nothing that is not sharded."""
    rank = dist.get_rank()
    stage: dict[str, Any] = {f"stage{rank}": {"w": torch.full((3,), float(rank)), "name": f"rank {rank}"}}
    save_sharded(path, stage)


def save_what_differs(path: str) -> None:
    """Values that are no DTensor are saved once; which ones should not be chance."""
    own = {f"value{number}": f"rank {dist.get_rank()}" for number in range(10)}
    save_sharded(path, {"tensors": {"w": torch.ones(1), **own}, "plain": own})


def save_with_a_failure(path: str, rank: int) -> str:
    wrong = state(2.0)
    if dist.get_rank() == rank:
        wrong["model"]["plain"] = (torch.ones(1),)
    try:
        save_sharded(path, wrong)
    except (CheckpointError, ConfigurationError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def save_with_a_full_disk(path: str, rank: int) -> str:
    from fulmen.fabric.checkpoint_io import commit

    write = commit._CountingFile.write

    def failing(self: Any, data: Any) -> int:
        if self._written.num_bytes > 1_000_000:
            error = OSError(28, "No space left on device")
            self._written.failure = error
            raise error
        return write(self, data)

    try:
        if dist.get_rank() == rank:
            commit._CountingFile.write = failing  # type: ignore[method-assign]
        save_sharded(path, state(2.0))
    except CheckpointError as error:
        return str(error)
    finally:
        commit._CountingFile.write = write  # type: ignore[method-assign]
    return ""


def load_answer(path: str) -> str:
    try:
        load_sharded(path, state(0.0))
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def save_in_background(path: str) -> list[str]:
    """Two saves; what is saved changes at once afterwards."""
    durable: list[str] = []
    io = AsyncCheckpointIO(on_durable=lambda path: durable.append(os.fspath(path)))
    changing = state(1.0)
    for number in (1.0, 2.0):
        io.save_sharded(f"{path}{number}", changing)
        for tensor in changing["model"].values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).mul_(2)
        changing["optimizer"]["state"][0]["m"].to_local().mul_(2)
        changing["optimizer"]["state"][0]["step"].mul_(2)
        changing["optimizer"]["param_groups"][0]["lr"] *= 2
        changing["epoch"] *= 2
        dist.all_reduce(torch.ones(1))  # the thread has a group of its own
    io.teardown()
    return durable


def fail_in_background(path: str) -> list[str]:
    answers = []
    io = AsyncCheckpointIO()
    io.save_sharded(path, {"w": torch.ones(3)})
    io.save_sharded(os.path.join(path, ".metadata", "below a file"), {"w": torch.ones(3)})
    io.remove_checkpoint(path)
    for call in (io.wait, io.poll, io.teardown):
        try:
            call()
            answers.append("")
        except CheckpointError as error:
            answers.append(str(error))
    return answers


def peak_of_load(path: str, num_rows: int) -> tuple[float, float]:
    """Peak of a sharded load beyond what was there, in MB, and the size of the shard."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = -(-num_rows // dist.get_world_size())

    def split(name: str, rows: int) -> dict[str, Any]:
        return {name: DTensor.from_local(torch.zeros(rows, 1000), mesh, [Shard(0)], run_check=False)}

    load_sharded(path, split("small", 6 // dist.get_world_size()))  # the libraries that this needs are in memory then
    before = memory("VmRSS")
    target = split("w", local)
    shard = target["w"].to_local().nbytes / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    load_sharded(path, target)
    peak = memory("VmHWM") - before
    assert bool((target["w"].to_local() == 1).all())
    return peak, shard


def memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6


def save_large(path: str, num_rows: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = num_rows // dist.get_world_size()
    large = DTensor.from_local(torch.ones(rows, 1000), mesh, [Shard(0)], run_check=False)
    save_sharded(path, {"w": large, "small": torch.zeros(6, 1000)})


# ---- the processes


class Group:
    """Some processes that call the functions above, all at the same time."""

    def __init__(self, size: int, store: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, size, f"file://{store}", theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, name: str, *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((name, arguments))
        answers = [pipe.recv() if pipe.poll(60) else (False, "no answer") for pipe in self._pipes]
        failures = [text for is_good, text in answers if not is_good]
        assert not failures, failures[0]
        return [value for _, value in answers]

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            assert process.exitcode == 0


def serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    while (call := pipe.recv()) is not None:
        name, arguments = call
        try:
            pipe.send((True, globals()[name](*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    close_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    group = Group(2, tmp_path_factory.mktemp("two") / "store")
    yield group
    group.end()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    group = Group(3, tmp_path_factory.mktemp("three") / "store")
    yield group
    group.end()


@pytest.fixture(scope="module")
def saved(two: Group, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "deeper" / "a.ckpt"
    two.call("save", str(path), 1.0)
    return path


# ---- tests


def test_a_folder_is_loaded_by_as_many_processes_and_by_more(two: Group, three: Group, saved: Path) -> None:
    assert sorted(os.listdir(saved)) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
    assert is_sharded(saved)
    two.call("load", str(saved), 1.0)
    three.call("load", str(saved), 1.0)


def test_one_process_without_a_group_loads_whole_tensors(saved: Path) -> None:
    wanted = expected(1.0)
    filled = {
        "model": {name: torch.zeros_like(tensor) for name, tensor in wanted["model"].items()},
        "epoch": None,
        "hyper": None,
        "optimizer": {},
    }
    load_sharded(saved, filled)
    assert_same(filled, {key: wanted[key] for key in filled})
    metadata = read_metadata(saved)
    assert metadata.state_dict_metadata["model.embed.weight"].size == ROWS.shape  # type: ignore[union-attr]


def test_torch_reads_ours_and_we_read_what_torch_wrote(two: Group, three: Group, saved: Path, tmp_path: Path) -> None:
    three.call("load_by_torch", str(saved), 1.0)
    theirs = tmp_path / "theirs"
    two.call("save_by_torch", str(theirs), 5.0)
    three.call("load", str(theirs), 5.0)
    two.call("load", str(theirs), 5.0)


def test_a_folder_is_replaced_and_nothing_is_left(two: Group, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    (path / "from an older version").touch()
    two.call("save", str(path), 3.0)
    two.call("load", str(path), 3.0)
    assert sorted(os.listdir(path)) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_processes_may_have_other_keys(two: Group, tmp_path: Path) -> None:
    two.call("save_by_stages", str(tmp_path / "a.ckpt"))
    filled = {f"stage{rank}": {"w": torch.zeros(3), "name": ""} for rank in range(2)}
    load_sharded(tmp_path / "a.ckpt", filled)
    assert [filled[f"stage{rank}"]["name"] for rank in range(2)] == ["rank 0", "rank 1"]
    assert torch.equal(filled["stage1"]["w"], torch.ones(3))  # type: ignore[arg-type]


def test_of_values_that_differ_those_of_the_first_process_are_saved(two: Group, tmp_path: Path) -> None:
    two.call("save_what_differs", str(tmp_path / "a.ckpt"))
    filled: dict[str, Any] = {"tensors": {f"value{number}": "" for number in range(10)}, "plain": {}}
    load_sharded(tmp_path / "a.ckpt", filled)
    assert set(filled["tensors"].values()) == set(filled["plain"].values()) == {"rank 0"}


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_fails_all_raise_and_the_old_folder_stays(
    two: Group, saved: Path, tmp_path: Path, rank: int
) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    answers = two.call("save_with_a_failure", str(path), rank)
    assert answers[rank].startswith("ConfigurationError: The entry 'model.plain'")
    assert answers[1 - rank].startswith(
        f"CheckpointError: Rank {rank} of 2: ConfigurationError: The entry 'model.plain'"
    )
    answers = two.call("save_with_a_full_disk", str(path), rank)
    assert "a.ckpt" in answers[rank]
    assert "No space left on device" in answers[rank]
    assert f"Rank {rank} of 2: CheckpointError: The checkpoint" in answers[1 - rank]
    assert os.listdir(tmp_path) == ["a.ckpt"]
    two.call("load", str(path), 1.0)


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "meta.pt", ".metadata"])
def test_a_changed_byte_is_noticed_by_all(two: Group, saved: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 8
    (path / name).write_bytes(content)
    answers = two.call("load_answer", str(path))
    assert all(answers)
    assert any(
        f"CheckpointDamagedError: The checkpoint {str(path)!r} is damaged in its part {name!r}" in a for a in answers
    )


def test_a_save_in_the_background_is_the_same_and_does_not_see_later_changes(two: Group, tmp_path: Path) -> None:
    durable = two.call("save_in_background", str(tmp_path / "a"))
    assert durable == [[str(tmp_path / "a1.0"), str(tmp_path / "a2.0")]] * 2
    two.call("load", str(tmp_path / "a1.0"), 1.0)
    two.call("load", str(tmp_path / "a2.0"), 2.0)


def test_a_save_that_fails_in_the_background_is_told_to_all_and_removes_nothing(two: Group, tmp_path: Path) -> None:
    path = tmp_path / "a"
    answers = two.call("fail_in_background", str(path))
    for waited, polled, ended in answers:
        assert "below a file" in waited
        assert polled == ended == ""
    assert is_sharded(path)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_a_sharded_load_needs_little_more_than_the_shard(two: Group, three: Group, tmp_path: Path) -> None:
    """One tensor of 240 MB, saved by two: on three, the pieces are others than those that were written."""
    two.call("save_large", str(tmp_path / "large"), 60_000)
    for group in (two, three):
        for peak, shard in group.call("peak_of_load", str(tmp_path / "large"), 60_000):
            assert peak <= 1.2 * shard, (peak, shard)


def test_what_is_not_there_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointKeyError, match=r"does not hold 'model\.other'.*It holds: 'model\.embed\.weight'"):
        load_sharded(saved, {"model": {"other": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"'model\.few'.* has the shape \(2,\).* has \(3,\)"):
        load_sharded(saved, {"model": {"few": torch.zeros(3)}})
    with pytest.raises(CheckpointError, match=r"'optimizer\.param_groups\.0\.lr'.* is no tensor"):
        load_sharded(saved, {"optimizer": {"param_groups": [{"lr": torch.zeros(1)}]}})
    with pytest.raises(ConfigurationError, match="meta device"):
        load_sharded(saved, {"model": {"few": torch.zeros(2, device="meta")}})
    with pytest.raises(CheckpointError, match="no sharded checkpoint"):
        load_sharded(saved / "missing", {})
    with pytest.raises(CheckpointError, match="no sharded checkpoint"):
        load_sharded(saved / "meta.pt", {})
    assert not is_sharded(saved / "meta.pt")
    assert not is_sharded(saved.parent)


def test_what_would_be_lost_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save_sharded(tmp_path, {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="a file of this name"):
        save_sharded(tmp_path / "notes.txt", {"w": torch.ones(1)})
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_view_brings_only_what_it_shows(tmp_path: Path) -> None:
    save_sharded(tmp_path / "a", {"w": torch.zeros(1_000_000)[:10]})
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 10_000


def test_a_remote_folder_is_saved_over_another_and_loaded() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    path = "memory://test_sharded/a.ckpt"
    for number in (1.0, 2.0):
        save_sharded(path, {"w": torch.full((300_000,), number), "step": number})
        filled = {"w": torch.zeros(300_000), "step": 0.0}
        load_sharded(path, filled)
        assert bool((filled["w"] == number).all())  # type: ignore[attr-defined]
        assert filled["step"] == number
        names = [name.rpartition("/")[2] for name in MemoryFileSystem().ls(path, detail=False)]
        assert len(names) == 3
    content = bytearray(MemoryFileSystem().cat_file(f"{path}/{max(names)}"))
    content[len(content) // 2] ^= 1
    MemoryFileSystem().pipe_file(f"{path}/{max(names)}", bytes(content))
    with pytest.raises(CheckpointDamagedError, match="memory://"):
        load_sharded(path, filled)
