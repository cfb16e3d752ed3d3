"""Which bound strategy a name or a strategy of fabric's becomes, and what is refused before anything runs.

With torch_xla itself, `nox -s xla` runs tests/xla. Replicas are in tests/cross/test_xla_replicas.py.
"""

import os
import sys

import pytest
import torch

from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.strategies import XLAFSDPStrategy as FabricXLAFSDPStrategy
from fulmen.fabric.strategies import XLAStrategy as FabricXLAStrategy
from fulmen.trainer import Trainer
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError, MissingPackageError
from fulmen.trainer.plugins import XLACheckpointIO, XLAPrecision
from fulmen.trainer.strategies import SingleDeviceXLAStrategy, XLAFSDPStrategy, XLAStrategy

pytestmark = pytest.mark.skipif(is_installed("torch_xla"), reason="torch_xla is installed")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

FAKE = {
    "__init__.py": "def sync(wait=False): ...\n",
    "_internal/__init__.py": "",
    "_internal/tpu.py": (
        "def num_available_chips(): return 2\n"
        "def num_available_devices(): return 2\n"
        "def num_local_processes(): return 2\n"
    ),
    "distributed/__init__.py": "",
    "distributed/fsdp.py": "class XlaFullyShardedDataParallel:\n    def __init__(self, module): ...\n",
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Trainer(accelerator="tpu", **QUIET),
        lambda: Trainer(strategy="xla", **QUIET),
        lambda: Trainer(strategy="xla_debug", **QUIET),
        lambda: SingleDeviceXLAStrategy(0),
        XLAStrategy,
        XLAFSDPStrategy,
        XLACheckpointIO,
    ],
)
def test_without_the_package_it_says_what_to_install(make):
    with pytest.raises(MissingPackageError, match="pip install torch_xla"):
        make()


@pytest.fixture
def torch_xla(tmp_path, monkeypatch):
    for name, text in FAKE.items():
        path = tmp_path / "torch_xla" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_xla"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("strategy", "devices", "kind"),
    [
        ("auto", 1, SingleDeviceXLAStrategy),
        ("single_tpu", 1, SingleDeviceXLAStrategy),
        ("auto", 2, XLAStrategy),
        ("xla", 2, XLAStrategy),
        ("xla_debug", 2, XLAStrategy),
        ("xla_fsdp", 2, XLAFSDPStrategy),
    ],
)
def test_a_name_becomes_its_bound_strategy(torch_xla, strategy, devices, kind):
    trainer = Trainer(accelerator="tpu", strategy=strategy, devices=devices, precision="bf16-true", **QUIET)
    assert type(trainer.strategy) is kind
    assert trainer.strategy.debug == (strategy == "xla_debug")
    assert isinstance(trainer.precision_plugin, XLAPrecision)
    assert isinstance(trainer.strategy.checkpoint_io, XLACheckpointIO)
    assert trainer.strategy.fabric_strategy.device_type == "xla"


def test_strategies_of_fabric_are_bound(torch_xla):
    trainer = Trainer(accelerator="tpu", devices=2, strategy=FabricXLAStrategy(spmd=True), **QUIET)
    assert type(trainer.strategy) is XLAStrategy
    assert trainer.strategy.launcher is None  # one process computes on both
    assert (
        type(Trainer(accelerator="tpu", devices=2, strategy="xla", **QUIET).strategy.launcher).__name__ == "XLALauncher"
    )


def test_no_device_is_used_before_the_processes_start(torch_xla, monkeypatch):
    class Launched(Exception): ...

    def launch(*args, **kwargs):
        raise Launched

    trainer = Trainer(accelerator="tpu", devices=2, precision="16-true", max_epochs=1, **QUIET)
    monkeypatch.setattr(type(trainer.strategy.launcher), "launch", launch)
    with pytest.raises(Launched):
        trainer.fit(BoringModel())


@pytest.mark.parametrize("kind", [FabricXLAFSDPStrategy, XLAFSDPStrategy])
def test_the_wrapper_that_takes_the_parameters_away_is_refused(torch_xla, kind):
    with pytest.raises(ConfigurationError, match=r"configure_optimizers\(\) would find none.*spmd=True"):
        Trainer(accelerator="tpu", devices=2, strategy=kind(spmd=False), **QUIET)


def test_parts_of_the_strategy_are_checked(torch_xla):
    with pytest.raises(ConfigurationError, match=r"64-true.*XLA devices"):
        Trainer(accelerator="tpu", devices=1, precision="64-true", **QUIET)
    strategy = SingleDeviceXLAStrategy(1, precision_plugin=XLAPrecision("bf16-true"), debug=True)
    assert (strategy.root_device, strategy.debug, strategy.precision) == (torch.device("xla", 1), True, "bf16-true")


def test_reports_that_the_user_asked_for_stay(torch_xla, monkeypatch):
    monkeypatch.setenv("PT_XLA_DEBUG", "2")
    SingleDeviceXLAStrategy(1, debug=True).teardown()  # of a run that failed before it was set up
    assert os.environ["PT_XLA_DEBUG"] == "2"
