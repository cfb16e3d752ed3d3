import pytest

from fulmen.fabric.environments.kubeflow import KubeflowEnvironment
from fulmen.fabric.errors import ConfigurationError

# As a worker pod of a PyTorchJob sees them.
_POD = {
    "KUBERNETES_PORT": "tcp://10.0.0.1:443",
    "MASTER_ADDR": "train-master-0",
    "MASTER_PORT": "23456",
    "WORLD_SIZE": "3",
    "RANK": "2",
}


@pytest.fixture
def pod(monkeypatch):
    for variable in ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in _POD.items():
        monkeypatch.setenv(variable, value)
    return KubeflowEnvironment()


def test_everything_is_read_from_the_pod(pod):
    assert KubeflowEnvironment.detect()
    assert pod.creates_processes_externally
    assert (pod.main_address, pod.main_port) == ("train-master-0", 23456)
    assert (pod.world_size(), pod.global_rank(), pod.local_rank(), pod.node_rank()) == (3, 2, 0, 2)
    assert pod.local_world_size() == 1
    pod.set_world_size(7)
    pod.set_global_rank(7)
    assert (pod.world_size(), pod.global_rank()) == (3, 2)
    pod.validate_settings(num_devices=1, num_nodes=3)


@pytest.mark.parametrize("asked", [(3, 1), (2, 3), (1, 1)])
def test_other_numbers_than_those_of_the_pods_are_refused(pod, asked):
    with pytest.raises(ConfigurationError, match="one process in each of 3 pods"):
        pod.validate_settings(*asked)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LOCAL_RANK", "0"), ("NODE_RANK", "1"), ("TORCHELASTIC_RUN_ID", "me"), ("WORLD_SIZE", "1")],
)
def test_a_pod_that_starts_processes_itself_is_not_detected(pod, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert not KubeflowEnvironment.detect()


@pytest.mark.parametrize("variable", _POD)
def test_where_a_variable_is_missing_it_is_not_detected(pod, monkeypatch, variable):
    monkeypatch.delenv(variable)
    assert not KubeflowEnvironment.detect()


def test_an_address_that_is_none_is_refused(pod, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "host; reboot")
    with pytest.raises(ConfigurationError, match="MASTER_ADDR names the host 'host; reboot'"):
        _ = pod.main_address
