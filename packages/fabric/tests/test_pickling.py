"""All that a user may pass to Fabric travels by value to processes that are spawned."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.fabric.collectives import SingleDeviceCollective, TorchCollective
from fulmen.fabric.environments import (
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.loggers import CSVLogger
from fulmen.fabric.measure import SpikeDetection, Throughput
from fulmen.fabric.precision import (
    DoublePrecision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from fulmen.fabric.strategies import (
    DataParallelStrategy,
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)


def whole(module: nn.Module, mesh: Any) -> nn.Module:
    return module


PARTS: dict[str, Callable[[], Any]] = {
    "single device": lambda: SingleDeviceStrategy("cpu"),
    "dp": DataParallelStrategy,
    "ddp": lambda: DDPStrategy(start_method="spawn", static_graph=True),
    "fsdp": lambda: FSDPStrategy(
        auto_wrap_policy={nn.Linear}, activation_checkpointing=nn.ReLU, sharding_strategy="SHARD_GRAD_OP"
    ),
    "fsdp, on the CPU": lambda: FSDPStrategy(cpu_offload=True, state_dict_type="full"),
    "model parallel": lambda: ModelParallelStrategy(whole, data_parallel_size=2),
    "32-true": Precision,
    "16-mixed": lambda: MixedPrecision("16-mixed", "cpu"),
    "bf16-true": lambda: HalfPrecision("bf16-true"),
    "64-true": DoublePrecision,
    "fsdp, 16-mixed": lambda: FSDPPrecision("16-mixed"),
    "torchrun": TorchElasticEnvironment,
    "slurm": SLURMEnvironment,
    "kubeflow": KubeflowEnvironment,
    "here": LightningEnvironment,
    "one file": TorchCheckpointIO,
    "in the background": lambda: AsyncCheckpointIO(on_durable=print),
    "cpu": CPUAccelerator,
    "cuda": CUDAAccelerator,
    "mps": MPSAccelerator,
    "collective": TorchCollective,
    "alone": SingleDeviceCollective,
    "throughput": Throughput,
    "spikes": lambda: SpikeDetection(exclude_batches_path="here.json"),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "copied", [lambda part: pickle.loads(pickle.dumps(part)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_part_becomes_a_copy_of_its_own(name: str, copied: Callable[[Any], Any]) -> None:
    part = PARTS[name]()
    twin = copied(part)
    assert type(twin) is type(part)
    assert twin is not part
    assert vars(twin).keys() == vars(part).keys()


def train_and_pickle(folder: Path) -> None:
    io = AsyncCheckpointIO()
    logger = CSVLogger(folder, version=0)
    fabric = Fabric(accelerator="cpu", devices=1, strategy="fsdp", loggers=logger, plugins=io)
    fabric.launch()
    net = nn.Linear(2, 1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with fabric.no_backward_sync(model):
        fabric.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    fabric.log("loss", 1.0)
    logger.save()
    io.save_checkpoint({"a": torch.ones(3)}, folder / "a.ckpt")

    twin = pickle.loads(pickle.dumps(io))
    twin.wait()
    assert twin.poll() == []
    io.wait()
    assert len(io.poll()) == 1
    twin.save_checkpoint({"a": torch.zeros(3)}, folder / "b.ckpt")
    twin.teardown()
    assert (folder / "b.ckpt").exists()

    assert pickle.loads(pickle.dumps(logger)).log_dir == logger.log_dir
    # A mesh is made of processes, which spawned ones are not; all else of the strategy may travel when it was used.
    state = {name: value for name, value in vars(fabric.strategy).items() if name != "_mesh"}
    assert pickle.loads(pickle.dumps(state)).keys() == state.keys()


def test_what_is_under_way_here_does_not_travel(tmp_path: Path) -> None:
    # In a process of its own: it opens a process group.
    SpawnLauncher(LightningEnvironment(), 1, start_method="fork").launch(train_and_pickle, tmp_path)
