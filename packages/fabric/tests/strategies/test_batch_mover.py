"""A GPU stands in by a mock that knows what each stream has waited for; where there is a real one, it is asked too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import batch_mover as module
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.batch_mover import NUM_AHEAD, SideStream, batch_mover, has_side_streams
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.trees import leaves
from fulmen.fabric.wrappers import FabricDataLoader

GPU = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class FakeStream(torch.Stream):
    gpu: FakeGPU

    def __new__(cls, device: Any = None, number: int | None = None) -> FakeStream:
        assert number is not None or device == GPU
        number = next(cls.gpu.numbers) if number is None else number
        return super().__new__(cls, stream_id=number, device_index=GPU.index, device_type=1)

    def wait_stream(self, other: Any) -> None:
        self.gpu.before[self.stream_id] |= self.gpu.before[other.stream_id]


class FakeEvent:
    gpu: FakeGPU

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()

    def record(self, stream: Any) -> None:
        self.seen = frozenset(self.gpu.before[stream.stream_id])

    def synchronize(self) -> None:
        self.gpu.awaited = self.seen


class FakeGPU(TorchFunctionMode):
    """Copies and work on streams: after which other ones does each begin?"""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.before: dict[int, set[str]] = {number: set() for number in range(100)}
        self.began_after: dict[str, frozenset[str]] = {}
        self.awaited: frozenset[str] = frozenset()
        self.num_copies = 0
        self._patches = ExitStack()
        self.entered = [0]

    def __enter__(self) -> FakeGPU:
        FakeStream.gpu = FakeEvent.gpu = self
        module._stream_of.cache_clear()
        for name, fake in (
            ("torch.cuda.Stream", FakeStream),
            ("torch.cuda.Event", FakeEvent),
            ("torch.cuda.stream", self.entering),
            ("torch.cuda.current_stream", lambda device: FakeStream(device, self.current)),
            ("torch.accelerator.current_accelerator", lambda: torch.device("cuda")),
        ):
            self._patches.enter_context(patch(name, fake))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()
        module._stream_of.cache_clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "to" and args[1] == GPU:
            return self.copy(args[0])
        if func.__name__ == "record_stream":
            args[0].read_on.add(args[1].stream_id)
            return None
        return func(*args, **(kwargs or {}))

    @property
    def current(self) -> int:
        return self.entered[-1]

    @contextmanager
    def entering(self, stream: Any) -> Iterator[None]:
        self.entered.append(stream.stream_id)
        try:
            yield
        finally:
            self.entered.pop()

    def launch(self, name: str) -> str:
        self.began_after[name] = frozenset(self.before[self.current])
        self.before[self.current].add(name)
        return name

    def copy(self, tensor: Tensor) -> Any:
        copied: Any = tensor.detach().clone()
        self.num_copies += 1
        copied.copy_name = self.launch(f"copy {self.num_copies}")
        copied.made_on, copied.read_on = self.current, {self.current}
        return copied

    def check_readable(self, tensor: Any) -> None:
        """Is it there, and will its memory not be given away, when the current stream reads it?"""
        assert tensor.copy_name in self.before[self.current]
        assert self.current in tensor.read_on


class Moves:
    """As many a batch of a package of its own: nobody knows what it holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.held = tensor

    def to(self, device: torch.device) -> Moves:
        return Moves(self.held.to(device))


class MovesAside(Moves):
    """As a batch of PyTorch Geometric."""

    def to(self, device: torch.device) -> MovesAside:
        return MovesAside(self.held.to(device))

    def record_stream(self, stream: torch.Stream) -> None:
        self.held.record_stream(stream)


def held_by(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Moves) else leaf


TENSORS = st.integers(0, 5).map(lambda number: torch.arange(float(number)))
LEAVES = st.one_of(
    TENSORS, TENSORS.map(nn.Parameter), TENSORS.map(Moves), TENSORS.map(MovesAside), st.text(), st.none()
)
BATCHES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)


@settings(deadline=None, max_examples=40)
@given(st.lists(BATCHES, min_size=1, max_size=2 * NUM_AHEAD + 3))
def test_copies_are_ready_when_read_and_begin_while_the_step_before_computes(batches: list[Any]) -> None:
    with FakeGPU() as gpu:
        move = batch_mover(SingleDeviceStrategy(), GPU)
        assert isinstance(move, SideStream)
        for step, batch in enumerate(batches):
            moved = move(batch)
            assert gpu.current == 0
            # The program waits for the device only to be not too far ahead of it.
            steps = {name for name in gpu.awaited if name.startswith("step")}
            assert steps == {f"step {earlier}" for earlier in range(step - NUM_AHEAD)}
            old_leaves, new_leaves = list(leaves(batch)), list(leaves(moved))
            assert len(old_leaves) == len(new_leaves)
            for old, new in zip(old_leaves, new_leaves, strict=True):
                if not isinstance(old, Tensor | Moves):
                    assert new is old
                    continue
                assert torch.equal(held_by(old), held_by(new))
                gpu.check_readable(held_by(new))
                is_aside = type(old) in (Tensor, MovesAside)
                assert (held_by(new).made_on != 0) == is_aside
                if is_aside and step:
                    assert f"step {step - 1}" not in gpu.began_after[held_by(new).copy_name]
            gpu.launch(f"step {step}")


def test_the_fake_sees_a_step_that_does_not_wait() -> None:
    with FakeGPU() as gpu:
        with torch.cuda.stream(FakeStream(GPU)):
            tensor = torch.ones(1).to(GPU)
        with pytest.raises(AssertionError):
            gpu.check_readable(tensor)


