import copy
import traceback
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.compiled import (
    fit_names,
    is_compiled,
    load_plain_state,
    make_plain,
    name_inside,
    plain_buffers,
    plain_name,
    plain_parameters,
    plain_state,
    unwrap_compiled,
    without_wrappers,
)


def wrapped(module):
    return torch.compile(module, backend="eager")


def block():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class Net(nn.Module):
    """Parts of it, as `places` says, are wrapped; the outer ones after the inner ones."""

    def __init__(self, places=()):
        super().__init__()
        self.body = nn.ModuleDict({"first": block(), "second": block()})
        self.head = nn.Linear(3, 1)
        for place in sorted(places, reverse=True):
            parent, _, name = place.rpartition(".")
            holder = self.get_submodule(parent)
            setattr(holder, name, wrapped(getattr(holder, name)))


class WithPart(nn.Module):
    """A part of it has the name that torch gives to what it wraps."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part._orig_mod = nn.Linear(1, 1)
        self.part.scale = nn.Parameter(torch.ones(1))


PLACES = ["body", "body.first", "body.first.0", "body.second", "head"]
places = st.sets(st.sampled_from(PLACES))
plain = Net()


@settings(deadline=None)
@given(places, places)
def test_names_do_not_depend_on_what_is_compiled(here, there):
    """Whatever was compiled where a name comes from, there is one plain name, and it finds its way."""
    one, other = Net(here), Net(there)
    for name in one.state_dict():
        inside = name_inside(other, name)
        assert inside in other.state_dict()
        assert plain_name(one, name) == plain_name(other, name) == plain_name(other, inside) == without_wrappers(name)
        assert name_inside(one, plain_name(one, name)) == name
    assert list(plain_state(one)) == list(plain.state_dict())
    assert list(plain_parameters(one)) == [name for name, _ in plain.named_parameters()]
    assert list(plain_buffers(one)) == [name for name, _ in plain.named_buffers()]


@settings(deadline=None)
@given(places, places, st.booleans())
def test_a_state_loads_whatever_is_compiled_on_either_side(here, there, with_wrappers):
    torch.manual_seed(1)
    one, other = Net(here), Net(there)
    one.head.requires_grad_(False).weight.fill_(7)
    state = one.state_dict() if with_wrappers else plain_state(one)
    before = list(state)
    load_plain_state(other, state)
    assert list(state) == before
    for name, value in plain_state(one).items():
        assert torch.equal(plain_state(other)[name], value), name


def test_versions_of_parts_are_saved_under_plain_names():
    state = plain_state(Net({"body", "body.first"}))
    assert set(state._metadata) == set(plain.state_dict()._metadata)
    assert state._metadata["body.first.1"] == {"version": 2}


def test_only_what_has_the_prefix_is_renamed():
    net = Net({"head"})
    state = OrderedDict({"head._orig_mod.bias": 1, "in.head._orig_mod.bias": 2})
    make_plain(net, state, "in.")
    assert list(state) == ["head._orig_mod.bias", "in.head.bias"]
    fit_names(net, state, "in.")
    assert list(state) == ["head._orig_mod.bias", "in.head._orig_mod.bias"]


def test_a_part_that_only_has_that_name_keeps_it():
    net = WithPart()
    names = list(net.state_dict())
    assert list(plain_state(net)) == names
    load_plain_state(net, copy.deepcopy(net.state_dict()))
    net.part = wrapped(net.part)
    assert list(plain_state(net)) == names


def test_what_does_not_fit_is_still_told():
    others = {name: value for name, value in plain.state_dict().items() if name != "head.bias"}
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*"head\._orig_mod\.bias".*Unexpected key.*"nobody"'):
        load_plain_state(Net({"head"}), {**others, "nobody": torch.ones(1)})


def test_the_module_inside():
    net = Net()
    assert unwrap_compiled(wrapped(net)) is net
    assert unwrap_compiled(net) is net
    assert is_compiled(wrapped(net))
    assert not is_compiled(net)


@pytest.mark.parametrize("compiled_where", [(), ("body.first", "head")])
def test_fabric_saves_plain_names_and_loads_them(tmp_path, compiled_where):
    fabric = Fabric(accelerator="cpu")
    net = Net({"body.first", "head"})
    model = fabric.setup(wrapped(net))
    assert list(model.state_dict()) == list(plain.state_dict())
    fabric.save(tmp_path / "set_up.ckpt", {"model": model})
    fabric.save(tmp_path / "bare.ckpt", {"model": net})
    torch.save({"model": net.state_dict()}, tmp_path / "old.ckpt")
    for name in ("set_up", "bare", "old"):
        path = tmp_path / f"{name}.ckpt"
        if name != "old":
            assert list(torch.load(path)["model"]) == list(plain.state_dict())
        for prepare in (fabric.setup, lambda module: module):
            other = prepare(Net(compiled_where))
            fabric.load(path, {"model": other})
            for one, same in zip(net.parameters(), other.parameters(), strict=True):
                assert torch.equal(one, same)
    model.load_state_dict(torch.load(tmp_path / "bare.ckpt")["model"])


def test_names_from_a_file_are_printed_written_out():
    net = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "\\x1b\[31mred\\nDone"') as caught:
        load_plain_state(net, {**net.state_dict(), "\x1b[31mred\nDone": torch.ones(1)})
    assert "\x1b" not in "".join(traceback.format_exception(caught.value))
