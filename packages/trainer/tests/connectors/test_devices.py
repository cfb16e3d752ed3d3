import pytest

from fulmen.fabric.precision.base import Precision
from fulmen.trainer.connectors.devices import choose_strategy
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.layer_sync import LayerSync, TorchSyncBatchNorm
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy


def choose(**flags):
    defaults = {
        "accelerator": "cpu",
        "strategy": "auto",
        "devices": 1,
        "num_nodes": 1,
        "precision": None,
        "plugins": None,
        "sync_batchnorm": False,
    }
    return choose_strategy(**{**defaults, **flags})


def test_one_device_needs_no_processes_and_two_do():
    bound, selection = choose()
    assert isinstance(bound, SingleDeviceStrategy)
    assert (selection.num_devices, bound.launcher) == (1, None)
    bound, selection = choose(devices=2)
    assert isinstance(bound, DDPStrategy)
    assert selection.num_devices == 2


def test_a_strategy_object_is_used_as_it_is():
    own = SingleDeviceStrategy(device="cpu")
    bound, selection = choose(strategy=own)
    assert bound is own
    assert selection.strategy is own.fabric_strategy


def test_plugins_are_put_in_place():
    precision, sync = Precision(), TorchSyncBatchNorm()
    bound, _ = choose(plugins=[precision, sync])
    assert bound.precision_plugin is precision
    assert bound.layer_sync is sync
    assert isinstance(choose(sync_batchnorm=True)[0].layer_sync, TorchSyncBatchNorm)
    assert choose()[0].layer_sync is None


def test_two_ways_to_synchronise_layers_are_one_too_many():
    class Own(LayerSync):
        def apply(self, model): ...
        def revert(self, model): ...

    with pytest.raises(ConfigurationError, match=r"Trainer\(sync_batchnorm=True, plugins=\[Own\(\)\]\)"):
        choose(sync_batchnorm=True, plugins=Own())


@pytest.mark.parametrize(
    "flags",
    [
        {"accelerator": "abacus"},
        {"strategy": "dpp"},
        {"devices": 0},
        {"precision": "7"},
        {"plugins": ["x"]},
        {"num_nodes": 0},
    ],
)
def test_what_is_unknown_is_refused_in_the_words_of_the_user(flags):
    [(name, value)] = flags.items()
    with pytest.raises(MisconfigurationException, match=rf"Trainer\(.*{name}=") as caught:
        choose(**flags)
    assert repr(value).strip("[]") in str(caught.value)
