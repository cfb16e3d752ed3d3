import pytest

from fulmen.trainer.optimization.arguments import (
    StepSignatureError,
    check_evaluation_step,
    check_takes_loader,
    check_training_step,
    loader_arguments,
    step_arguments,
    takes_iterator,
)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (lambda batch, batch_idx: None, ("b", 3)),
        (lambda x, i: None, ("b", 3)),
        (lambda *args: None, ("b", 3)),
        (lambda batch: None, ("b",)),
        (lambda batch, *, other=None: None, ("b",)),
        (lambda dataloader_iter: None, ("b",)),
    ],
)
def test_a_step_gets_as_many_arguments_as_it_takes(method, given):
    calls = []
    step_arguments(method, lambda *args: calls.append(args))("b", 3)
    assert calls == [given]


@pytest.mark.parametrize(
    ("method", "one", "two"),
    [
        (lambda batch, batch_idx, dataloader_idx=0: None, ("b", 3), ("b", 3, 1)),
        (lambda *args: None, ("b", 3), ("b", 3, 1)),
        (lambda batch, batch_idx: None, ("b", 3), ("b",)),
        (lambda batch: None, ("b",), ("b",)),
        (lambda dataloader_iter: None, ("b",), ("b",)),
    ],
)
def test_an_evaluation_step_hears_of_its_loader_where_there_are_several(method, one, two):
    calls = []
    loader_arguments(method, lambda *args: calls.append(args), several=False)("b", 3)
    loader_arguments(method, lambda *args: calls.append(args), several=True)("b", 3, 1)
    assert calls == [one, two]


def test_an_iterator_is_known_by_its_name():
    assert takes_iterator(lambda dataloader_iter: None)
    assert not takes_iterator(lambda batch: None)
    assert not takes_iterator(min)


@pytest.mark.parametrize("method", [lambda *args: None, lambda b: None, lambda b, i, more=0: None, min])
def test_what_can_be_called_is_accepted(method):
    check_training_step(method, module="Model")
    check_evaluation_step(method, module="Model", name="test_step", num_loaders=1)


@pytest.mark.parametrize("method", [lambda: None, lambda a, b, c: None, lambda batch, *, other: None])
def test_what_cannot_be_called_is_refused(method):
    with pytest.raises(StepSignatureError, match=r"Model\.training_step\(.*cannot be called as a step"):
        check_training_step(method, module="Model")
    with pytest.raises(StepSignatureError, match=r"Model\.test_step\("):
        check_evaluation_step(method, module="Model", name="test_step", num_loaders=1)


def test_hooks_hear_of_their_loader_too():
    check_takes_loader(lambda outputs, batch, batch_idx, dataloader_idx: None, "Hook", before=3)
    with pytest.raises(StepSignatureError, match=r"Hook\(outputs, batch, batch_idx\) takes no dataloader_idx"):
        check_takes_loader(lambda outputs, batch, batch_idx: None, "Hook", before=3)
