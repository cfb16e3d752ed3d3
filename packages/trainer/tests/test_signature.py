import functools
from unittest.mock import Mock

import pytest

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.signature import accepts, extension_point, is_overridden, is_param_in_hook_signature


@extension_point
class Base:
    def hook(self):
        pass

    def other(self):
        pass


class Plain(Base):
    pass


class Child(Base):
    def hook(self):
        pass


class Grandchild(Child):
    pass


def decorate(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_overridden_means_another_function_than_the_parents():
    assert not is_overridden("hook", Plain())
    assert is_overridden("hook", Child())
    assert is_overridden("hook", Grandchild())
    assert not is_overridden("hook", Grandchild(), parent=Child)
    assert not is_overridden("other", Child())
    assert not is_overridden("hook", None)


def test_what_is_set_on_the_object_counts():
    plain = Plain()
    plain.hook = lambda: None
    assert is_overridden("hook", plain)
    plain.hook = Mock()
    assert is_overridden("hook", plain)


def test_wrapping_the_parents_method_does_not_override_it():
    plain = Plain()
    plain.hook = functools.partial(decorate(plain.hook))
    assert not is_overridden("hook", plain)


def test_misspelt_hooks_and_foreign_objects_are_errors():
    with pytest.raises(MisconfigurationException, match="'hoook'"):
        is_overridden("hoook", Plain())
    with pytest.raises(MisconfigurationException, match="object"):
        is_overridden("hook", object())


@pytest.mark.parametrize(
    ("function", "explicit", "min_args", "expected"),
    [
        (lambda batch: 0, False, None, False),
        (lambda batch, batch_idx: 0, False, None, True),
        (lambda *args: 0, False, None, True),
        (lambda *args: 0, True, None, False),
        (lambda batch, i: 0, False, 2, True),
        (lambda batch, i: 0, False, 3, False),
        (lambda batch, *, batch_idx: 0, True, None, True),
        (decorate(lambda batch, batch_idx: 0), True, None, True),
    ],
)
def test_param_in_signature(function, explicit, min_args, expected):
    assert is_param_in_hook_signature(function, "batch_idx", explicit=explicit, min_args=min_args) is expected


def test_self_is_no_argument():
    class Module:
        def training_step(self, batch):
            pass

    assert not is_param_in_hook_signature(Module().training_step, "batch_idx", min_args=2)


def test_accepts_a_keyword():
    assert accepts(lambda lr: 0, "lr")
    assert accepts(lambda **kwargs: 0, "lr")
    assert not accepts(lambda x, /: 0, "x")
    assert not accepts(lambda *lr: 0, "lr")
