import time
from types import SimpleNamespace

import pytest

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.throughput import ThroughputMonitor
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.stages import Stage

RATES = {"batches_per_sec", "flops_per_sec", "items_per_sec", "samples_per_sec"}
TOTALS = {"batches", "lengths", "samples", "time"}


class Counted(BoringModel):
    flops_per_batch = 1000


def monitor(**kwargs):
    return ThroughputMonitor(batch_size_fn=len, length_fn=lambda batch: batch.numel(), window_size=2, **kwargs)


def test_every_stage_has_totals_and_rates(quick, rows):
    trainer = quick(
        callbacks=monitor(), logger=rows, limit_train_batches=4, limit_val_batches=3, limit_test_batches=3,
        limit_predict_batches=3, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Counted())
    trainer.test(Counted())
    trainer.predict(Counted())
    logged = {}
    for _, row in rows.rows:
        logged |= row
    for stage, batches in (("train", 4), ("validate", 3), ("test", 3), ("predict", 3)):
        of_stage = {name.removeprefix(f"{stage}/") for name in logged if name.startswith(f"{stage}/")}
        assert of_stage == TOTALS | {f"device/{name}" for name in RATES}, stage
        assert logged[f"{stage}/batches"] == batches
        assert logged[f"{stage}/samples"] == batches
        assert logged[f"{stage}/lengths"] == 32 * batches
        assert logged[f"{stage}/device/flops_per_sec"] == pytest.approx(
            1000 * logged[f"{stage}/device/batches_per_sec"]
        )


def test_time_of_validation_is_no_time_of_training(quick, rows):
    class Slow(Counted):
        def validation_step(self, batch, batch_idx):
            time.sleep(0.5)

    trainer = quick(
        callbacks=monitor(), logger=rows, limit_train_batches=2, limit_val_batches=1, val_check_interval=1,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Slow())
    assert max(row["train/time"] for _, row in rows.rows if "train/time" in row) < 0.5


def test_flops_may_be_a_method_or_be_missing(quick, rows):
    class Method(BoringModel):
        def flops_per_batch(self):
            return 10

    for module, has_flops in ((Method(), True), (BoringModel(), False)):
        rows.rows.clear()
        quick(callbacks=monitor(), logger=rows, limit_train_batches=3, log_every_n_steps=1).fit(module)
        assert any("train/device/flops_per_sec" in row for _, row in rows.rows) == has_flops


def test_processes_that_work_on_the_same_batches_stand_for_one_device():
    strategy = SimpleNamespace(data_share=(0, 2), world_size=8)  # each batch is of four processes
    callback = monitor(available_flops=100)
    callback.setup(SimpleNamespace(loggers=[1], strategy=strategy), Counted(), "fit")
    throughput = callback._measured[Stage.TRAIN].throughput
    assert (throughput.world_size, throughput.available_flops, callback.available_flops) == (2, 400, 100)


def test_bad_arguments_are_answered_at_once(quick):
    with pytest.raises(MisconfigurationException, match="window_size=1"):
        ThroughputMonitor(batch_size_fn=len, window_size=1)
    with pytest.raises(MisconfigurationException, match="no logger"):
        quick(callbacks=monitor()).fit(BoringModel())
