import socket
import sys

import pytest

from fulmen.fabric.environments.base import read_int
from fulmen.fabric.environments.default import LightningEnvironment, find_free_network_port
from fulmen.fabric.errors import ConfigurationError

_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "RANK")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for variable in _VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_alone_it_is_rank_zero_of_one_and_our_launchers_start_the_others():
    environment = LightningEnvironment()
    assert not environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (1, 0)
    assert (environment.local_rank(), environment.node_rank()) == (0, 0)
    assert environment.main_address == "127.0.0.1"
    assert LightningEnvironment.detect()


def test_a_started_process_knows_its_place_before_any_strategy_tells_it(monkeypatch):
    for variable, value in {"RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(variable, value)
    environment = LightningEnvironment()
    assert environment.creates_processes_externally
    assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (3, 1, 1)
    assert environment.world_size() == 4


def test_the_strategy_may_set_rank_and_size():
    environment = LightningEnvironment()
    environment.set_global_rank(5)
    environment.set_world_size(8)
    assert (environment.global_rank(), environment.world_size()) == (5, 8)


def test_the_free_port_stays_the_same_and_master_port_goes_before_it(monkeypatch):
    environment = LightningEnvironment()
    port = environment.main_port
    assert port == environment.main_port
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert environment.main_port == 1234
    assert environment.listening_socket() is None
    assert 0 < find_free_network_port() < 2**16


@pytest.mark.skipif(sys.platform == "win32", reason="torch takes no socket over there")
def test_the_free_port_is_listened_at_from_the_moment_it_is_known(monkeypatch):
    environment = LightningEnvironment()
    port = environment.main_port
    monkeypatch.setenv("MASTER_PORT", str(port))  # as our launchers tell it on
    with socket.socket(fileno=environment.listening_socket()) as listening:
        assert listening.getsockname() == ("127.0.0.1", port)


def test_another_number_of_processes_than_there_are_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    LightningEnvironment().validate_settings(num_devices=2, num_nodes=1)
    with pytest.raises(ConfigurationError, match="devices=4 and num_nodes=1 ask for 4 processes"):
        LightningEnvironment().validate_settings(num_devices=4, num_nodes=1)


def test_several_nodes_without_a_place_to_meet_are_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match="MASTER_ADDR, MASTER_PORT, NODE_RANK is not set"):
        LightningEnvironment().validate_settings(num_devices=1, num_nodes=2)
    for variable, value in {"MASTER_ADDR": "node0", "MASTER_PORT": "1", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    LightningEnvironment().validate_settings(num_devices=1, num_nodes=2)


def test_a_variable_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(ConfigurationError, match="MASTER_PORT is 'http'"):
        _ = LightningEnvironment().main_port
    with pytest.raises(ConfigurationError, match="RANK is not set"):
        read_int("RANK")
    assert read_int("RANK", 7) == 7
