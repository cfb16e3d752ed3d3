import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.environments.variables import environment_variables

VALUES = st.dictionaries(st.sampled_from(["FULMEN_A", "FULMEN_B", "FULMEN_C"]), st.text("xyz", max_size=3))


@given(VALUES, VALUES, st.booleans())
def test_they_are_set_inside_and_as_before_afterwards_also_after_errors(before, values, fails):
    with environment_variables(before):
        at_first = dict(os.environ)
        try:
            with environment_variables(values):
                assert os.environ.items() >= values.items()
                os.environ.update(dict.fromkeys(values, "changed inside"))
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert dict(os.environ) == at_first
    assert not [name for name in os.environ if name.startswith("FULMEN_A")]


def test_a_value_that_is_no_text_is_refused_and_changes_nothing():
    at_first = dict(os.environ)
    with pytest.raises(TypeError), environment_variables({"FULMEN_A": "1", "FULMEN_B": 1}):
        pass
    assert dict(os.environ) == at_first
