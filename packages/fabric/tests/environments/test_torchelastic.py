import pytest

from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment
from fulmen.fabric.errors import ConfigurationError

_SET = {
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "none",
}


@pytest.fixture
def torchrun(monkeypatch):
    for variable, value in _SET.items():
        monkeypatch.setenv(variable, value)
    return TorchElasticEnvironment()


def test_everything_is_read_from_torchrun(torchrun):
    assert torchrun.detect()
    assert torchrun.creates_processes_externally
    assert (torchrun.main_address, torchrun.main_port) == ("node0", 29500)
    assert (torchrun.global_rank(), torchrun.local_rank(), torchrun.node_rank()) == (3, 1, 1)
    torchrun.set_world_size(7)
    torchrun.set_global_rank(7)
    assert (torchrun.world_size(), torchrun.global_rank()) == (4, 3)


def test_without_torchrun_it_is_not_detected(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not TorchElasticEnvironment.detect()


def test_another_number_of_processes_than_torchrun_started_is_refused(torchrun):
    torchrun.validate_settings(num_devices=2, num_nodes=2)
    with pytest.raises(ConfigurationError, match="torchrun started 4"):
        torchrun.validate_settings(num_devices=2, num_nodes=1)
