import io

import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.metrics.log_call import STEP, decide
from fulmen.trainer.metrics.results import Entry, Phase, Results
from fulmen.trainer.stages import Stage

ARGUMENTS = {
    "prog_bar": False,
    "logger": None,
    "on_step": True,
    "on_epoch": True,
    "reduce_fx": "mean",
    "enable_graph": False,
    "sync_dist": False,
    "add_dataloader_idx": True,
    "rank_zero_only": False,
}


def entry_of(name, loader=None):
    return Entry(decide(STEP, "training_step", name, **ARGUMENTS, dataloader_idx=loader), None)


def test_a_state_can_be_loaded_with_weights_only():
    results = Results(Stage.TRAIN)
    results.phase = Phase.BATCHES
    for index, name in enumerate("ab"):
        entry = entry_of(name)
        entry.take(torch.tensor(float(index)), 2)
        entry.take(1.0, 2)
        results.add(entry)
    file = io.BytesIO()
    torch.save(results.state_dict(None), file)
    file.seek(0)
    resumed = Results(Stage.TRAIN)
    resumed.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"), None)
    assert {k: float(v) for k, v in resumed.epoch_values().items()} == {"a_epoch": 0.5, "b_epoch": 1.0}


def test_an_epoch_has_a_state_from_its_first_batch_on():
    results = Results(Stage.TRAIN)
    entry = entry_of("a")
    entry.take(1.0, 1)
    results.add(entry)
    for phase in Phase:
        results.phase = phase
        assert bool(results.state_dict(None)["entries"]) == (phase in (Phase.BATCHES, Phase.EPOCH_END))


def test_each_loader_has_its_values():
    results = Results(Stage.VALIDATE, 2)
    for loader in (0, 1, None):
        entry = entry_of("a" if loader is not None else "whole", loader)
        entry.take(float(loader or 0), 1)
        results.add(entry)
    assert results.epoch_values(1) == {"a_epoch/dataloader_idx_1": 1.0, "whole_epoch": 0.0}
    assert len(results.epoch_values()) == 3


def test_a_step_is_handed_out_once():
    entry = entry_of("a")
    entry.take(torch.tensor(1.0), 1)
    first = entry.take_pending()
    assert entry.take_pending() is None
    entry.take(torch.tensor(2.0), 1)
    assert (first, entry.take_pending()) == (1, 2)


class Total:
    """A metric object, whose value is summed up."""

    def __init__(self, metric):
        self.__dict__["metric"] = metric

    def __getattr__(self, name):
        return getattr(self.metric, name)

    def __setattr__(self, name, value):
        setattr(self.metric, name, value)

    def compute(self):
        return torch.as_tensor(self.metric.compute()).sum()  # an empty list, where there is nothing to join


@pytest.mark.parametrize("kind", [torchmetrics.SumMetric, torchmetrics.CatMetric])
def test_a_metric_object_that_loaders_share_has_for_each_the_value_at_its_end(kind):
    results, metric = Results(Stage.VALIDATE, 3), kind()
    for loader, values in enumerate(([1.0, 2.0], [4.0], [8.0])):
        for value in values:
            place = results.enter_loader(loader)
            metric.update(value)
            if loader != 1 and not place:  # the second only updates it
                entry = entry_of("a", loader)
                entry.metric = Total(metric)
                results.add(entry)
    for entry in results.entries:
        entry.compute_metric()
    assert [float(entry.final) for entry in results.entries] == [3.0, 15.0]
    assert float(metric.compute().sum()) == 15.0
    results.clear()
    assert not metric.update_called


@pytest.mark.parametrize("kind", [torchmetrics.SumMetric, torchmetrics.CatMetric])
@given(seen=st.sets(st.integers(0, 4)), told=st.permutations(range(5)))
def test_a_process_that_saw_no_batch_of_a_loader_has_what_came_before_it(kind, seen, told):
    results, metric = Results(Stage.VALIDATE, 5), Total(kind())
    for loader in sorted(seen):
        results.enter_loader(loader)
        metric.update(2.0**loader)
        entry = entry_of("a", loader)
        entry.metric = metric
        results.add(entry)
    for loader in [one for one in told if one not in seen]:  # in whatever order others tell of them
        entry = entry_of("a", loader)
        results.learn_metric(entry, metric)
        results.add(entry)
    for entry in results.entries:
        entry.compute_metric()
    found = {entry.call.dataloader_idx: float(entry.final) for entry in results.entries}
    assert found == {loader: sum(2.0**one for one in seen if one <= loader) for loader in range(5)}


def test_a_metric_object_of_the_only_loader_is_not_copied():
    results, metric = Results(Stage.VALIDATE, 1), torchmetrics.SumMetric()
    entry = entry_of("a")
    entry.metric = metric
    results.add(entry)
    results.enter_loader(0)
    assert entry.kept is None
