import pytest
import torch

from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.device_stats import DeviceStatsMonitor
from fulmen.trainer.demos import BoringModel

CPU = {"cpu_percent", "cpu_swap_percent", "cpu_vm_percent"}
psutil = pytest.importorskip("psutil")


def names(rows):
    return {name for _, row in rows.rows for name in row if name.startswith("DeviceStatsMonitor.")}


def test_it_logs_around_the_batches_that_are_logged(quick, rows):
    flags = {"max_steps": 4, "max_epochs": -1, "log_every_n_steps": 2, "limit_val_batches": 1}
    trainer = quick(callbacks=DeviceStatsMonitor(), logger=rows, **flags)
    trainer.fit(BoringModel())
    train = [row for _, row in rows.rows if "DeviceStatsMonitor.on_train_batch_end/cpu_percent" in row]
    assert len(train) == 2
    quick(callbacks=DeviceStatsMonitor(), logger=rows, log_every_n_steps=2).test(BoringModel())
    moments = {f"on_{word}_batch_{end}" for word in ("train", "test") for end in ("start", "end")}
    assert {f"DeviceStatsMonitor.{moment}/{name}" for moment in moments for name in CPU} <= names(rows)


def test_without_those_of_the_cpu_there_is_nothing_on_a_cpu(quick, rows):
    quick(callbacks=DeviceStatsMonitor(cpu_stats=False), logger=rows, max_steps=2, log_every_n_steps=1).fit(
        BoringModel()
    )
    assert not names(rows)


@pytest.mark.parametrize(("cpu_stats", "cpu"), [(None, set()), (False, set()), (True, CPU)])
def test_other_devices_say_what_they_have(cpu_stats, cpu, quick, rows, monkeypatch):
    trainer = quick(logger=rows, log_every_n_steps=1)
    monkeypatch.setattr(CPUAccelerator, "get_device_stats", lambda self, device: {"fan_rpm": 900.0})
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
    monitor = DeviceStatsMonitor(cpu_stats)
    monitor.setup(trainer, None, "fit")
    monitor.on_train_batch_start(trainer, None, None, 0)
    assert names(rows) == {f"DeviceStatsMonitor.on_train_batch_start/{name}" for name in {"fan_rpm", *cpu}}


def test_it_needs_a_logger(quick):
    with pytest.raises(MisconfigurationException, match="no logger"):
        quick(callbacks=DeviceStatsMonitor()).fit(BoringModel())
