import sys
import types

import pytest

from fulmen.fabric.environments.xla import XLAEnvironment
from fulmen.fabric.errors import ArgumentTypeError, MissingPackageError

_ADDRESSES = ("TPU_MESH_CONTROLLER_ADDRESS", "TPU_MESH_CONTROLLER_PORT", "MASTER_ADDR", "MASTER_PORT", "PJRT_DEVICE")


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    for variable in _ADDRESSES:
        monkeypatch.delenv(variable, raising=False)
    for name in ("torch_xla", "torch_xla.runtime"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def tpu(monkeypatch):
    """What torch_xla answers in one process of a TPU pod."""
    runtime = types.ModuleType("torch_xla.runtime")
    answers = {"world_size": 8, "global_ordinal": 5, "local_ordinal": 1, "host_index": 1, "get_master_ip": "10.0.0.2"}
    for name, answer in answers.items():
        setattr(runtime, name, lambda answer=answer: answer)
    package = types.ModuleType("torch_xla")
    package.__spec__ = types.SimpleNamespace()
    package.runtime = runtime
    monkeypatch.setitem(sys.modules, "torch_xla", package)
    monkeypatch.setitem(sys.modules, "torch_xla.runtime", runtime)
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    return XLAEnvironment()


def test_everything_is_asked_of_torch_xla(tpu):
    assert XLAEnvironment.detect()
    assert not tpu.creates_processes_externally
    assert (tpu.world_size(), tpu.global_rank(), tpu.local_rank(), tpu.node_rank()) == (8, 5, 1, 1)
    assert (tpu.main_address, tpu.main_port) == ("10.0.0.2", 8476)
    tpu.set_world_size(3)
    tpu.set_global_rank(3)
    assert (tpu.world_size(), tpu.global_rank()) == (8, 5)


def test_the_controller_of_the_mesh_goes_before_what_torch_xla_finds(tpu, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (tpu.main_address, tpu.main_port) == ("here", 1)
    monkeypatch.setenv("TPU_MESH_CONTROLLER_ADDRESS", "10.0.0.9:8477")
    monkeypatch.setenv("TPU_MESH_CONTROLLER_PORT", "8477")
    assert (tpu.main_address, tpu.main_port) == ("10.0.0.9", 8477)


def test_without_a_device_it_is_not_detected(tpu, monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE")
    assert not XLAEnvironment.detect()


def test_the_package_is_needed():
    assert not XLAEnvironment.detect()
    with pytest.raises(MissingPackageError, match="pip install torch_xla"):
        XLAEnvironment()


def test_options_that_it_does_not_have_are_refused(tpu):
    with pytest.raises(ArgumentTypeError, match="got 3, port"):
        XLAEnvironment(3, port=1)
