import pytest

from fulmen.trainer.optimization.arguments import step_arguments


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (lambda batch, batch_idx: None, ("b", 3)),
        (lambda x, i: None, ("b", 3)),
        (lambda *args: None, ("b", 3)),
        (lambda batch: None, ("b",)),
        (lambda batch, *, other=None: None, ("b",)),
    ],
)
def test_a_step_gets_as_many_arguments_as_it_takes(method, given):
    calls = []
    step_arguments(method, lambda *args: calls.append(args))("b", 3)
    assert calls == [given]
