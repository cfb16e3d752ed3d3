import os
import socket
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.accelerators.catalog import ACCELERATOR_REGISTRY
from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.accelerators.cuda import CUDAAccelerator
from fulmen.fabric.accelerators.mps import MPSAccelerator
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.environments.kubeflow import KubeflowEnvironment
from fulmen.fabric.environments.lsf import LSFEnvironment
from fulmen.fabric.environments.mpi import MPIEnvironment
from fulmen.fabric.environments.slurm import SLURMEnvironment
from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment
from fulmen.fabric.errors import (
    ArgumentTypeError,
    ConfigurationError,
    HardwareError,
    MisconfigurationException,
    MissingPackageError,
)
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.catalog import PRECISIONS, make_precision
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.selection import select
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gpu_and_no_launcher(monkeypatch):
    for gpu in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(gpu, "is_available", staticmethod(lambda: False))
    managers = ("SLURM_", "LSB_", "JSM_", "PMI_", "OMPI_", "KUBERNETES_")
    for name in [name for name in os.environ if name.startswith(managers)]:
        monkeypatch.delenv(name)
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torchrun(monkeypatch):
    torchrun_sets = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}
    for name, value in {**torchrun_sets, "MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "me"}.items():
        monkeypatch.setenv(name, str(value))


# --- what is chosen ---


@given(st.integers(1, 6), st.integers(1, 3))
def test_every_count_of_processes_is_served(devices, num_nodes):
    chosen = select(accelerator="cpu", devices=devices, num_nodes=num_nodes)
    assert chosen.devices == (CPU,) * devices
    assert (chosen.num_devices, chosen.num_nodes) == (devices, num_nodes)
    is_alone = devices * num_nodes == 1
    assert type(chosen.strategy) is (SingleDeviceStrategy if is_alone else DDPStrategy)
    assert isinstance(chosen.environment, LightningEnvironment)
    assert chosen.strategy.precision is chosen.precision
    assert chosen.strategy.accelerator is chosen.accelerator


def test_without_flags_it_is_one_cpu():
    chosen = select()
    assert isinstance(chosen.accelerator, CPUAccelerator)
    assert chosen.devices == (CPU,)
    assert type(chosen.precision) is Precision


@pytest.mark.parametrize("name", ["ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true"])
@pytest.mark.parametrize("devices", ["1", 2])
def test_names_of_strategies(name, devices):
    chosen = select(strategy=name, devices=devices)
    assert isinstance(chosen.strategy, DDPStrategy)
    assert chosen.strategy.parallel_devices == [CPU] * int(devices)
    assert chosen.strategy.cluster_environment is chosen.environment


def test_single_device_by_name():
    assert isinstance(select(strategy="single_device").strategy, SingleDeviceStrategy)


@pytest.mark.parametrize(("written", "name"), [*PRECISIONS.items(), (64, "64-true"), (32, "32-true"), (16, "16-mixed")])
def test_precision_values(written, name):
    if name.startswith("transformer-engine"):
        with pytest.raises(MissingPackageError, match=r"Fabric\(precision='transformer-engine.*pip install"):
            select(precision=written)
    elif name == "16-mixed":
        with pytest.warns(UserWarning, match="bfloat16"):
            assert select(precision=written).precision.precision == "bf16-mixed"
    else:
        assert select(precision=written).precision.precision == name


@pytest.mark.filterwarnings("ignore:.*GradScaler")  # torch misses the GPU
def test_float16_is_kept_where_it_can_be_computed():
    precision = make_precision("16-mixed", "cuda")
    assert (precision.precision, precision.scales_loss) == ("16-mixed", True)


def test_plugins_are_used():
    own = MixedPrecision("bf16-mixed", "cpu"), LightningEnvironment(), TorchCheckpointIO()
    chosen = select(plugins=list(own), devices=2)
    assert (chosen.precision, chosen.environment, chosen.strategy.checkpoint_io) == own
    assert chosen.strategy.cluster_environment is own[1]
    assert select(plugins=own[0]).precision is own[0]


def test_a_strategy_object_keeps_what_it_brings():
    io, environment, precision = TorchCheckpointIO(), LightningEnvironment(), DoublePrecision()
    mine = DDPStrategy(
        accelerator=CPUAccelerator(),
        parallel_devices=[CPU, CPU, CPU],
        cluster_environment=environment,
        checkpoint_io=io,
        precision=precision,
    )
    chosen = select(strategy=mine)
    assert chosen.strategy is mine
    assert chosen.num_devices == 3
    assert (chosen.environment, chosen.precision, mine.checkpoint_io) == (environment, precision, io)


def test_a_strategy_object_keeps_its_devices_if_as_many_are_asked_for(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr("fulmen.fabric.accelerators.cuda.num_cuda_devices", lambda: 4)
    own = [torch.device("cuda", 2), torch.device("cuda", 3)]
    mine = DDPStrategy(parallel_devices=own)
    assert select(strategy=mine, devices=2).devices == tuple(own)
    assert mine.parallel_devices == own
    alone = SingleDeviceStrategy(device="cuda:3")
    assert select(strategy=alone, devices=1).devices == (torch.device("cuda", 3),)
    with pytest.raises(ConfigurationError, match=r"devices=\[0\].*cuda:3"):
        select(strategy=alone, devices=[0])


def test_a_precision_is_made_for_the_kind_of_device_and_not_for_the_name_of_the_accelerator():
    class Slow(CPUAccelerator):
        @staticmethod
        def name():
            return "slow"

    with select(accelerator=Slow(), precision="bf16-mixed").precision.forward_context():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16


class Named(CPUAccelerator):
    """A kind of the user's own, with an argument."""

    def __init__(self, speed=1):
        self.speed = speed

    @staticmethod
    def name():
        return "named"


@pytest.fixture
def _registered():
    ACCELERATOR_REGISTRY.register("named", accelerator=Named, speed=7)
    yield
    ACCELERATOR_REGISTRY.remove("named")


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("strategy", ["auto", DDPStrategy(parallel_devices=[CPU]), SingleDeviceStrategy(CPU)])
def test_an_accelerator_of_the_users_own_by_its_name(strategy):
    chosen = select(accelerator="named", strategy=strategy)
    assert isinstance(chosen.accelerator, Named)
    assert chosen.accelerator.speed == 7
    assert chosen.devices == (CPU,)


def test_an_accelerator_of_the_users_own_as_an_object():
    mine = Named(speed=3)
    chosen = select(accelerator=mine, devices="2")
    assert chosen.accelerator is mine
    assert chosen.devices == (CPU, CPU)


class Alone(Precision):
    parameters_may_be = "alone"


class Replicated(Precision):
    parameters_may_be = "replicated"


def test_a_precision_whose_weights_cannot_be_sent_is_refused_where_they_would_be():
    def built(precision, strategy, devices=2):
        return select(accelerator="cpu", strategy=strategy, devices=devices, plugins=[precision()]).strategy

    def splitting():
        return ModelParallelStrategy(plan={"*": "shard"})

    for strategy in ("ddp", splitting()):
        with pytest.raises(ConfigurationError, match=r"Alone with \w+, which .* Pass strategy='auto' and devices=1"):
            built(Alone, strategy)
    with pytest.raises(ConfigurationError, match=r"Replicated with ModelParallelStrategy, which splits.*'ddp'"):
        built(Replicated, splitting())
    with pytest.raises(ConfigurationError, match=r"Replicated with DataParallelStrategy, which copies.*'ddp'"):
        built(Replicated, DataParallelStrategy())
    assert type(built(Replicated, "ddp").precision) is Replicated
    assert type(built(Alone, "auto", 1).precision) is Alone
    assert type(built(Precision, splitting()).precision) is Precision


def test_a_precision_for_other_devices_is_refused():
    class OnlyThere(Precision):
        device_types = ("cuda", "xpu")

    with pytest.raises(ConfigurationError, match=r"Trainer cannot use OnlyThere on .*'cpu'. It works on 'cuda', 'xpu'"):
        select(accelerator="cpu", plugins=OnlyThere(), caller="Trainer")


def test_a_strategy_object_gets_what_it_lacks():
    mine = DDPStrategy()
    chosen = select(strategy=mine, devices=2, precision="64-true", num_nodes=2)
    assert mine.parallel_devices == [CPU, CPU]
    assert isinstance(mine.precision, DoublePrecision)
    assert isinstance(mine.accelerator, CPUAccelerator)
    assert (mine.num_nodes, chosen.environment) == (2, mine.cluster_environment)


def test_under_torchrun_devices_need_not_be_said(torchrun):
    chosen = select()
    assert isinstance(chosen.environment, TorchElasticEnvironment)
    assert isinstance(chosen.strategy, DDPStrategy)
    assert chosen.num_devices == 2


def test_under_torchrun_another_number_is_refused(torchrun):
    with pytest.raises(ConfigurationError, match="torchrun started 2"):
        select(devices=3)


MANAGERS = {
    "torchrun": ({"TORCHELASTIC_RUN_ID": "me", "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}, TorchElasticEnvironment),
    "slurm": ({"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_PROCID": 1, "SLURM_LOCALID": 1}, SLURMEnvironment),
    "lsf": (
        {"LSB_JOBID": 7, "JSM_NAMESPACE_SIZE": 2, "JSM_NAMESPACE_RANK": 1}
        | {"JSM_NAMESPACE_LOCAL_RANK": 1, "JSM_NAMESPACE_LOCAL_SIZE": 2, "LSB_DJOB_RANKFILE": os.devnull},
        LSFEnvironment,
    ),
    "mpi": ({"PMI_SIZE": 2}, MPIEnvironment),
    "kubeflow": ({"KUBERNETES_PORT": "tcp://", "WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}, None),
}


@pytest.fixture
def two_of_mpi(monkeypatch):
    class World:
        Get_rank, Get_size = (lambda self: 1), (lambda self: 2)
        allgather, bcast = (lambda self, host: [host, host]), (lambda self, port, root: 1)

    mpi = types.ModuleType("mpi4py.MPI")
    mpi.COMM_WORLD = World()
    monkeypatch.setitem(sys.modules, "mpi4py", types.ModuleType("mpi4py"))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)


@pytest.mark.parametrize("first", ["torchrun", "slurm", "lsf", "mpi"])
def test_of_several_managers_the_innermost_is_asked(first, monkeypatch, tmp_path, two_of_mpi):
    names = list(MANAGERS)
    for name in names[names.index(first) :]:
        for variable, value in MANAGERS[name][0].items():
            monkeypatch.setenv(variable, str(value))
    (tmp_path / "hosts").write_text(f"{socket.gethostname()}\n")
    if "LSB_DJOB_RANKFILE" in os.environ:
        monkeypatch.setenv("LSB_DJOB_RANKFILE", str(tmp_path / "hosts"))
    if first != "torchrun":
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    chosen = select(accelerator="cpu")
    assert type(chosen.environment) is MANAGERS[first][1]
    assert chosen.num_devices == 2  # as many as the manager has started
    assert isinstance(chosen.strategy, DDPStrategy)


def test_pods_of_a_job_are_nodes(monkeypatch):
    for variable, value in MANAGERS["kubeflow"][0].items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("RANK", "1")
    assert isinstance(select(accelerator="cpu", num_nodes=2).environment, KubeflowEnvironment)
    with pytest.raises(ConfigurationError, match="in each of 2 pods"):
        select(accelerator="cpu", devices=2)


def test_another_number_of_devices_than_slurm_runs_tasks_is_refused(monkeypatch):
    for variable, value in MANAGERS["slurm"][0].items():
        monkeypatch.setenv(variable, str(value))
    with pytest.raises(ConfigurationError, match="SLURM runs 2 task"):
        select(accelerator="cpu", devices=3)
    # Whoever wants our launchers inside a job says so.
    assert select(accelerator="cpu", devices=3, plugins=LightningEnvironment()).num_devices == 3


def test_a_batch_is_not_split_over_cpus():
    with pytest.warns(UserWarning, match="strategy='dp'.*strategy='ddp'"):
        assert type(select(accelerator="cpu", strategy="dp", devices=2).strategy) is DDPStrategy


def test_a_batch_is_split_in_one_process_only(monkeypatch, torchrun):
    with pytest.raises(ConfigurationError, match=r"there are to be 2.*strategy='ddp'"):
        select(accelerator="cpu", devices=1, strategy=DataParallelStrategy(parallel_devices=[CPU]))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ConfigurationError, match="num_nodes=3"):
        select(accelerator="cpu", devices=1, num_nodes=3, strategy=DataParallelStrategy(parallel_devices=[CPU]))
    chosen = select(accelerator="cpu", strategy=DataParallelStrategy(parallel_devices=[CPU]))
    assert chosen.strategy.root_device == CPU


def test_a_notebook_forks(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>>", raising=False)
    assert select(devices=2).strategy.launcher.is_interactive_compatible
    with pytest.raises(ConfigurationError, match=r"'ddp'.*interactive.*'ddp_notebook'"):
        select(strategy="ddp", devices=2)


# --- what is refused ---

REFUSED = [
    # (flags, family in the reference, what the message must quote)
    ({"accelerator": "foo"}, ValueError, "accelerator='foo'"),
    ({"accelerator": 3}, ValueError, "accelerator=3"),
    ({"accelerator": None}, ValueError, "accelerator=None"),
    ({"accelerator": "hpu"}, ValueError, "accelerator='hpu'"),
    ({"accelerator": "gpu"}, RuntimeError, "accelerator='gpu'"),
    ({"accelerator": "cuda"}, HardwareError, "accelerator='cuda'"),
    ({"accelerator": "mps"}, HardwareError, "accelerator='mps'"),
    ({"accelerator": "tpu"}, ModuleNotFoundError, "accelerator='tpu'"),
    ({"strategy": "foo"}, ValueError, "strategy='foo'"),
    ({"strategy": 3}, ValueError, "strategy=3"),
    ({"strategy": "single_device", "devices": 2}, ValueError, "strategy='single_device'"),
    ({"strategy": SingleDeviceStrategy(), "devices": 2}, ValueError, "SingleDeviceStrategy"),
    ({"devices": 0}, ConfigurationError, "devices=0"),
    ({"devices": -1}, TypeError, "devices=-1"),
    ({"devices": "x"}, TypeError, "devices='x'"),
    ({"devices": [0, 1]}, TypeError, "devices=[0, 1]"),
    ({"devices": None}, TypeError, "devices=None"),
    ({"devices": []}, ConfigurationError, "devices=[]"),
    ({"devices": 1.5}, TypeError, "devices=1.5"),
    ({"num_nodes": 0}, ValueError, "num_nodes=0"),
    ({"num_nodes": "2"}, ValueError, "num_nodes='2'"),
    ({"precision": "foo"}, ValueError, "precision='foo'"),
    ({"precision": 8}, ValueError, "precision=8"),
    ({"precision": ["16"]}, ValueError, "precision=['16']"),
    ({"precision": "16-mixed", "plugins": [Precision()]}, ValueError, "precision='16-mixed'"),
    ({"plugins": ["foo"]}, TypeError, "'foo'"),
    ({"plugins": [Precision(), Precision()]}, ConfigurationError, "two Precision"),
    ({"plugins": [LightningEnvironment(), LightningEnvironment()]}, ConfigurationError, "two ClusterEnvironment"),
    ({"strategy": DDPStrategy(accelerator=CPUAccelerator()), "accelerator": "cpu"}, ConfigurationError, "twice"),
    ({"strategy": DDPStrategy(precision=DoublePrecision()), "plugins": [Precision()]}, ConfigurationError, "twice"),
    ({"strategy": DDPStrategy(precision=DoublePrecision()), "precision": "64-true"}, ConfigurationError, "twice"),
    ({"strategy": SingleDeviceStrategy(precision=Precision()), "plugins": [Precision()]}, ConfigurationError, "twice"),
    ({"strategy": DDPStrategy(parallel_devices=[CPU, CPU]), "devices": 3}, ConfigurationError, "devices=3"),
    (
        {"strategy": SingleDeviceStrategy(checkpoint_io=TorchCheckpointIO()), "plugins": [TorchCheckpointIO()]},
        ConfigurationError,
        "twice",
    ),
    (
        {"strategy": DDPStrategy(cluster_environment=LightningEnvironment()), "plugins": [LightningEnvironment()]},
        ConfigurationError,
        "twice",
    ),
    (
        {"strategy": DDPStrategy(parallel_devices=[torch.device("cuda", 0)]), "accelerator": "cpu"},
        ConfigurationError,
        "accelerator='cpu'",
    ),
]


@pytest.mark.parametrize(("flags", "family", "quoted"), REFUSED, ids=[",".join(case[0]) for case in REFUSED])
def test_contradictions_are_answered_in_three_sentences(flags, family, quoted):
    with pytest.raises(family) as raised:
        select(**flags, caller="Trainer")
    message = str(raised.value)
    assert isinstance(raised.value, MisconfigurationException)
    assert message.startswith(("Trainer(", "Trainer got"))
    assert quoted in message
    assert message.count(". ") >= 2
    assert message.endswith(".")


def test_a_wrong_type_is_no_wrong_value():
    assert not issubclass(ArgumentTypeError, ValueError)


def test_every_registered_name_is_listed():
    with pytest.raises(ConfigurationError) as raised:
        select(strategy="fsdpp")
    assert all(repr(name) in str(raised.value) for name in STRATEGY_REGISTRY.names())


def test_nothing_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    select(devices=2)
    assert not list(tmp_path.iterdir())
