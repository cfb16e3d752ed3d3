import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.errors import ArgumentTypeError
from fulmen.trainer.run.argument_names import _OLD, check_given
from fulmen.trainer.trainer import Trainer

KNOWN = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


@given(st.dictionaries(st.sampled_from(KNOWN) | st.text(min_size=1, max_size=20), st.integers(), max_size=4))
def test_just_the_names_that_are_known_pass(named):
    unknown = [name for name in named if name not in KNOWN]
    if not unknown:
        check_given([], named, KNOWN)
        return
    with pytest.raises(ArgumentTypeError) as caught:
        check_given([], named, KNOWN)
    assert f"Trainer({unknown[0]}={named[unknown[0]]})" in str(caught.value)


@given(st.sampled_from(KNOWN), st.data())
def test_a_name_with_one_letter_less_is_recognised(name, data):
    place = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:place] + name[place + 1 :]
    if misspelt in KNOWN:
        return
    with pytest.raises(ArgumentTypeError, match=r"older version|The nearest one is"):
        check_given([], {misspelt: 3}, KNOWN)


def test_an_old_name_has_none_of_the_new_ones_and_says_what_to_use():
    assert not set(_OLD) & set(KNOWN)
    for name in _OLD:
        with pytest.raises(ArgumentTypeError, match=f"Trainer\\({name}=2\\) .*older version.*Use .*[^}}]\\.$"):
            check_given([], {name: 2}, KNOWN)


def test_what_a_program_of_old_passes():
    with pytest.raises(TypeError, match="Use accelerator='gpu', devices=2"):
        Trainer(gpus=2)
    with pytest.raises(TypeError, match="The nearest one is max_epochs: pass max_epochs=3"):
        Trainer(max_epoch=3)
    with pytest.raises(TypeError, match=r"Trainer\('gpu'\) was given a value without the name"):
        Trainer("gpu")
    with pytest.raises(TypeError, match=r"Trainer\(foo=1\) is no argument of Trainer.*help\(Trainer\)"):
        Trainer(foo=1)
    with pytest.raises(TypeError, match=r"Trainer\(foo='x+\.\.\.\) is"):
        Trainer(foo="x" * 1000)
