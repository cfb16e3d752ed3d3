from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.loggers import Logger
from fulmen.fabric.measure import throughput
from fulmen.fabric.measure.throughput import Throughput, ThroughputMonitor, measure_flops
from fulmen.fabric.rank_zero import rank_zero_only


@pytest.fixture
def _rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = 0


steps = st.tuples(st.integers(1, 100), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9), st.integers(0, 1000))


@given(st.lists(steps, min_size=1, max_size=12), st.integers(2, 5), st.integers(1, 4))
def test_rates_are_those_of_the_window_and_totals_those_of_all(
    moves: list[Any], window_size: int, world_size: int
) -> None:
    measured = Throughput(available_flops=500.0, world_size=world_size, window_size=window_size)
    totals = [(0.0, 0, 0, 0, 0)]
    for seconds, batches, samples, items, flops in moves:
        time, all_batches, all_samples, all_items, _ = totals[-1]
        all_batches += batches
        all_samples += batches + samples
        totals.append((time + seconds, all_batches, all_samples, all_items + batches + samples + items, flops))
        time, all_batches, all_samples, all_items, flops = totals[-1]
        measured.update(time=time, batches=all_batches, samples=all_samples, lengths=all_items, flops=flops)
    metrics = measured.compute()
    last = totals[-1]
    assert {name: metrics[name] for name in ("time", "batches", "samples", "lengths")} == dict(
        zip(("time", "batches", "samples", "lengths"), last, strict=False)
    )
    rates = {name for name in metrics if name.endswith("_per_sec")}
    if len(moves) < window_size:
        assert not rates
        return
    window = totals[-window_size:]
    seconds = window[-1][0] - window[0][0]
    for place, name in enumerate(("batches", "samples", "items"), start=1):
        assert metrics[f"device/{name}_per_sec"] == pytest.approx((last[place] - window[0][place]) / seconds)
    assert metrics["device/flops_per_sec"] == pytest.approx(sum(each[4] for each in window[1:]) / seconds)
    assert metrics["device/mfu"] == pytest.approx(metrics["device/flops_per_sec"] / 500)
    assert len(rates) == (8 if world_size > 1 else 4)
    for name in rates:
        if not name.startswith("device/"):
            assert metrics[name] == pytest.approx(metrics[f"device/{name}"] * world_size)


def test_what_is_not_counted_is_not_reported() -> None:
    measured = Throughput(window_size=2, separator="|")
    assert measured.compute() == {}
    measured.update(time=1.0, batches=1, samples=2)
    assert measured.compute() == {"time": 1.0, "batches": 1, "samples": 2}
    measured.update(time=1.5, batches=2, samples=4)
    assert measured.compute() == {
        "time": 1.5,
        "batches": 2,
        "samples": 4,
        "device|batches_per_sec": 2.0,
        "device|samples_per_sec": 4.0,
    }
    measured.reset()
    assert measured.compute() == {}
    measured.update(time=0.1, batches=1, samples=1, flops=3)


def test_a_clock_that_stands_gives_no_rates() -> None:
    measured = Throughput(window_size=2)
    for batches in (1, 2):
        measured.update(time=1.0, batches=batches, samples=batches)
    assert measured.compute() == {"time": 1.0, "batches": 2, "samples": 2}


@pytest.mark.parametrize(
    ("update", "quoted"),
    [
        ({"time": 0.5, "batches": 2, "samples": 4}, "time=0.5"),
        ({"time": 2.0, "batches": 0, "samples": 4}, "batches=0"),
        ({"time": 2.0, "batches": 2, "samples": 1}, "samples=1"),
        ({"time": 2.0, "batches": 2, "samples": 4, "lengths": 3}, "lengths=3"),
        ({"time": 2.0, "batches": 2, "samples": 4, "lengths": 8}, "lengths=8"),
        ({"time": 2.0, "batches": 2, "samples": 4, "flops": 8}, "flops=8"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(update: dict[str, Any], quoted: str) -> None:
    measured = Throughput()
    measured.update(time=1.0, batches=1, samples=2)
    with pytest.raises(ConfigurationError, match=quoted):
        measured.update(**update)
    assert measured.compute() == {"time": 1.0, "batches": 1, "samples": 2}


@pytest.mark.parametrize("arguments", [{"window_size": 1}, {"world_size": 0}])
def test_bad_sizes_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"Throughput.{next(iter(arguments))}="):
        Throughput(**arguments)


class Kept(Logger):
    name, version = "kept", 0

    def __init__(self) -> None:
        self.rows: list[tuple[Any, Any]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_a_monitor_knows_its_fabric_and_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(throughput, "get_available_flops", lambda *arguments: asked.append(arguments) or 1000)
    kept = Kept()
    monitor = ThroughputMonitor(Fabric(accelerator="cpu", precision="bf16-mixed", loggers=kept), window_size=2)
    assert asked == [(torch.device("cpu"), torch.bfloat16)]
    assert (monitor.available_flops, monitor.world_size) == (1000, 1)
    for batches in range(1, 4):
        monitor.update(time=batches / 10, batches=batches, samples=2 * batches, flops=50)
        monitor.compute_and_log(step=7 if batches == 2 else None)
    assert [step for step, _ in kept.rows] == [0, 7, 8]
    assert kept.rows[-1][1] == pytest.approx(
        {
            "time": 0.3,
            "batches": 3,
            "samples": 6,
            "device/batches_per_sec": 10.0,
            "device/samples_per_sec": 20.0,
            "device/flops_per_sec": 500.0,
            "device/mfu": 0.5,
        }
    )


@pytest.mark.parametrize(("sharing", "number"), [({"num_replicas": 2, "rank": 0}, 2), (None, 8)])
def test_processes_that_work_on_the_same_samples_stand_for_one_device(
    sharing: dict[str, int] | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "get_available_flops", lambda *_: 100)
    precision = SimpleNamespace(compute_dtype=torch.float32)
    strategy = SimpleNamespace(precision=precision, distributed_sampler_kwargs=sharing)
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=8, strategy=strategy)
    monitor = ThroughputMonitor(fabric, window_size=2)
    for batches in (1, 2):
        monitor.update(time=float(batches), batches=batches, samples=4 * batches, flops=40)
    found = monitor.compute()
    assert (found["samples_per_sec"], found["flops_per_sec"]) == (4 * number, 40 * number)
    assert found["device/mfu"] == 40 / (100 * 8 / number)


@pytest.mark.usefixtures("_rank_one")
def test_on_other_ranks_a_monitor_is_silent() -> None:
    kept = Kept()
    monitor = ThroughputMonitor(Fabric(accelerator="cpu", loggers=kept), window_size=2)
    monitor.update(time=-1.0, batches=3, samples=1)
    assert monitor.compute() == monitor.compute_and_log() == {}
    assert kept.rows == []
    assert monitor.step == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_forward_and_of_backward(device: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16, device=device), nn.Linear(16, 4, device=device))
    rows = torch.randn(5, 8, device=device)
    forward = 2 * 5 * (8 * 16 + 16 * 4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert measure_flops(model, lambda: model(rows)) == forward
    # Backward multiplies twice, but for the first layer, whose input needs no gradient.
    assert measure_flops(model, lambda: model(rows), lambda output: output.sum()) == 3 * forward - 2 * 5 * 8 * 16
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert device == "meta" or bool((gradient == 1).all())
