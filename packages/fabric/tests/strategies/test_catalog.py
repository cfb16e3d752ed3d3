import pytest
import torch

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.dp import DataParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

_START_METHODS = {
    "ddp": "popen",
    "ddp_spawn": "spawn",
    "ddp_fork": "fork",
    "ddp_notebook": "fork",
    "ddp_find_unused_parameters_true": "popen",
}


@pytest.mark.parametrize(("name", "start_method"), _START_METHODS.items())
def test_each_name_builds_its_ddp(name, start_method):
    entry = STRATEGY_REGISTRY[name]
    strategy = entry.value(**entry.preset)
    assert type(strategy) is DDPStrategy
    assert entry.preset["start_method"] == start_method
    assert ("find_unused_parameters" in entry.preset) == name.endswith("_true")
    assert entry.description


def test_single_device_builds_its_own():
    strategy = STRATEGY_REGISTRY.get("single_device")()
    assert isinstance(strategy, SingleDeviceStrategy)
    assert strategy.root_device == torch.device("cpu")


def test_dp_builds_its_own():
    assert type(STRATEGY_REGISTRY.get("dp")()) is DataParallelStrategy


_OFFLOADS = ("", "_offload")


def test_these_are_all_names():
    deepspeed = {"deepspeed", *(f"deepspeed_stage_{stage}{offload}" for stage in (1, 2, 3) for offload in _OFFLOADS)}
    on_xla = {"single_tpu", "single_xla", "xla", "xla_fsdp"}
    others = {"dp", "fsdp", "fsdp_cpu_offload", "single_device"}
    assert set(STRATEGY_REGISTRY.names()) == {
        *_START_METHODS,
        *others,
        *deepspeed,
        "deepspeed_stage_3_offload_nvme",
        *on_xla,
    }
    with pytest.raises(ConfigurationError, match="Did you mean 'dp' or 'ddp'"):
        STRATEGY_REGISTRY.get("dpp")


def test_a_class_registers_the_names_that_are_expected_of_it():
    for name in STRATEGY_REGISTRY:
        registered = Registry("strategy")
        STRATEGY_REGISTRY.get(name).register_strategies(registered)
        same = [other for other in STRATEGY_REGISTRY if STRATEGY_REGISTRY.get(other) is STRATEGY_REGISTRY.get(name)]
        assert registered.names() == same
