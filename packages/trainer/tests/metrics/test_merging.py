"""The sums of N processes, dealt to M, are those of one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.metrics.accumulator import ACCUMULATORS, wide_tensor
from fulmen.trainer.metrics.merging import share_of, without_metrics

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


def test_metric_objects_may_begin_anew_beside_sums_that_go_on():
    saved = {"call": {}, "metric": {"path": "seen", "state": {"value": torch.ones(())}, "updates": 3}}
    state = {"entries": [saved, *state_of("sum", [1])["entries"]]}
    metric, plain = without_metrics(state)["entries"]
    assert metric["metric"]["state"] is None
    assert plain is state["entries"][1]
    assert saved["metric"]["state"] is not None
