import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.optimization.loss import (
    LossError,
    LossWatch,
    NonFiniteLossError,
    check_derivable,
    check_finite,
    check_no_late_layers,
    check_type,
)

LAYER = nn.Linear(2, 1)


def test_a_loss_is_a_tensor_of_one_element_that_depends_on_the_parameters():
    loss = LAYER(torch.ones(2))
    check_type(loss, "Model")
    check_derivable(loss, "Model", LAYER.parameters())
    with pytest.raises(ConfigurationError, match="gave a float as the loss"):
        check_type(3.0, "Model")
    with pytest.raises(LossError, match=r"a loss of shape \(3, 1\)"):
        check_derivable(LAYER(torch.ones(3, 2)), "Model", LAYER.parameters())
    with pytest.raises(LossError, match="not connected to the parameters"):
        check_derivable(loss.detach(), "Model", LAYER.parameters())
    with pytest.raises(LossError, match="every parameter of Model is frozen"):
        check_derivable(loss.detach(), "Model", [nn.Parameter(torch.ones(1), requires_grad=False)])


@given(st.floats())
def test_with_anomaly_detection_only_numbers_pass(value):
    loss = torch.tensor(value, dtype=torch.float64)
    if math.isfinite(value):
        check_finite(loss, "Model", epoch=1, batch=2, step=3)
    else:
        with pytest.raises(NonFiniteLossError, match=r"at step 3 \(epoch 1, batch 2\)"):
            check_finite(loss, "Model", epoch=1, batch=2, step=3)


def test_late_layers_are_those_that_get_gradients_and_have_no_optimizer():
    module = nn.Sequential(nn.Linear(2, 2))
    known = list(module.parameters())
    module.append(nn.Linear(2, 1))
    module.append(nn.Linear(1, 1))  # never used: no gradients, no harm
    module[:2](torch.ones(2)).backward()
    with pytest.raises(ConfigurationError, match=r"1\.weight, 1\.bias\. They get gradients"):
        check_no_late_layers(module, known, known)
    check_no_late_layers(module, known, module.parameters())
    check_no_late_layers(module, list(module.parameters()), known)  # left out on purpose


@given(
    st.lists(st.tuples(st.sampled_from([1.0, math.nan, math.inf]), st.booleans()), max_size=200),
    st.booleans(),
)
def test_the_first_look_at_what_is_no_number_warns_and_no_other(losses, reads):
    watch = LossWatch("Model", reads=reads)
    told, looked = [], None
    for step, (value, is_last) in enumerate(losses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.look({"loss": torch.tensor(value)}, step=step, epoch=0, batch=step, is_last=is_last)
        told += [step] if caught else []
        if not told or told == [step]:
            due = is_last or looked is None or step - looked >= (1 if reads else 50)
            assert bool(caught) == (due and not math.isfinite(value))
            looked = step if due and math.isfinite(value) else looked
    assert len(told) <= 1


@pytest.mark.parametrize("output", [None, {}, {"loss": 3.0}, {"loss": torch.full((2,), math.nan)}, "text"])
def test_what_holds_no_loss_is_passed_over(output):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LossWatch("Model", reads=True).look(output, step=0, epoch=0, batch=0, is_last=True)
