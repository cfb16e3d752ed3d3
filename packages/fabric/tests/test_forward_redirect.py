import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.forward_redirect import call_through_forward


class Inner(nn.Module):
    def forward(self, *args, **kwargs):
        return ("forward", args, kwargs)

    def step(self, *args, **kwargs):
        return ("step", args, kwargs)

    def step_with_forward(self, x):
        return ("step", self(x), self.forward(x))

    def fails(self):
        raise RuntimeError("inside")


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.num_calls = 0

    def forward(self, *args, **kwargs):
        self.num_calls += 1
        return self.inner(*args, **kwargs)


class Deaf(Outer):
    def forward(self, *args, **kwargs):
        return None


values = st.one_of(st.integers(), st.text(), st.none())


@given(st.lists(values), st.dictionaries(st.sampled_from("abc"), values))
def test_a_redirected_call_is_the_call(args, kwargs):
    outer = Outer(Inner())
    assert call_through_forward(outer, outer.inner, outer.inner.step, *args, **kwargs) == ("step", tuple(args), kwargs)
    assert outer.num_calls == 1
    assert outer.inner(*args, **kwargs) == ("forward", tuple(args), kwargs)
    assert "forward" not in vars(outer.inner)


def test_within_the_method_forward_is_forward():
    outer = Outer(Inner())
    forward = ("forward", (1,), {})
    assert call_through_forward(outer, outer.inner, outer.inner.step_with_forward, 1) == ("step", forward, forward)
    assert outer.num_calls == 1


def test_the_hooks_of_wrapper_and_module_run():
    outer = Outer(Inner())
    heard = []
    outer.register_forward_hook(lambda module, *_: heard.append(module))
    outer.inner.register_forward_hook(lambda module, *_: heard.append(module))
    call_through_forward(outer, outer.inner, outer.inner.step)
    assert heard == [outer.inner, outer]


@pytest.mark.parametrize("wrapper", [Outer, Deaf])
def test_a_forward_on_the_instance_is_there_again(wrapper):
    outer = wrapper(Inner())
    mine = lambda *_: "mine"  # noqa: E731  # an object to recognise
    outer.inner.forward = mine
    call_through_forward(outer, outer.inner, outer.inner.step)
    assert outer.inner.forward is mine


def test_forward_is_there_again_after_an_error():
    outer = Outer(Inner())
    with pytest.raises(RuntimeError, match="inside"):
        call_through_forward(outer, outer.inner, outer.inner.fails)
    assert outer(2) == ("forward", (2,), {})


def test_a_module_may_be_its_own_wrapper():
    inner = Inner()
    assert call_through_forward(inner, inner, inner.step, 1) == ("step", (1,), {})
    assert torch.is_grad_enabled()
