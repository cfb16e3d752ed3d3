"""The checks as a whole are in test_bad_input.py; here is the law of the one that guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.checks import check_hook_name
from fulmen.fabric.errors import ConfigurationError

NAMES = st.text("abc_", min_size=1, max_size=6).map("on_".__add__)


def having(name):
    return type("Callback", (), {name: lambda self: None})()


def one_letter_off(name):
    """Every name that one typing error makes of it."""
    places = range(len(name))
    made = {name[:i] + name[i + 1 :] for i in places}
    made |= {name[:i] + letter + name[i:] for i in [*places, len(name)] for letter in "abc_on"}
    made |= {name[:i] + letter + name[i + 1 :] for i in places for letter in "abc_on"}
    made |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in places[:-1]}
    return made - {name}


@given(NAMES, NAMES)
def test_a_name_is_refused_exactly_if_one_typing_error_makes_it_of_a_method(method, called):
    if called in one_letter_off(method):
        with pytest.raises(ConfigurationError, match=method):
            check_hook_name(called, [having(method)])
    else:
        check_hook_name(called, [having(method)])


@given(NAMES, st.data())
def test_every_typing_error_is_seen(method, data):
    called = data.draw(st.sampled_from(sorted(one_letter_off(method))))
    with pytest.raises(ConfigurationError, match=method):
        check_hook_name(called, [having(method)])


def test_hooks_that_are_numbered_are_different_hooks():
    check_hook_name("on_stage_1_end", [having("on_stage_2_end")])
    check_hook_name("on_stage", [having("on_stage2")])
