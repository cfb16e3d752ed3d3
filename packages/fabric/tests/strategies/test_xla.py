"""What is decided before torch_xla is asked: which parts go together, and what is refused.

With torch_xla itself, `nox -s xla` runs tests/xla. Replicas are in tests/cross/test_xla_replicas.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io.background import AsyncCheckpointIO
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MissingPackageError, NotLaunchedError
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.plugins import MixedPrecision, XLACheckpointIO, XLAPrecision
from fulmen.fabric.selection import select
from fulmen.fabric.strategies import DDPStrategy, SingleDeviceXLAStrategy, XLAFSDPStrategy, XLAStrategy
from fulmen.fabric.strategies.xla.graphs import move_in_place
from fulmen.fabric.strategies.xla.mesh import XLAMesh

pytestmark = pytest.mark.skipif(is_installed("torch_xla"), reason="torch_xla is installed")

# What we ask of the package before a run begins.
FAKE = {
    "__init__.py": "num_graphs = 0\ndef sync(wait=False):\n    global num_graphs\n    num_graphs += 1\n",
    "_XLAC.py": "",
    "_internal/__init__.py": "",
    "_internal/tpu.py": (
        "def num_available_chips(): return 2\n"
        "def num_available_devices(): return 4\n"
        "def num_local_processes(): return 2\n"
    ),
    "distributed/__init__.py": "",
    "distributed/fsdp.py": (
        "class XlaFullyShardedDataParallel:\n"
        "    def __init__(self, module, reshard_after_forward=True, compute_dtype=None, auto_wrap_policy=None,\n"
        "        auto_wrapper_callable=None, _debug_print=False): ...\n"
    ),
    "distributed/spmd.py": (
        "class Mesh:\n    def __init__(self, devices, shape, names): self.shape = shape\n"
        "marks = []\ndef mark_sharding(tensor, mesh, spec): marks.append((tensor, spec))\n"
    ),
}


@pytest.fixture(scope="module")
def torch_xla(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("fake")
    for name, text in FAKE.items():
        path = folder / "torch_xla" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delenv("PJRT_DEVICE", raising=False)
        import torch_xla  # type: ignore[import-not-found]

        yield torch_xla
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_xla"]:
        del sys.modules[name]


MAKERS = [lambda: SingleDeviceXLAStrategy(0), XLAStrategy, XLAFSDPStrategy, XLACheckpointIO]


@pytest.mark.parametrize("make", MAKERS)
def test_without_the_package_it_says_what_to_install(make: Any) -> None:
    with pytest.raises(MissingPackageError, match=r"needs the package 'torch_xla'.*pip install torch_xla"):
        make()


@pytest.mark.parametrize("name", ["single_xla", "single_tpu", "xla", "xla_fsdp"])
def test_a_name_without_the_package_says_what_to_install(name: str) -> None:
    with pytest.raises(MissingPackageError, match="pip install torch_xla"):
        Fabric(accelerator="tpu", strategy=name, devices=1)


@pytest.mark.parametrize(
    ("asked", "devices", "kind"),
    [
        ("auto", 1, SingleDeviceXLAStrategy),
        ("auto", 2, XLAStrategy),
        ("auto", [3], SingleDeviceXLAStrategy),
        ("single_tpu", 1, SingleDeviceXLAStrategy),
        ("xla", "auto", XLAStrategy),
        ("xla_fsdp", 4, XLAFSDPStrategy),
    ],
)
def test_names_and_devices_choose_the_strategy(torch_xla: Any, asked: str, devices: Any, kind: type[Any]) -> None:
    chosen = select(accelerator="tpu", strategy=asked, devices=devices)
    assert type(chosen.strategy) is kind
    assert type(chosen.strategy.precision) is XLAPrecision
    assert type(chosen.environment).__name__ == "XLAEnvironment"
    assert isinstance(chosen.strategy.checkpoint_io, XLACheckpointIO)
    if devices == [3]:
        assert chosen.strategy.root_device == torch.device("xla", 3)


def test_other_strategies_do_not_run_there_nor_these_elsewhere(torch_xla: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"strategy='ddp'.*cannot run on XLA devices"):
        select(accelerator="tpu", strategy="ddp", devices=2)
    with pytest.raises(ConfigurationError, match=r"strategy=DDPStrategy\(\.\.\.\)\) cannot run on XLA devices"):
        select(accelerator="tpu", strategy=DDPStrategy(), devices=2)
    with pytest.raises(ConfigurationError, match=r"XLAStrategy\(\.\.\.\)\) cannot run on devices of type 'cpu'"):
        select(accelerator="cpu", strategy=XLAStrategy())


@pytest.mark.parametrize("precision", ["32-true", "16-true", "bf16-true"])
def test_a_precision_by_its_name(torch_xla: Any, precision: str) -> None:
    found = select(accelerator="tpu", devices=1, precision=precision).precision
    assert isinstance(found, XLAPrecision)
    assert found.precision == precision
    module = found.convert_module(torch.nn.Linear(2, 2))
    assert module.weight.dtype == {"32-true": torch.float32, "16-true": torch.float16}.get(precision, torch.bfloat16)
    batch = found.convert_input({"x": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)})
    assert (batch["x"].dtype, batch["n"].dtype) == (module.weight.dtype, torch.int64)
    assert found.is_plain == (precision == "32-true") == (not found.converts_input)
    with found.forward_context():
        assert torch.ones(1).dtype == module.weight.dtype
    assert found.convert_output(torch.ones(1, dtype=module.weight.dtype)).dtype == torch.float32


def test_32_bits_leave_64_bits_alone() -> None:
    assert XLAPrecision("32-true").convert_module(torch.nn.Linear(2, 2).double()).weight.dtype == torch.float64


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_other_precisions_are_refused(torch_xla: Any, precision: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{precision}.*not for XLA devices.*'bf16-true'"):
        Fabric(accelerator="tpu", devices=1, precision=precision)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: XLAPrecision("bf16"), ConfigurationError, "precision='bf16'"),
        (lambda: XLAStrategy(precision=MixedPrecision("bf16-mixed", "cpu")), ArgumentTypeError, "XLAPrecision"),
        (lambda: XLAStrategy(checkpoint_io=TorchCheckpointIO()), ArgumentTypeError, "XLACheckpointIO"),
        (lambda: XLAStrategy(spmd=1), ArgumentTypeError, "spmd=1"),
        (lambda: XLAStrategy(sync_module_states="yes"), ArgumentTypeError, "sync_module_states='yes'"),
        (lambda: XLAFSDPStrategy(state_dict_type="half"), ConfigurationError, "state_dict_type='half'"),
        (lambda: XLAFSDPStrategy(auto_wrap_policy={3}), ArgumentTypeError, r"XLAFSDPStrategy\(auto_wrap_policy"),
        (lambda: XLAFSDPStrategy(cpu_offload=True), ArgumentTypeError, "cpu_offload=True.*It takes: resh"),
        (lambda: XLAFSDPStrategy(_debug_print=True), ArgumentTypeError, "_debug_print=True"),
        (lambda: XLAFSDPStrategy(spmd=True, compute_dtype=torch.bfloat16), ConfigurationError, "compute_dtype"),
        (lambda: XLAFSDPStrategy(spmd=True, auto_wrap_policy={torch.nn.Linear}), ConfigurationError, "two ways"),
    ],
)
def test_wrong_arguments_are_refused_at_once(torch_xla: Any, make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_wrapped_checkpoint_io_is_taken(torch_xla: Any) -> None:
    io = AsyncCheckpointIO(XLACheckpointIO())
    assert XLAStrategy(checkpoint_io=io).checkpoint_io is io


def test_processes_that_could_not_be_are_not_started(torch_xla: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"devices=4 cannot give each device a process.*v2 or v3.*spmd=True"):
        Fabric(accelerator="tpu", strategy="xla", devices=4).launch()
    with pytest.raises(ConfigurationError, match=r"XLAStrategy\(spmd=True\) with num_nodes=2"):
        Fabric(accelerator="tpu", strategy=XLAStrategy(spmd=True), devices=4, num_nodes=2).launch()
    strategy = XLAStrategy()
    select(accelerator="tpu", strategy=strategy, devices=2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert strategy.launcher is not None
    with pytest.raises(ConfigurationError, match="runs under torchrun"):
        strategy.launcher.launch(print)


def test_before_the_processes_are_there_nobody_touches_a_device(torch_xla: Any) -> None:
    strategy = XLAStrategy(parallel_devices=[torch.device("xla", 0), torch.device("xla", 1)])
    assert (strategy.global_rank, strategy.world_size, strategy.is_global_zero) == (0, 1, True)
    with pytest.raises(NotLaunchedError, match="root_device was read before the run began"):
        _ = strategy.root_device
    with pytest.raises(ConfigurationError, match="has a process of its own"):
        _ = strategy.mesh
    with pytest.raises(NotLaunchedError, match="mesh was read"):
        _ = XLAStrategy(spmd=True).mesh


def test_only_operations_that_xla_has_and_no_groups(torch_xla: Any) -> None:
    strategy = XLAStrategy()
    with pytest.raises(ConfigurationError, match="reduce_op='bor' is no operation of XLA"):
        strategy.all_reduce(torch.ones(1), reduce_op="bor")
    with pytest.raises(ConfigurationError, match="group='some'"):
        strategy.all_gather(torch.ones(1), group="some")
    assert strategy.all_reduce(torch.ones(1)) == 1
    assert strategy.broadcast("alone") == "alone"
    assert strategy.reduce_boolean_decision(True)


def test_a_graph_ends_before_a_batch_and_after_a_step(torch_xla: Any) -> None:
    strategy = SingleDeviceXLAStrategy("cpu")
    torch_xla.num_graphs = 0
    strategy.batch_to_device(torch.ones(1))
    assert torch_xla.num_graphs == 1
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    strategy.optimizer_step(torch.optim.SGD([parameter], lr=0.5))
    assert (torch_xla.num_graphs, parameter.item()) == (2, 0.5)


shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(shape=shapes, num_devices=st.integers(1, 8))
def test_an_axis_is_divided_that_devices_divide_and_none_longer_is_left(
    torch_xla: Any, shape: tuple[int, ...], num_devices: int
) -> None:
    axis = XLAMesh(num_devices).axis_to_divide(shape)
    fitting = [length for length in shape if length and length % num_devices == 0]
    assert (axis is None) == (not fitting)
    assert axis is None or shape[axis] == max(fitting)


def test_a_mesh_marks_what_it_lays_out(torch_xla: Any) -> None:
    import torch_xla.distributed.spmd as spmd

    spmd.marks.clear()
    layer = torch.nn.Linear(6, 8)
    XLAMesh(4).divide(layer)
    assert [spec for _, spec in spmd.marks] == [("data", None), ("data",)]
    spmd.marks.clear()
    XLAMesh(4).replicate(layer)
    assert [spec for _, spec in spmd.marks] == [(None, None), (None,)]


def test_a_module_that_moves_keeps_its_parameters() -> None:
    layer = torch.nn.Linear(2, 2)
    tied = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
    tied[1].weight = layer.weight
    weight, optimizer = layer.weight, torch.optim.SGD(tied.parameters(), lr=1.0)
    move_in_place(tied, torch.device("meta"))  # as another type of tensor, too
    assert weight is layer.weight is tied[1].weight is optimizer.param_groups[0]["params"][0]
    assert weight.is_meta
    assert not torch.__future__.get_swap_module_params_on_conversion()


def test_a_parameter_that_is_watched_cannot_move() -> None:
    from weakref import ref

    layer = torch.nn.Linear(2, 2)
    watching = ref(layer.weight)
    with pytest.raises(ConfigurationError, match=r"Linear could not be moved to 'meta'.*weak references"):
        move_in_place(layer, torch.device("meta"))
    assert watching() is layer.weight