def test_what_lies_in_several_tensors_or_elsewhere_stays_on_the_stream_of_the_step() -> None:
    class Own(Tensor):
        pass

    odd = [
        torch.eye(2).to_sparse(),
        torch.eye(2).to_mkldnn(),
        torch.ones(2).as_subclass(Own),
        torch.ones(2, device="meta"),
    ]
    with FakeGPU() as gpu:
        for tensor in odd:
            with patch.object(gpu, "copy", side_effect=lambda item: gpu.launch("copied") and item):
                SideStream(GPU)(tensor)
            assert gpu.before[0] == {"copied"}
            gpu.before[0].clear()


def test_an_error_on_the_way_leaves_the_stream() -> None:
    class Stuck(MovesAside):
        def to(self, device: torch.device) -> MovesAside:
            raise ValueError("stuck")

    with FakeGPU() as gpu:
        with pytest.raises(ValueError, match="stuck"):
            SideStream(GPU)([Stuck(torch.ones(1))])
        assert gpu.current == 0


def test_all_loops_of_a_process_share_one_side_stream() -> None:
    with FakeGPU():
        first, second = SideStream(GPU), SideStream(GPU)
        assert first(torch.ones(1)).made_on == second(torch.ones(1)).made_on
        assert copy.deepcopy(first)(torch.ones(1)).made_on == first(torch.ones(1)).made_on


def test_a_loader_of_fabric_hands_out_copies_and_reads_no_batch_ahead() -> None:
    read: list[int] = []

    class Data(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            read.append(index)
            return torch.tensor(float(index))

    with FakeGPU() as gpu:
        strategy = SingleDeviceStrategy()
        fabric = Fabric(accelerator="cpu", strategy=strategy)
        with patch.object(SingleDeviceStrategy, "root_device", GPU):
            loader = fabric.setup_dataloaders(DataLoader(Data()))
        for step, batch in enumerate(loader):
            gpu.check_readable(batch)
            assert batch.made_on != 0
            assert read == list(range(step + 1))
            assert loader.state_dict()["batch"] == step + 1
            gpu.launch(f"step {step}")
        assert step == 3


# --- where nothing is to do ---


def test_on_the_cpu_nothing_is_done_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for a stream")

    for name in ("get_device_module", "Stream", "Event", "cuda.Stream", "cuda.Event", "cuda.current_stream"):
        monkeypatch.setattr(f"torch.{name}", refuse)
    assert batch_mover(SingleDeviceStrategy(), torch.device("cpu")) is None
    fabric = Fabric(accelerator="cpu")
    loader = DataLoader(torch.arange(4.0))
    wrapped = fabric.setup_dataloaders(loader)
    assert type(iter(wrapped)) is type(iter(loader))  # no layer
    assert [batch.item() for batch in wrapped] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["cpu", "mps", "xla", "meta"])
def test_devices_without_a_stream_beside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(name)
    for accelerator in (None, torch.device("cuda"), device):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=accelerator: found)
        if accelerator != device or name in ("cpu", "mps"):
            assert not has_side_streams(device)
            assert not isinstance(batch_mover(SingleDeviceStrategy(), device), SideStream)


def test_elsewhere_a_batch_is_moved_as_by_hand() -> None:
    move = batch_mover(SingleDeviceStrategy(), torch.device("meta"))
    assert move is not None
    assert move([torch.ones(2), "text"])[0].device.type == "meta"


def test_a_strategy_that_moves_batches_itself_is_asked() -> None:
    batch = [torch.ones(2)]
    for device in (GPU, torch.device("cpu")):
        move = batch_mover(DataParallelStrategy(parallel_devices=[GPU]), device)
        assert move is not None
        assert move(batch) is batch

    class Own(SingleDeviceStrategy):
        def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
            return device, batch

    own: Strategy = Own()
    assert batch_mover(own, GPU)(batch) == (GPU, batch)  # type: ignore[misc]  # it is one


# --- a real GPU ---


@needs_gpu
def test_a_gpu_copies_while_it_computes() -> None:
    move = batch_mover(SingleDeviceStrategy(GPU), GPU)
    assert isinstance(move, SideStream)
    source = [{"x": torch.rand(1 << 20).pin_memory(), "name": "a"} for _ in range(2 * NUM_AHEAD)]
    move(source[0])
    torch.cuda.synchronize(GPU)
    torch.cuda._sleep(1 << 31)  # type: ignore[no-untyped-call]  # a step, of a second or so
    computed = torch.cuda.Event()
    computed.record()
    move(source[1])
    module._stream_of(GPU).synchronize()
    assert not computed.query()  # the copy is there, and the step before it still computes
    for batch in source:
        # Memory that comes free is used again by the next batch: each must come as it was.
        moved = move(batch)
        assert moved["name"] == "a"
        total = moved["x"].double().sum()
        del moved
        assert total.item() == pytest.approx(batch["x"].double().sum().item())


@needs_gpu
def test_a_loader_of_fabric_fills_a_gpu() -> None:
    fabric = Fabric(accelerator="cuda", devices=1)
    data = torch.rand(64, 1000)
    for pins in (True, False):
        loader = fabric.setup_dataloaders(DataLoader(data, batch_size=4, pin_memory=pins))
        assert isinstance(loader, FabricDataLoader)
        batches = [batch * 2 for batch in loader]
        assert all(batch.is_cuda for batch in batches)
        assert torch.equal(torch.cat(batches).cpu(), data * 2)
