"""The forecast of a pipeline: what each process has, sends, and how long it waits."""

import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.forecast import make_forecast
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline


def build():
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 16))


def forecast(pipeline, devices, **kwargs):
    strategy = ModelParallelStrategy(pipeline=pipeline, **kwargs)
    return make_forecast(build(), strategy=strategy, devices=devices, batch=torch.zeros(16, 8), accumulate=2)


@pytest.mark.parametrize("data", [1, 4])
def test_the_first_process_has_its_stages_and_sends_what_goes_over_the_cut(data):
    found = forecast(Pipeline(["1"], 4), 2 * data, data_parallel_size=data)
    assert found.mesh["pipeline_parallel"] == 2
    number = 4 // data
    assert found.memory_bytes["parameters"] == found.memory_bytes["gradients"] == (8 * 8 + 8) * number
    # AdamW has two numbers for each, and counts the steps of two parameters.
    assert found.memory_bytes["optimizer state"] == 2 * (8 * 8 + 8) * number + 2 * 4
    parameters = sum(parameter.numel() for parameter in build().parameters())
    assert found.checkpoint_bytes == 3 * 4 * parameters + 10 * 4
    (sent,) = [one for one in found.traffic if one.axis == "pipeline_parallel"]
    # Two batches of four micro-batches, each of four samples of eight numbers.
    assert (sent.operation, sent.num_calls, sent.sent_bytes) == ("send activations", 8, 2 * 16 * 8 * 4)
    assert any("waits for 20% of a step" in one for one in found.warnings)
    assert str(found)


def test_several_stages_on_a_process_send_both_ways():
    found = forecast(Pipeline(["1", "2", "3"], 4, "Interleaved1F1B"), 2)
    sent = {one.operation: one.num_calls for one in found.traffic}
    assert sent == {"send activations": 16, "send gradients": 8}
    assert any("waits for 11% of a step" in one for one in found.warnings)


def test_a_module_that_cannot_be_cut_is_refused():
    with pytest.raises(ConfigurationError, match="names '7', which Sequential does not have"):
        forecast(Pipeline(["7"], 4), 2)
