"""The sums of N processes, dealt to M, are those of one."""

import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.metrics.accumulator import ACCUMULATORS, wide_tensor
from fulmen.trainer.metrics.merging import share_of, without_metrics
from fulmen.trainer.metrics.results import _restore_metric

CPU = torch.device("cpu")


def gathered(reduction, values):
    """Numbers and tensors in turn."""
    accumulator = ACCUMULATORS[reduction]()
    for place, value in enumerate(values):
        if place % 2:
            accumulator.prepare(torch.tensor(float(value)))
            accumulator.add(wide_tensor(float(value), CPU), 1)
        else:
            accumulator.add_number(float(value), 1)
    return accumulator


def state_of(reduction, values):
    call = {"name": "x", "reduction": reduction}
    return {"shown": {}, "entries": [{"call": call, "accumulator": gathered(reduction, values).state_dict()}]}


shares = st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=4), min_size=1, max_size=5)


@given(st.sampled_from(sorted(ACCUMULATORS)), shares, st.integers(1, 5))
def test_all_shares_together_are_the_whole(reduction, values, world_size):
    states = [state_of(reduction, share) for share in values]
    mine = [share_of(states, rank, world_size) for rank in range(world_size)]
    again = share_of([state for state in mine if state["entries"]] + [{"entries": []}], 0, 1)
    if len(states) == world_size:
        assert all(share is state for share, state in zip(mine, states, strict=True))
    [entry] = again["entries"]
    joined = ACCUMULATORS[reduction]()
    joined.load_state_dict(entry["accumulator"], CPU)
    expected = gathered(reduction, [value for share in values for value in share])
    assert float(joined.compute()) == pytest.approx(float(expected.compute()))


def test_who_was_not_there_begins_with_nothing_and_shows_the_same():
    states = [{**state_of("sum", [1]), "shown": {"callback": {"x": 1}}}]
    assert share_of(states, 1, 2) == {"entries": [], "shown": {"callback": {"x": 1}}}


def saved_metric(metric):
    state = {name: list(one) if isinstance(one, list) else one.clone() for name, one in metric.metric_state.items()}
    return {"call": {"name": "x"}, "metric": {"path": "metric", "state": state, "updates": metric._update_count}}


def restored(entry, metric):
    _restore_metric(metric, entry["metric"])
    return metric


class ExactMean(torchmetrics.Metric):
    """A sum and a count."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("mean_of_processes", torch.zeros(()), dist_reduce_fx="mean")
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, value):
        self.total += value
        self.mean_of_processes += value
        self.seen.append(value.reshape(1))

    def compute(self):
        seen = torch.cat(self.seen) if isinstance(self.seen, list) else self.seen
        return torch.stack([self.total, self.mean_of_processes, *seen.sort().values])


KINDS = [torchmetrics.SumMetric, torchmetrics.MaxMetric, torchmetrics.MinMetric, torchmetrics.MeanMetric, ExactMean]


@given(st.sampled_from(KINDS), shares.filter(lambda lists: len(lists) > 1))
def test_a_metric_object_goes_on_with_what_all_had_that_are_now_one(kind, values):
    processes = [kind() for _ in values]
    for process, numbers in zip(processes, values, strict=True):
        for number in numbers:
            process.update(torch.tensor(float(number)))
    state = share_of([{"entries": [saved_metric(process)]} for process in processes], 0, 1)
    [entry] = state["entries"]
    metric = restored(entry, kind())
    if kind is ExactMean:
        totals = [float(sum(numbers)) for numbers in values]
        everything = sorted(number for numbers in values for number in numbers)
        expected = torch.tensor([sum(totals), sum(totals) / len(totals), *everything])
    else:
        whole = kind()
        whole.update(torch.tensor([float(number) for numbers in values for number in numbers]))
        expected = whole.compute()
    torch.testing.assert_close(metric.compute(), expected)
    metric.update(torch.tensor(1.0))  # it goes on


def test_a_metric_object_that_cannot_join_says_so():
    class Own(ExactMean):
        def __init__(self):
            super().__init__()
            self.add_state("last", torch.zeros(()))

    one, other = Own(), Own()
    one.update(torch.tensor(1.0))
    other.update(torch.tensor(2.0))
    [entry] = share_of([{"entries": [saved_metric(one)]}, {"entries": [saved_metric(other)]}], 0, 1)["entries"]
    with pytest.warns(UserWarning, match=r"Own \('metric'\) goes on in this epoch with what one of 2 processes had"):
        metric = restored(entry, Own())
    assert metric.compute().tolist() == [1.0, 1.0, 1.0]


def test_metric_objects_may_begin_anew_beside_sums_that_go_on():
    saved = {"call": {}, "metric": {"path": "seen", "state": {"value": torch.ones(())}, "updates": 3}}
    state = {"entries": [saved, *state_of("sum", [1])["entries"]]}
    metric, plain = without_metrics(state)["entries"]
    assert metric["metric"]["state"] is None
    assert plain is state["entries"][1]
    assert saved["metric"]["state"] is not None
