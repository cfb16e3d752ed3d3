import pytest

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.trainer import strategies
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.strategies.catalog import STRATEGY_REGISTRY, bind, build
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.fsdp import FSDPStrategy
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy

NAMES = [
    f"{start}{suffix}"
    for start in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
    for suffix in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
]


@pytest.mark.parametrize("name", [*NAMES, "single_device"])
def test_every_name_builds_a_bound_strategy(name):
    strategy = build(name)
    assert type(strategy) is (SingleDeviceStrategy if name == "single_device" else DDPStrategy)
    assert strategies.StrategyRegistry is STRATEGY_REGISTRY


def test_fabrics_strategies_are_bound_and_bound_ones_stay():
    fabric = FabricDDPStrategy()
    assert bind(fabric).fabric_strategy is fabric
    assert type(bind(FabricSingleDeviceStrategy())) is SingleDeviceStrategy

    class Own(SingleDeviceStrategy):
        pass

    own = Own()
    assert bind(own) is own


def test_users_may_register_their_own():
    class Own(SingleDeviceStrategy):
        pass

    STRATEGY_REGISTRY.register("own", Own, "mine")
    try:
        assert type(build("own")) is Own
    finally:
        STRATEGY_REGISTRY.remove("own")


def test_what_is_none_is_refused():
    with pytest.raises(ArgumentTypeError, match="strategy=3 is no strategy"):
        bind(3)
    with pytest.raises(ConfigurationError, match="'ddp_spawn'"):
        build("ddp_spawm")


def test_these_names_are_known_and_a_class_registers_those_expected_of_it():
    assert {*NAMES, "fsdp", "fsdp_cpu_offload", "single_device"} <= {*STRATEGY_REGISTRY.names()}
    for bound, expected in ((DDPStrategy, NAMES), (FSDPStrategy, ["fsdp", "fsdp_cpu_offload"])):
        registered = Registry("strategy")
        bound.register_strategies(registered)
        assert registered.names() == expected
        assert all(registered[name].preset == STRATEGY_REGISTRY[name].preset for name in expected)


def test_a_strategy_is_bound_by_its_nearest_base():
    class Own(FabricModelParallelStrategy):
        pass

    assert type(bind(Own(lambda module, mesh: module))) is ModelParallelStrategy
