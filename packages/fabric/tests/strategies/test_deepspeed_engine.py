"""What can be known of the engine without the package: what is missing, and what its optimizer is to torch."""

import os
from types import SimpleNamespace

import pytest
import torch

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY
from fulmen.fabric.strategies.deepspeed import engine
from fulmen.fabric.strategies.deepspeed.engine import EngineOptimizer, told_ranks

NAMES = [name for name in STRATEGY_REGISTRY.names() if name.startswith("deepspeed")]


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(engine, "is_installed", lambda name: False)


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_one_line_says_what_to_install(name):
    with pytest.raises(MissingPackageError) as refused:
        Fabric(accelerator="cpu", devices=2, strategy=name)
    assert "python -m pip install 'deepspeed>=0.19'" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, ModuleNotFoundError)


def test_an_older_package_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "require", lambda *_, **__: SimpleNamespace(__version__="0.16.4"))
    with pytest.raises(MissingPackageError, match=r"0\.16\.4 is installed"):
        engine.load_deepspeed(torch.device("cpu"), 30)


def test_one_that_was_imported_for_a_gpu_is_refused(monkeypatch):
    accelerator = SimpleNamespace(get_accelerator=lambda: SimpleNamespace(device_name=lambda: "cuda"))
    package = SimpleNamespace(__version__="0.19.8", accelerator=accelerator)
    monkeypatch.setattr(engine, "require", lambda *_, **__: package)
    with pytest.raises(ConfigurationError, match="DS_ACCELERATOR=cpu"):
        engine.load_deepspeed(torch.device("cpu"), 30)


def test_the_environment_is_as_before_when_it_was_told(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "7")
    before = dict(os.environ)
    environment = LightningEnvironment()
    with told_ranks(environment, local_rank=3):
        assert (os.environ["LOCAL_RANK"], os.environ["RANK"]) == ("3", "0")
        assert os.environ["WORLD_SIZE"] == "1"
    environment.teardown()
    assert {name: os.environ.get(name) for name in before} == before
    assert "LOCAL_RANK" not in os.environ


class Engine:
    """Steps the flat pieces of an optimizer, as an engine does."""

    def __init__(self, client, *, has_zero=True, managed=False, remakes=False):
        flat = [torch.zeros(3, requires_grad=True)]
        client.param_groups[0]["params"] = flat
        self.inner = torch.optim.SGD(flat, lr=0.5) if remakes else client
        self.optimizer = SimpleNamespace(optimizer=self.inner)
        self.zero_optimization = lambda: has_zero
        self.managed_gradient_accumulation = lambda: managed
        self.num_steps = 0

    def step(self):
        self.num_steps += 1


def client():
    return torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.25)


@pytest.mark.parametrize("remakes", [False, True])
def test_a_scheduler_of_the_users_optimizer_reaches_the_engines(remakes):
    optimizer = client()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    engine = Engine(optimizer, remakes=remakes)
    stepping = EngineOptimizer(engine, optimizer)
    assert isinstance(stepping, torch.optim.Optimizer)
    before = stepping.param_groups[0]["lr"]
    optimizer.step()
    scheduler.step()
    assert stepping.param_groups[0]["lr"] == pytest.approx(0.025)
    assert engine.inner.param_groups[0]["lr"] == pytest.approx(0.025)
    assert before in (0.25, 0.5)


def test_it_steps_only_with_gradients_and_calls_its_closure_once():
    optimizer = client()
    engine = Engine(optimizer)
    stepping = EngineOptimizer(engine, optimizer)
    assert stepping.step() is None
    assert engine.num_steps == 0

    def closure():
        assert torch.is_grad_enabled()
        stepping.note_backward()
        return 3.0

    with torch.no_grad():
        assert stepping.step(closure) == 3.0
    assert engine.num_steps == 1
    assert stepping.step(lambda: None) is None  # no loss
    assert engine.num_steps == 1


def test_gradients_in_the_engine_cannot_be_thrown_away():
    optimizer = client()
    stepping = EngineOptimizer(Engine(optimizer), optimizer)
    stepping.zero_grad()
    stepping.note_backward()
    with pytest.raises(ConfigurationError, match="between backward and step"):
        stepping.zero_grad()
    stepping.step()
    stepping.zero_grad(set_to_none=False)
    counted = EngineOptimizer(Engine(client(), managed=True))
    counted.note_backward()
    counted.zero_grad()  # the engine says when: between its batches, nothing happens


def test_state_is_handed_out_only_where_it_is_whole():
    plain = EngineOptimizer(Engine(client(), has_zero=False))
    plain.load_state_dict(plain.state_dict())
    split = EngineOptimizer(Engine(client()))
    for call in (split.state_dict, lambda: split.load_state_dict({}), lambda: split.add_param_group({})):
        with pytest.raises(ConfigurationError, match="DeepSpeed"):
            call()
    with pytest.raises(TypeError, match="cannot be copied"):
        split.__getstate__()
    assert repr(split).startswith("EngineOptimizer(SGD")
