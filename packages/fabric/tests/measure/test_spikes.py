from __future__ import annotations

import json
import math
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import Fabric
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.measure.spikes import SpikeDetection, TrainingSpikeException


class Alone:
    """A run of one process."""

    global_rank = 0

    @property
    def strategy(self) -> Alone:
        return self

    @staticmethod
    def reduce_boolean_decision(decision: bool, all: bool) -> bool:
        assert not all
        return decision


def first_spike(losses: list[float], folder: Path | None = None, **arguments: Any) -> int | None:
    detection = SpikeDetection(exclude_batches_path=folder, **arguments)
    for batch_idx, loss in enumerate(losses):
        try:
            detection.on_train_batch_end(Alone(), torch.tensor(loss), None, batch_idx)
        except TrainingSpikeException as error:
            return error.batch_idx
    return None


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=30),
    st.sampled_from(["min", "max"]),
    st.integers(1, 5),
    st.integers(0, 4),
    st.none() | st.floats(0, 5),
    st.none() | st.floats(0, 3),
)
def test_the_first_loss_that_is_worse_and_far_by_both_limits_spikes(
    tmp_path_factory: Any,
    losses: list[float],
    mode: Any,
    window: int,
    warmup: int,
    atol: float | None,
    rtol: float | None,
) -> None:
    losses = torch.tensor(losses).tolist()  # as float32 holds them
    expected = None
    for index in range(max(warmup, 1), len(losses)):
        latest = losses[max(0, index - window) : index]
        mean = math.fsum(latest) / len(latest)
        is_worse = losses[index] > losses[index - 1] if mode == "min" else losses[index] < losses[index - 1]
        far_by = abs(losses[index] - mean)
        if is_worse and far_by >= (atol or 0) and far_by >= (rtol or 0) * mean:
            expected = index
            break
    folder = tmp_path_factory.mktemp("run")
    found = first_spike(losses, folder, mode=mode, window=window, warmup=warmup, atol=atol, rtol=rtol)
    assert found == expected
    written = folder / "skip_batches.json"
    assert (json.loads(written.read_text()) if written.exists() else None) == (
        None if expected is None else [expected - 1, expected]
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    losses = [1.0, bad, 1.0, 9.0]
    assert first_spike(losses, tmp_path) == 1
    assert first_spike(losses, tmp_path, warmup=2) == 3
    # They are passed over, and leave no trace in the mean.
    assert first_spike(losses, tmp_path, finite_only=False) == 3
    assert first_spike([bad], tmp_path, warmup=0) == 0
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [0]


def test_bad_batches_add_up_and_go_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "bad.json"
    detection = SpikeDetection(exclude_batches_path=path)
    fabric = Fabric(accelerator="cpu")
    for batch_idx, loss in enumerate([1.0, 9.0, 1.0, 9.0]):
        if loss > 1:
            with pytest.raises(TrainingSpikeException, match=f"batch {batch_idx}"):
                detection.on_train_batch_end(fabric, torch.tensor([loss]), None, batch_idx)
        else:
            detection.on_train_batch_end(fabric, torch.tensor(loss), None, batch_idx)
    assert json.loads(path.read_text()) == [0, 1, 2, 3]
    monkeypatch.chdir(tmp_path)
    assert first_spike([1.0, 9.0]) == 1
    assert (tmp_path / "skip_batches.json").exists()


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    before = SpikeDetection(window=3, rtol=0.5, exclude_batches_path=tmp_path)
    for batch_idx in range(5):
        before.on_train_batch_end(Alone(), torch.tensor(1.0 + batch_idx / 10), None, batch_idx)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after = SpikeDetection(window=9, mode="max", atol=5)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert after.state_dict() == before.state_dict()
    assert after.running_mean == before.running_mean == pytest.approx(1.3)
    assert SpikeDetection().running_mean is None
    with pytest.raises(TrainingSpikeException):
        after.on_train_batch_end(Alone(), torch.tensor(2.0), None, 5)


def test_it_can_be_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TrainingSpikeException(3)))
    assert (error.batch_idx, str(error)) == (3, "Training spike detected in batch 3")


def train(fabric: Fabric, folder: Path, endings: Any) -> None:
    detection = SpikeDetection(exclude_batches_path=folder / f"rank_{fabric.global_rank}.json")
    try:
        for batch_idx in range(4):
            spikes_here = fabric.global_rank == 1 and batch_idx == 2
            detection.on_train_batch_end(fabric, torch.tensor(9.0 if spikes_here else 1.0), None, batch_idx)
    except TrainingSpikeException as error:
        endings.put((fabric.global_rank, error.batch_idx))


def test_all_processes_end_when_one_of_them_spikes(tmp_path: Path) -> None:
    endings = multiprocessing.get_context("fork").Queue()
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(train, tmp_path, endings)
    assert sorted(endings.get(timeout=60) for _ in range(2)) == [(0, 2), (1, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["rank_0.json"]


@pytest.mark.parametrize("arguments", [{"mode": "median"}, {"window": 0}])
def test_bad_arguments_are_answered_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"SpikeDetection.{next(iter(arguments))}="):
        SpikeDetection(**arguments)
