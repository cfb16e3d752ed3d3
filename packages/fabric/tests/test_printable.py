import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.printable import printable, printable_names


@given(st.text())
def test_what_comes_out_is_visible_and_comes_out_again_as_it_is(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@given(st.text().filter(str.isprintable))
def test_what_is_visible_stays(text):
    assert printable(text) == text


def test_torch_s_own_lines_stay_and_names_are_written_out():
    with pytest.raises(RuntimeError) as caught, printable_names(["a\x1b", "a\x1b\n", "b", 3]):
        raise RuntimeError('Error:\n\tUnexpected "a\x1b\n", "a\x1b", "b".')
    assert str(caught.value) == 'Error:\n\tUnexpected "a\\x1b\\n", "a\\x1b", "b".'
    assert caught.value.__suppress_context__


def test_errors_without_such_names_pass_as_they_are():
    error = RuntimeError('Error:\n\tUnexpected "b".')
    with pytest.raises(RuntimeError) as caught, printable_names(["a\x1b", "b"]):
        raise error
    assert caught.value is error
