import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.metrics.scalars import to_floats, to_scalar

FLOAT = st.floats(allow_nan=False, width=32)


@given(st.dictionaries(st.text(), st.one_of(FLOAT, FLOAT.map(torch.tensor), FLOAT.map(lambda x: torch.tensor([x])))))
def test_every_scalar_becomes_the_number_it_is(values):
    floats = to_floats(values)
    assert list(floats) == list(values)
    for name, value in values.items():
        assert type(floats[name]) is float
        assert floats[name] == float(value)


def test_what_is_no_scalar_stays():
    matrix = torch.zeros(2, 2)
    assert to_floats({"m": matrix, "text": "x", "n": 3}) == {"m": matrix, "text": "x", "n": 3}


def test_doubles_keep_their_digits():
    assert to_floats({"a": torch.tensor(0.1, dtype=torch.float64), "b": torch.tensor(0.5)}) == {"a": 0.1, "b": 0.5}


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("x", "self.log('a', 'x') was given a str"),
        (None, "was given a NoneType"),
        ([1.0], "was given a list"),
        ({"b": 1}, "a dict with the keys ['b']"),
        ({"b": {"c": 1}}, "a nested dict with the keys ['b']"),
        (torch.zeros(2), "a tensor of shape (2,)"),
        (torch.tensor(1j), "a complex value"),
        (1j, "was given a complex"),
    ],
)
def test_what_is_no_number_is_quoted(value, quoted):
    with pytest.raises(ConfigurationError) as raised:
        to_scalar("a", value)
    assert quoted in str(raised.value)
    assert str(raised.value).count(". ") >= 2


def test_an_integer_tensor_is_kept_as_float32_with_a_warning():
    with pytest.warns(UserWarning, match=r"tensor of torch\.int16"):
        assert to_scalar("a", torch.tensor(3, dtype=torch.int16)).dtype is torch.float32


def test_metric_objects_are_known_without_loading_torchmetrics():
    program = (
        "import sys, torch\n"
        "from fulmen.trainer.metrics.board import MetricsBoard\n"
        "from fulmen.trainer.metrics.log_call import STEP\n"
        "from fulmen.trainer.stages import Stage\n"
        "board = MetricsBoard()\n"
        "with board.inside(Stage.TRAIN):\n"
        "    board.begin_epoch(); board.hook, board.rule = 'training_step', STEP\n"
        "    board.begin_batch(torch.zeros(1), 0); board.log('a', 1.0, on_epoch=True)\n"
        "    board.publish_epoch(0, 0)\n"
        "print(sorted({'torchmetrics', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
