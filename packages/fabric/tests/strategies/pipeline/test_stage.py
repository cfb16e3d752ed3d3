"""Gradients that cannot be left for later. Stages in processes are tested with their steps."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.strategies.pipeline.stage import _Ends


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.booleans())
def test_gradients_from_the_ends_are_those_of_a_backward(order, is_loss):
    weights = [torch.rand(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    for place in order:
        x = torch.tanh(x @ weights[place])
    outputs = (x.sum(),) if is_loss else (x, torch.ones(2))
    given_back = None if is_loss else (torch.rand(2, 3, dtype=torch.float64), None)
    used = [weights[place] for place in sorted(set(order))]
    expected = torch.autograd.grad(outputs[0], used, None if is_loss else given_back[0], retain_graph=True)
    ends = _Ends(outputs, given_back)
    nodes = [torch.autograd.graph.get_gradient_edge(one).node for one in used]
    for times in (1, 2):  # as of two micro-batches
        ends.add_gradients(nodes, weights)
        torch.testing.assert_close([one.grad for one in used], [times * one for one in expected])
