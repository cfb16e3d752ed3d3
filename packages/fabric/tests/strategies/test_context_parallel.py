"""Attention over a sequence that processes share: the same as over all of it, and the same gradients."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from sharded_lab import Cases
from torch import nn
from torch.nn import functional

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.context_parallel import (
    attend_together,
    part_of_sequence,
    ring_attention,
    ulysses_attention,
)

case = Cases()
B, H, T, D = 2, 4, 8, 3  # batch, heads, tokens, features


def drawn(dtype=torch.float64, kv_heads=H):
    generator = torch.Generator().manual_seed(7)
    shapes = ((B, H, T, D), (B, kv_heads, T, D), (B, kv_heads, T, D), (B, H, T, D))
    query, key, value, grad = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return [one.requires_grad_() for one in (query, key, value)], grad


def here(tensor, n):
    return tensor.detach().chunk(n, 2)[dist.get_rank()].clone().requires_grad_()


def compare(n, attend, *, tolerance=1e-12, dtype=torch.float64, kv_heads=H, **options):
    inputs, grad = drawn(dtype, kv_heads)
    expected = functional.scaled_dot_product_attention(*inputs, enable_gqa=kv_heads != H, **options)
    expected.backward(grad)
    mine = [here(one, n) for one in inputs]
    found = attend(*mine, group=dist.group.WORLD, **options)
    found.backward(here(grad, n))
    assert found.dtype == dtype
    for name, one, other in (
        ("output", found, expected),
        *(zip(("query", "key", "value"), (one.grad for one in mine), (one.grad for one in inputs), strict=True)),
    ):
        apart = (one - other.chunk(n, 2)[dist.get_rank()]).abs().max().item()
        assert apart <= tolerance, f"{name} differs by {apart}"


@case(1, 2, 4)
def a_ring_attends_to_all(n, folder):
    for is_causal, scale in itertools.product((False, True), (None, 0.3)):
        compare(n, ring_attention, is_causal=is_causal, scale=scale)
        compare(n, ring_attention, is_causal=is_causal, scale=scale, kv_heads=2)


@case(2, 4)
def heads_that_go_round_attend_to_all(n, folder):
    for is_causal, scale in itertools.product((False, True), (None, 0.3)):
        compare(n, ulysses_attention, is_causal=is_causal, scale=scale)


@case(2)
def in_low_precision_too(n, folder):
    compare(n, ring_attention, is_causal=True, dtype=torch.bfloat16, tolerance=0.05)
    compare(n, ring_attention, is_causal=True, dtype=torch.float32, tolerance=1e-5)


@case(2)
def large_scores_do_not_overflow(n, folder):
    inputs, _ = drawn()
    inputs[0] = inputs[0].detach() * 1e4
    expected = functional.scaled_dot_product_attention(*inputs, is_causal=True)
    found = ring_attention(*(here(one, n) for one in inputs), group=dist.group.WORLD, is_causal=True)
    assert (found - expected.chunk(n, 2)[dist.get_rank()]).abs().max() < 1e-10


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x, **self.options)


@case(2)
def a_module_that_knows_nothing_of_it(n, folder):
    x = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
    expected = Attention(is_causal=True)(x).chunk(n, 2)[dist.get_rank()]
    for way in ("ring", "ulysses"):
        module = Attention(is_causal=True)
        attend_together(module, "attention", way, dist.group.WORLD)
        assert (module(here(x, n)) - expected).abs().max() < 1e-12
        assert (copy.deepcopy(module)(here(x, n)) - expected).abs().max() < 1e-12


@case(2)
def what_cannot_be_had_is_refused(n, folder):
    x = torch.randn(B, 3, T, D)
    for way, module, kind, says in (
        ("ulysses", Attention(), ConfigurationError, "has 3 heads for 2 processes"),
        ("ring", Attention(dropout_p=0.5), ConfigurationError, r"dropout_p=0\.5\) cannot be had in a ring"),
        ("ring", Attention(attn_mask=torch.ones(T, T)), ArgumentTypeError, "A mask would have to be of the whole"),
        ("ring", nn.Tanh(), ConfigurationError, "whose forward did not call"),
    ):
        attend_together(module, "part", way, dist.group.WORLD)
        with pytest.raises(kind, match=says):
            module(x)
    with pytest.raises(ConfigurationError, match=r"ulysses_attention\(query=.*four axes"):
        ulysses_attention(x[:, 0], x[:, 0], x[:, 0], group=dist.group.WORLD)
    with pytest.raises(ConfigurationError, match=r"keys of shape \(2, 3, 8, 3\) and values of shape \(2, 3, 8, 2\)"):
        ring_attention(x, x, x[..., :2], group=dist.group.WORLD)
    with pytest.raises(ConfigurationError, match="got 8 queries and 4 keys"):
        ring_attention(x, x[:, :, :4], x[:, :, :4], group=dist.group.WORLD)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return case.run(tmp_path_factory, 1, 2, 4)


@pytest.mark.timeout(600)  # the first one waits for all processes
@pytest.mark.parametrize(("name", "size"), case.places)
def test_in_processes(outcomes, name, size):
    assert not outcomes[name, size], outcomes[name, size]


# --- without processes


def test_parts_of_a_sequence_make_the_whole():
    batch = {"tokens": torch.arange(24).reshape(2, 12), "weight": torch.ones(2), "name": "x"}
    parts = [part_of_sequence(batch, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([part["tokens"] for part in parts], 1), batch["tokens"])
    assert all(torch.equal(part["weight"], batch["weight"]) and part["name"] == "x" for part in parts)
    assert part_of_sequence(batch, 0, 1) is batch
    with pytest.raises(ConfigurationError, match=r"shape \(2, 12\) for 5 processes.*multiple of 5"):
        part_of_sequence(batch, 0, 5)


def test_an_attention_out_of_reach_is_refused():
    with pytest.raises(ConfigurationError, match=r"'block', which holds a torch\.nn\.MultiheadAttention"):
        attend_together(nn.TransformerEncoderLayer(4, 1), "block", "ring", None)
