import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.summary.table import PARAMETER_NUM_UNITS, get_formatted_model_size, get_human_readable_count


@given(st.integers(0, 10**18))
def test_a_count_is_right_to_its_last_digit(number):
    text = get_human_readable_count(number)
    value = float(text[:-2].replace(",", "")) * 1000 ** PARAMETER_NUM_UNITS.index(text[-1])
    step = 1000 ** PARAMETER_NUM_UNITS.index(text[-1]) / (10 if "." in text else 1)
    assert abs(value - number) <= step


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0  "), (123, "123  "), (1234, "1.2 K"), (2 * 10**6, "2.0 M"), (3 * 10**9, "3.0 B"), (4 * 10**14, "400 T")],
)
def test_counts(number, text):
    assert get_human_readable_count(number) == text


def test_sizes_have_thousands_and_kilobytes():
    assert get_formatted_model_size(1234.5678) == "1,234.568"
