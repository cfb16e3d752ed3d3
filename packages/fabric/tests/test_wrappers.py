import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.errors import ArgumentTypeError, ForwardBypassedError, MisconfigurationException
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy
from fulmen.fabric.wrappers import (
    FabricDataLoader,
    FabricModule,
    FabricOptimizer,
    backward_through_strategy,
    is_wrapped,
    unwrap,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = 2.0

    def forward(self, x):
        return self.layer(x) * self.scale

    def training_step(self, x):
        self.seen = torch.is_autocast_enabled("cpu")
        return self(x).sum()

    def encode(self, x):
        return self.layer(x)

    def count(self):
        return 1


class Wrapper(nn.Module):
    """Stands for DDP: it must see each forward."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.num_calls = 0

    def forward(self, *args, **kwargs):
        self.num_calls += 1
        return self.module(*args, **kwargs)


class BracketedBackward(Precision):
    def pre_backward(self, tensor, module):
        pass


class OwnStep(Precision):
    def optimizer_step(self, optimizer, **kwargs):
        return super().optimizer_step(optimizer, **kwargs)


def wrap(net, precision=None, wrapper=None):
    return FabricModule(wrapper or net, SingleDeviceStrategy(precision=precision), original_module=net)


def bf16():
    return MixedPrecision("bf16-mixed", "cpu")


# --- module ---


@given(st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3), st.booleans())
def test_a_plain_module_is_called_as_it_is(row, is_wrapped_again):
    net = Net()
    module = wrap(net, wrapper=Wrapper(net) if is_wrapped_again else None)
    assert torch.equal(module(torch.tensor([row])), net(torch.tensor([row])))


def test_a_plain_call_has_nothing_in_between():
    module = wrap(net := Net())
    assert module.forward.__self__ is net
    assert module.training_step == net.training_step


def test_precision_is_there_in_forward_and_in_steps():
    net = Net()
    module = wrap(net, bf16())
    net.layer.register_forward_hook(lambda _, args, output: kinds.append((args[0].dtype, output.dtype)))
    kinds = []
    assert module(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float32
    assert kinds == [(torch.float32, torch.bfloat16)]
    module.training_step(torch.ones(1, 3))
    assert net.seen
    net.training_step(torch.ones(1, 3))
    assert not net.seen
    module.mark_forward_method("encode")
    assert module.encode(torch.ones(1, 3)).dtype == torch.float32  # converted back
    assert kinds[-1] == (torch.float32, torch.bfloat16)


def test_steps_go_through_the_wrapper():
    net = Net()
    module = wrap(net, wrapper=(wrapper := Wrapper(net)))
    module.training_step(torch.ones(1, 3)).backward()
    module.mark_forward_method(net.encode)
    assert torch.equal(module.encode(torch.ones(1, 3)), net.layer(torch.ones(1, 3)))
    assert wrapper.num_calls == 2
    assert module.count() == 1
    assert wrapper.num_calls == 2


def test_a_method_must_not_run_forward_past_the_wrapper():
    net = Net()
    module = wrap(net, wrapper=Wrapper(net))
    with pytest.raises(ForwardBypassedError, match=r"`encode` of Net.*mark_forward_method\('encode'\)"):
        module.encode(torch.ones(1, 3))
    with torch.no_grad():
        module.encode(torch.ones(1, 3))
    net.encode(torch.ones(1, 3))  # nothing is left behind
    assert torch.equal(wrap(net).encode(torch.ones(1, 3)), net.encode(torch.ones(1, 3)))


def test_marking_what_is_not_there():
    module = wrap(Net())
    with pytest.raises(AttributeError, match=r"mark_forward_method\('nope'\).*Net"):
        module.mark_forward_method("nope")
    with pytest.raises(ArgumentTypeError, match=r"mark_forward_method\(3\)"):
        module.mark_forward_method(3)
    with pytest.raises(AttributeError, match="nope"):
        _ = module.nope


def test_attributes_are_those_of_the_users_module():
    net = Net()
    module = wrap(net, wrapper=Wrapper(net))
    module.scale = 3.0
    module.fresh = 1
    assert (net.scale, net.fresh, module.scale, module.module) == (3.0, 1, 3.0, net)
    module.eval()
    assert not net.training
    assert [parameter.shape for parameter in module.parameters()] == [parameter.shape for parameter in net.parameters()]
    assert (module.device, module.dtype) == (torch.device("cpu"), torch.float32)
    assert wrap(nn.ReLU()).device == torch.device("cpu")


def test_states_show_no_wrapper():
    net, other = Net(), Net()
    module = wrap(net, wrapper=Wrapper(net))
    assert set(module.state_dict()) == {"layer.weight", "layer.bias"}
    module.load_state_dict(other.state_dict())
    assert torch.equal(net.layer.weight, other.layer.weight)
    assert set(nn.ModuleDict({"a": module}).state_dict()) == {"a.layer.weight", "a.layer.bias"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("precision", [None, DoublePrecision()])
def test_copies_are_apart(duplicate, precision):
    module = wrap(Net().to(torch.float64 if precision else torch.float32), precision)
    twin = duplicate(module)
    x = torch.ones(1, 3)
    assert torch.equal(twin(x), module(x))
    with torch.no_grad():
        twin.layer.weight.zero_()
        twin.layer.bias.zero_()
    assert torch.count_nonzero(twin(x)) == 0
    assert torch.count_nonzero(module(x)) > 0


def test_hooks_on_the_returned_module_run():
    module = wrap(Net())
    heard = []
    module.register_forward_hook(lambda *_: heard.append(1))
    module(torch.ones(1, 3))
    assert heard == [1]


def test_plain_backward_is_refused_only_where_it_is_wrong():
    for precision in (bf16(), OwnStep()):
        wrap(Net(), precision)(torch.ones(1, 3)).sum().backward()
    output = wrap(Net(), BracketedBackward())(torch.ones(1, 3))
    with pytest.raises(ForwardBypassedError, match=r"fabric\.backward"):
        output.sum().backward()
    with backward_through_strategy():
        wrap(Net(), BracketedBackward())(torch.ones(1, 3)).sum().backward()
    assert issubclass(ForwardBypassedError, MisconfigurationException)


# --- optimizer ---


class Listener:
    def __init__(self):
        self.heard = []

    def on_after_optimizer_step(self, strategy, optimizer):
        self.heard.append((strategy, optimizer))


def step_once(optimizer, net):
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("callbacks", [None, [Listener(), object()]])
def test_an_optimizer_steps_as_the_torch_one(callbacks):
    net = Net()
    twin = copy.deepcopy(net)
    strategy = SingleDeviceStrategy()
    torch_optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer = FabricOptimizer(torch_optimizer, strategy, callbacks)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        step_once(optimizer, net)
        step_once(plain, twin)
    assert torch.equal(net.layer.weight, twin.layer.weight)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert optimizer.optimizer is torch_optimizer
    if callbacks:
        assert callbacks[0].heard == [(strategy, torch_optimizer)] * 4


@pytest.mark.parametrize("wraps_first", [True, False])
def test_schedulers_take_it(wraps_first, recwarn):
    net = Net()
    torch_optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    if wraps_first:
        optimizer = FabricOptimizer(torch_optimizer, SingleDeviceStrategy())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(torch_optimizer, step_size=1, gamma=0.5)
        optimizer = FabricOptimizer(torch_optimizer, SingleDeviceStrategy())
    step_once(optimizer, net)
    scheduler.step()
    assert torch_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.5
    assert not recwarn  # torch warns if it believes that the optimizer never stepped


def test_an_optimizer_passes_for_its_class():
    torch_optimizer = torch.optim.SGD(Net().parameters(), lr=1.0)
    optimizer = FabricOptimizer(torch_optimizer, SingleDeviceStrategy())
    assert isinstance(optimizer, torch.optim.SGD)
    assert isinstance(optimizer, FabricOptimizer)
    optimizer.mark = 1
    assert torch_optimizer.mark == 1
    optimizer.load_state_dict(optimizer.state_dict())
    assert repr(optimizer) == repr(torch_optimizer)
    twin = copy.deepcopy(optimizer)
    assert type(twin) is FabricOptimizer
    assert twin.optimizer is not torch_optimizer


# --- loader ---


def test_a_loader_on_the_cpu_iterates_without_a_layer():
    loader = DataLoader(torch.arange(6.0), batch_size=2)
    wrapped = FabricDataLoader(loader, torch.device("cpu"))
    assert type(iter(wrapped)) is type(iter(loader))
    assert [batch.tolist() for batch in wrapped] == [[0, 1], [2, 3], [4, 5]]
    assert (len(wrapped), wrapped.batch_size, wrapped.dataset is loader.dataset) == (3, 2, True)
    assert (wrapped.device, FabricDataLoader(loader).device) == (torch.device("cpu"), None)


def test_batches_are_moved_elsewhere():
    wrapped = FabricDataLoader(DataLoader(torch.arange(2.0)), torch.device("meta"))
    assert [batch.device.type for batch in wrapped] == ["meta", "meta"]
    assert wrapped.set_epoch(3) is None
    assert copy.copy(wrapped).device == wrapped.device


# --- all three ---


def test_what_is_wrapped_and_what_is_in_it():
    net = Net()
    torch_optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    loader = DataLoader(torch.arange(2.0))
    module, optimizer = wrap(net), FabricOptimizer(torch_optimizer, SingleDeviceStrategy())
    assert [is_wrapped(obj) for obj in (module, optimizer, FabricDataLoader(loader))] == [True] * 3
    assert [is_wrapped(obj) for obj in (net, torch_optimizer, loader, None)] == [False] * 4
    assert (unwrap(module), unwrap(optimizer), unwrap(3)) == (net, torch_optimizer, 3)
    assert is_wrapped(torch.compile(module, backend="eager"))
