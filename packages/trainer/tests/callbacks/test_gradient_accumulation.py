import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.gradient_accumulation import GradientAccumulationScheduler
from fulmen.trainer.demos import BoringModel, ManualOptimBoringModel


@given(st.dictionaries(st.integers(0, 20), st.integers(1, 9), min_size=1), st.integers(0, 25))
def test_the_latest_epoch_named_decides(scheduling, epoch):
    named = [begin for begin in scheduling if begin <= epoch]
    expected = scheduling[max(named)] if named else 1
    scheduler = GradientAccumulationScheduler(scheduling)
    assert scheduler.get_accumulate_grad_batches(epoch) == expected
    assert scheduler.going_to_accumulate_grad_batches() == any(batches > 1 for batches in scheduling.values())


def test_steps_are_made_by_schedule_and_the_trainer_is_as_before(quick):
    trainer = quick(callbacks=GradientAccumulationScheduler({1: 4, 2: 3}), max_epochs=3, limit_train_batches=8)
    trainer.fit(BoringModel())
    assert trainer.global_step == 8 + 2 + 3  # the last window of the third epoch is short
    assert trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize("scheduling", [{}, None, [1], {"a": 1}, {-1: 2}, {0: 0}, {0: 1.5}, {0: True}])
def test_no_schedule(scheduling):
    with pytest.raises(MisconfigurationException, match="scheduling="):
        GradientAccumulationScheduler(scheduling)


def test_two_that_decide(quick):
    trainer = quick(callbacks=GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=3)
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=3"):
        trainer.fit(BoringModel())
    assert trainer.accumulate_grad_batches == 3


def test_not_by_hand(quick):
    with pytest.raises(MisconfigurationException, match="optimizes by hand"):
        quick(callbacks=GradientAccumulationScheduler({0: 2})).fit(ManualOptimBoringModel())
