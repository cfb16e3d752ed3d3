from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.precision.base import DefaultDtype, Precision
from fulmen.fabric.precision.catalog import PRECISIONS
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.trees import leaves

_OVERRIDES = {
    "forward_context": lambda self: nullcontext(),
    "convert_input": lambda self, data: data,
    "convert_output": lambda self, data: data,
    "pre_backward": lambda self, tensor, module: None,
    "post_backward": lambda self, tensor, module: None,
    "backward": lambda self, tensor, model, *args, **kwargs: tensor.backward(*args, **kwargs),
    "optimizer_step": lambda self, optimizer, **kwargs: optimizer.step(**kwargs),
    "unscale_gradients": lambda self, optimizer: None,
}


@pytest.mark.parametrize("name", _OVERRIDES)
def test_a_precision_is_plain_until_anything_of_a_step_is_overridden(name):
    changed = type("Changed", (Precision,), {name: _OVERRIDES[name]})
    further = type("Further", (changed,), {})
    for precision in (changed(), further()):
        assert not precision.is_plain
        assert precision.has_forward_context == (name == "forward_context")
        assert precision.converts_input == (name == "convert_input")
    assert type("Same", (Precision,), {"convert_module": lambda self, module: module})().is_plain


def test_the_base_is_plain_32_bit():
    precision = Precision()
    assert precision.is_plain
    assert precision.precision == "32-true"
    assert precision.state_dict() == {}
    module = nn.Linear(2, 2)
    assert precision.convert_module(module) is module
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    assert list(precision.main_params(optimizer)) == list(module.parameters())
    precision.backward(module(torch.ones(1, 2)).sum(), module)
    before = module.bias.detach().clone()
    precision.optimizer_step(optimizer)
    assert torch.equal(module.bias, before - 1.0)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (DoublePrecision(), torch.float64),
        (HalfPrecision(), torch.float16),
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (MixedPrecision("bf16-mixed", "cpu"), torch.float32),
        (MixedPrecision("16-mixed", "cpu"), torch.float32),
    ],
    ids=lambda value: getattr(value, "precision", str(value)),
)
def test_what_is_held_and_computed_in_which_type(precision, dtype):
    assert not precision.is_plain
    assert precision.has_forward_context
    assert precision.converts_input
    module = precision.convert_module(nn.Linear(2, 2))
    assert module.weight.dtype == dtype
    with precision.module_init_context():
        assert nn.Linear(2, 2).weight.dtype == dtype
    with precision.tensor_init_context():
        assert torch.ones(1).dtype == dtype
    batch = precision.convert_input({"x": torch.ones(1, 2), "n": [torch.tensor(1)]})
    assert batch["x"].dtype == dtype
    assert batch["n"][0].dtype == torch.int64
    with precision.forward_context():
        output = module(batch["x"])
    computed = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision.precision, dtype)
    assert output.dtype == computed
    assert precision.convert_output(output).dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
leaf = (
    st.sampled_from([*FLOATS, *OTHERS]).map(lambda dtype: torch.ones(2, dtype=dtype))
    | st.integers()
    | st.text(max_size=2)
    | st.none()
)
batch = st.recursive(
    leaf, lambda item: st.lists(item, max_size=3) | st.dictionaries(st.text(max_size=2), item), max_leaves=5
)


@given(
    batch,
    st.sampled_from(
        [DoublePrecision(), HalfPrecision(), HalfPrecision("bf16-true"), MixedPrecision("16-mixed", "cpu")]
    ),
)
def test_only_what_floats_is_converted_and_nothing_is_changed_in_place(tree, precision):
    held = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
    before = [(leaf, getattr(leaf, "dtype", None)) for leaf in leaves(tree)]
    converted, back = precision.convert_input(tree), precision.convert_output(tree)
    for result, dtype in ((converted, held.get(precision.precision, torch.float32)), (back, torch.float32)):
        assert type(result) is type(tree)
        for new, (old, kind) in zip(leaves(result), before, strict=True):
            if kind in FLOATS:
                assert new.dtype == dtype
            else:
                assert new is old
    assert [(leaf, getattr(leaf, "dtype", None)) for leaf in leaves(tree)] == before


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_name_says_in_which_type_products_are_computed(name):
    full_name = PRECISIONS[name]
    kind = type("Named", (Precision,), {"precision": full_name})
    expected = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
    assert kind().compute_dtype == expected.get(full_name.partition("-")[0], torch.float8_e4m3fn)


def test_the_default_type_is_put_back_also_after_errors():
    context = DefaultDtype(torch.float64)

    def fail_inside():
        with context:
            assert torch.ones(1).dtype == torch.float64
            raise ValueError("x")

    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            fail_inside()
        assert torch.get_default_dtype() == torch.float32
