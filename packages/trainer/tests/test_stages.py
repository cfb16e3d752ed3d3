import pytest

from fulmen.trainer.stages import EntryPoint, RunningStage, Stage, Status, TrainerFn, TrainerStatus


def test_values_are_the_words_of_hooks_and_messages():
    assert [str(entry) for entry in EntryPoint] == ["fit", "validate", "test", "predict"]
    assert [str(stage) for stage in Stage] == ["train", "sanity_check", "validate", "test", "predict"]
    assert [str(status) for status in Status] == ["initializing", "running", "finished", "interrupted"]


def test_reference_names_are_the_same_members():
    assert (TrainerFn.FITTING, TrainerFn.PREDICTING) == (EntryPoint.FIT, EntryPoint.PREDICT)
    assert RunningStage.SANITY_CHECKING is Stage.SANITY_CHECK
    assert TrainerStatus is Status


@pytest.mark.parametrize(
    ("stage", "evaluating", "prefix"),
    [
        (Stage.TRAIN, False, "train"),
        (Stage.SANITY_CHECK, True, "val"),
        (Stage.VALIDATE, True, "val"),
        (Stage.TEST, True, "test"),
        (Stage.PREDICT, False, "predict"),
    ],
)
def test_what_follows_from_a_stage(stage, evaluating, prefix):
    assert (stage.evaluating, stage.dataloader_prefix) == (evaluating, prefix)


def test_a_run_is_stopped_when_finished_or_interrupted():
    assert [status.stopped for status in Status] == [False, False, True, True]
