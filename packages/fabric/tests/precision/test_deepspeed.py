import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("32-true", torch.float32),
        ("16-true", torch.float16),
        ("16-mixed", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.bfloat16),
    ],
)
def test_inputs_have_the_type_of_the_engine_and_outputs_that_of_the_user(name, dtype):
    precision = DeepSpeedPrecision(name)
    batch = {"x": torch.ones(2), "index": torch.ones(2, dtype=torch.int64)}
    converted = precision.convert_input(batch)
    assert (converted["x"].dtype, converted["index"].dtype) == (dtype, torch.int64)
    assert precision.convert_output(converted)["x"].dtype is torch.float32
    # What "true" makes at once, the engine makes of "mixed".
    made = dtype if name.endswith("true") else torch.float32
    assert precision.convert_module(nn.Linear(1, 1)).weight.dtype is made
    with precision.module_init_context():
        assert nn.Linear(1, 1).weight.dtype is made
    with precision.tensor_init_context():
        assert torch.ones(1).dtype is made
    assert (precision.precision, precision.scales_loss) == (name, False)


@pytest.mark.parametrize("name", ["64-true", "16", 16, None])
def test_others_are_refused(name):
    with pytest.raises(ConfigurationError, match="DeepSpeedPrecision"):
        DeepSpeedPrecision(name)


def test_backward_is_the_engines():
    class Engine(nn.Module):
        def backward(self, loss, **kwargs):
            self.heard = loss, kwargs

    engine, loss = Engine(), torch.ones(())
    DeepSpeedPrecision("32-true").backward(loss, engine, retain_graph=True)
    assert engine.heard == (loss, {"retain_graph": True})
