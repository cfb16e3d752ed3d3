import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.fsdp import FSDPPrecision

TRUE = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@pytest.mark.parametrize(("name", "dtype"), TRUE.items())
def test_true_precisions_hold_compute_and_reduce_in_one_type(name, dtype):
    precision = FSDPPrecision(name, device="cpu")
    config = precision.mixed_precision_config
    assert (config.param_dtype, config.reduce_dtype, config.buffer_dtype) == (dtype, dtype, dtype)
    assert precision.convert_module(nn.Linear(1, 1)).weight.dtype == dtype
    assert precision.convert_input(torch.ones(1)).dtype == dtype
    assert precision.convert_output(torch.ones(1, dtype=dtype)).dtype == torch.float32
    for context in (precision.tensor_init_context, precision.module_init_context, precision.forward_context):
        with context():
            assert torch.ones(1).dtype == dtype
    assert not precision.is_plain
    assert precision.converts_input
    assert precision.state_dict() == {}


@pytest.mark.parametrize(("name", "dtype"), MIXED.items())
def test_mixed_precisions_hold_32_bits_and_reduce_in_16(name, dtype):
    precision = FSDPPrecision(name, device="cpu")
    config = precision.mixed_precision_config
    assert (config.param_dtype, config.reduce_dtype, config.buffer_dtype) == (None, dtype, None)
    assert precision.convert_module(nn.Linear(1, 1)).weight.dtype == torch.float32
    with precision.forward_context():
        assert nn.Linear(1, 1)(torch.ones(1, 1)).dtype == dtype
    assert precision.has_forward_context
    assert precision.scales_loss == (name == "16-mixed")


def test_32_bits_change_nothing():
    precision = FSDPPrecision("32-true")
    config = precision.mixed_precision_config
    assert (config.param_dtype, config.reduce_dtype, config.buffer_dtype) == (None, None, None)
    assert precision.is_plain
    assert not precision.has_forward_context
    assert precision.scaler is None
    data = {"x": torch.ones(1, dtype=torch.float64)}
    assert precision.convert_input(data) is data


def test_the_scaler_is_that_of_float16():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    precision = FSDPPrecision("16-mixed", scaler, device="cpu")
    assert precision.scaler is scaler
    weight = nn.Parameter(torch.ones(2))
    precision.backward(weight.sum(), None)
    assert weight.grad.tolist() == [8.0, 8.0]
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert list(precision.main_params(optimizer)) == [weight]
    precision.unscale_gradients(optimizer)
    assert weight.grad.tolist() == [1.0, 1.0]
    precision.optimizer_step(optimizer)
    assert weight.tolist() == [0.0, 0.0]
    other = FSDPPrecision("16-mixed", torch.amp.GradScaler("cpu"), device="cpu")
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 8.0


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigurationError, match=r"FSDPPrecision\(precision='8-bit'\)"):
        FSDPPrecision("8-bit")
    with pytest.raises(ConfigurationError, match="scales a loss that needs no scaling"):
        FSDPPrecision("bf16-mixed", torch.amp.GradScaler("cpu"))


def test_the_device_is_that_of_this_machine_by_default(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with FSDPPrecision("bf16-mixed").forward_context():
        assert torch.is_autocast_enabled("cpu")
