import re
import time

import pytest

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.profilers.simple import SimpleProfiler


def test_it_adds_up_each_action():
    profiler = SimpleProfiler()
    for _ in range(3):
        with profiler.profile("outer"), profiler.profile("inner"):
            time.sleep(0.002)
    assert {name: len(times) for name, times in profiler.recorded_durations.items()} == {"inner": 3, "outer": 3}
    inner, outer = (sum(profiler.recorded_durations[name]) for name in ("inner", "outer"))
    assert 0.006 <= inner <= outer
    assert profiler.current_actions == {}


@pytest.mark.parametrize("extended", [True, False])
def test_the_longest_action_comes_first(extended):
    profiler = SimpleProfiler(extended=extended)
    profiler.recorded_durations = {"short": [0.1], "long": [1.0, 3.0]}
    lines = profiler.summary().splitlines()
    order = [line.split()[0] for line in lines if re.match(r"(short|long|Total) ", line)]
    assert order == (["Total", "long", "short"] if extended else ["long", "short"])
    assert any(re.fullmatch(r"long +2 +2 +4 +\S+" if extended else r"long +2 +4", line) for line in lines)


def test_mistakes_are_value_errors_that_quote_the_action():
    profiler = SimpleProfiler()
    profiler.start("a")
    with pytest.raises(ValueError, match=r"start\('a'\) was called while 'a' is being timed") as raised:
        profiler.start("a")
    assert isinstance(raised.value, MisconfigurationException)
    with pytest.raises(ValueError, match=r"stop\('b'\) was called, and 'b' is not being timed"):
        profiler.stop("b")


def test_an_action_of_the_caller_around_runs_goes_on():
    profiler = SimpleProfiler()
    with profiler.profile("mine"):
        profiler.setup("fit")
        profiler.start("left open")
        profiler.teardown("fit")
        with profiler.profile("left open"):
            profiler.teardown("fit")  # of a run that was never set up
    assert set(profiler.recorded_durations) == {"mine", "left open"}


def test_arguments_of_callbacks_do_not_make_the_table_wider_than_a_screen():
    profiler = SimpleProfiler()
    long = "[Callback]ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_epochs': 1}.on_train_epoch_end"
    with profiler.profile(long):
        pass
    assert "[Callback]ModelCheckpoint{'monitor': 'val_loss…}.on_train_epoch_end " in profiler.summary()
    assert list(profiler.recorded_durations) == [long]


def test_a_run_shows_where_its_time_goes_and_trains_the_same():
    def run(profiler):
        seed_everything(1)
        module = BoringModel()
        trainer = Trainer(
            max_epochs=2,
            limit_train_batches=3,
            limit_val_batches=2,
            limit_test_batches=2,
            limit_predict_batches=2,
            num_sanity_val_steps=0,
            accelerator="cpu",
            profiler=profiler,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
        trainer.test(verbose=False)
        trainer.predict(return_predictions=False)
        return module.layer.weight

    profiler = SimpleProfiler()
    assert run(profiler).equal(run(None))
    calls = {name: len(times) for name, times in profiler.recorded_durations.items()}
    # After the last item, the end is asked for.
    assert (
        calls.items()
        >= {
            "run_training_epoch": 2,
            "[_TrainingEpochLoop].train_dataloader_next": 2 * (3 + 1),
            "run_training_batch": 2 * 3,
            "[Strategy]SingleDeviceStrategy.training_step": 2 * 3,
            "[Strategy]SingleDeviceStrategy.backward": 2 * 3,
            "[LightningModule]BoringModel.optimizer_step": 2 * 3,
            "[LightningModule]BoringModel.optimizer_zero_grad": 2 * 3,
            "[_EvaluationLoop].val_next": 2 * (2 + 1),
            "[_EvaluationLoop].test_next": 2 + 1,
            "[_PredictionLoop].predict_next": 2 + 1,
        }.items()
    )
