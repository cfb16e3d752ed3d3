import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fulmen.fabric.errors import ArgumentTypeError, CheckpointKeyError, ConfigurationError
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.strategies.base import Strategy, users_module
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy


class Counter:
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def _parts(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return module, optimizer


def test_what_is_saved_is_loaded_into_the_same_places(tmp_path):
    strategy = SingleDeviceStrategy()
    module, optimizer = _parts(0)
    strategy.backward(module(torch.ones(1, 2)).sum(), module)
    strategy.optimizer_step(optimizer)
    state = {"model": module, "optimizer": optimizer, "counter": Counter(3), "step": 7, "extra": "kept"}
    strategy.save_checkpoint(tmp_path / "run.ckpt", state)

    other, other_optimizer = _parts(1)
    loaded = {"model": other, "optimizer": other_optimizer, "counter": Counter(), "step": 0}
    rest = strategy.load_checkpoint(tmp_path / "run.ckpt", loaded)
    assert rest == {"extra": "kept"}
    assert loaded["step"] == 7
    assert loaded["counter"].count == 3
    assert loaded["model"] is other
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    buffers = other_optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(buffers, optimizer.state_dict()["state"][0]["momentum_buffer"])


def test_without_a_state_everything_comes_back(tmp_path):
    strategy = SingleDeviceStrategy()
    strategy.save_checkpoint(tmp_path / "a.ckpt", {"step": 1, "model": nn.Linear(1, 1)})
    assert set(strategy.load_checkpoint(tmp_path / "a.ckpt")) == {"step", "model"}


def test_a_bare_module_or_optimizer_is_loaded_from_its_state_dict(tmp_path):
    strategy = SingleDeviceStrategy()
    (module, optimizer), (other, _) = _parts(0), _parts(1)
    strategy.save_checkpoint(tmp_path / "m.ckpt", module.state_dict())
    assert strategy.load_checkpoint(tmp_path / "m.ckpt", other) == {}
    assert torch.equal(module[0].weight, other[0].weight)
    strategy.save_checkpoint(tmp_path / "o.ckpt", optimizer.state_dict())
    assert strategy.load_checkpoint(tmp_path / "o.ckpt", optimizer) == {}


def test_a_filter_keeps_what_it_says(tmp_path):
    strategy = SingleDeviceStrategy()
    module, _ = _parts(0)
    keep = {"model": lambda name, value: name.startswith("0.")}
    strategy.save_checkpoint(tmp_path / "f.ckpt", {"model": module, "step": 1}, filter=keep)
    assert set(strategy.load_checkpoint(tmp_path / "f.ckpt")["model"]) == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("keep", "error"),
    [(3, ArgumentTypeError), ({"other": bool}, ConfigurationError), ({"model": 3}, ArgumentTypeError)],
)
def test_a_wrong_filter_is_refused_before_anything_is_written(keep, error, tmp_path):
    with pytest.raises(error, match="filter="):
        SingleDeviceStrategy().save_checkpoint(tmp_path / "f.ckpt", {"model": nn.Linear(1, 1)}, filter=keep)
    assert not list(tmp_path.iterdir())


def test_a_missing_key_is_named_or_left_as_it_is(tmp_path):
    strategy = SingleDeviceStrategy()
    strategy.save_checkpoint(tmp_path / "a.ckpt", {"step": 1})
    with pytest.raises(CheckpointKeyError, match=r"does not hold 'epoch'\. It holds: 'step'") as caught:
        strategy.load_checkpoint(tmp_path / "a.ckpt", {"epoch": 0})
    assert isinstance(caught.value, KeyError)
    state = {"epoch": 0, "step": 0}
    strategy.load_checkpoint(tmp_path / "a.ckpt", state, strict=False)
    assert state == {"epoch": 0, "step": 1}
    with pytest.raises(ConfigurationError, match="names nothing to load"):
        strategy.load_checkpoint(tmp_path / "a.ckpt", {})


def test_backward_runs_around_the_precision():
    calls = []

    class Told(Precision):
        def pre_backward(self, tensor, module):
            calls.append("before")

        def post_backward(self, tensor, module):
            calls.append(module.weight.grad is not None)

    module = nn.Linear(2, 1)
    SingleDeviceStrategy(precision=Told()).backward(module(torch.ones(1, 2)).sum(), module, retain_graph=True)
    assert calls == ["before", True]


@pytest.mark.parametrize("precision", [Precision(), MixedPrecision("16-mixed", "cpu")])
def test_clipping_sees_true_gradients(precision):
    module = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    strategy = SingleDeviceStrategy(precision=precision)
    strategy.backward(module(torch.full((1, 4), 0.5)).sum(), module)
    norm = strategy.clip_gradients_norm(module, optimizer, max_norm=0.5)
    assert norm.item() == pytest.approx(1.0)
    assert module.weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)
    strategy.clip_gradients_value(module, optimizer, 0.125)
    assert torch.allclose(module.weight.grad, torch.full((1, 4), 0.125))
    module.weight.grad.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="non-finite"):
        strategy.clip_gradients_norm(module, optimizer, max_norm=0.5)


def test_modules_are_made_on_the_device_in_the_precision_and_empty_if_asked():
    strategy = SingleDeviceStrategy("meta", precision=DoublePrecision())
    with strategy.module_init_context():
        module = nn.Linear(2, 2)
    assert (module.weight.device.type, module.weight.dtype) == ("meta", torch.float64)
    with strategy.tensor_init_context():
        assert torch.ones(1).device.type == "meta"
    marked = torch.full((2, 2), 5.0)
    with SingleDeviceStrategy().module_init_context(empty_init=True):
        nn.init.uniform_(marked)
        nn.init.constant_(tensor=marked, val=1.0)
    assert torch.equal(marked, torch.full((2, 2), 5.0))


def test_parts_have_defaults_and_can_be_replaced():
    strategy = SingleDeviceStrategy()
    assert strategy.launcher is None
    assert strategy.distributed_sampler_kwargs is None
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank, strategy.world_size) == (0, 0, 0, 1)
    assert strategy.checkpoint_io is strategy.checkpoint_io
    strategy.precision = MixedPrecision("bf16-mixed", "cpu")
    strategy.precision = None
    assert strategy.precision.is_plain
    strategy.setup_environment()
    module, optimizer = _parts(0)
    assert strategy.setup_module_and_optimizers(module, [optimizer]) == (module, [optimizer], None)
    batch = {"x": [torch.ones(1)], "name": "a"}
    assert strategy.batch_to_device(batch, torch.device("meta"))["x"][0].device.type == "meta"
    strategy.teardown()


def test_a_subclass_needs_only_what_is_abstract():
    abstract = {"root_device", "is_global_zero", "module_to_device", "all_gather", "all_reduce", "barrier", "broadcast"}
    assert Strategy.__abstractmethods__ == abstract


def test_a_module_is_found_inside_its_wrappers():
    class Compiled(nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    class Replica(DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    module = nn.Linear(1, 1)
    for wrapped in (module, Compiled(module), Replica(module), Compiled(Replica(module)), Replica(Compiled(module))):
        assert users_module(wrapped) is module
