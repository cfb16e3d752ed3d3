import inspect

import pytest

from fulmen.trainer.callbacks.lambda_callback import LambdaCallback
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.signature import is_overridden

HOOKS = list(inspect.signature(LambdaCallback).parameters)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_can_be_a_function_and_the_others_stay_free(hook):
    heard = []
    callback = LambdaCallback(**{hook: lambda *args: heard.append(args)})
    getattr(callback, hook)(1, 2)
    assert heard == [(1, 2)]
    assert [name for name in HOOKS if is_overridden(name, callback, Callback)] == [hook]


def test_an_unknown_hook_is_a_type_error():
    with pytest.raises(TypeError, match="foo"):
        LambdaCallback(foo=print)
