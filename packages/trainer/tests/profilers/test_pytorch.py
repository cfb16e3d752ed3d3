"""Traces are opened again, and read."""

import json
import pickle
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.profiler import schedule
from torch.utils.data import DataLoader

from fulmen.fabric.errors import ConfigurationError, HardwareError, MisconfigurationException
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.profilers import PyTorchProfiler

STEP = "[Strategy]SingleDeviceStrategy.training_step"


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Tanh())

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        if index == 7:
            raise ZeroDivisionError
        return self(batch).sum()

    def validation_step(self, batch, _):
        self.layers(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(count):
    return DataLoader(torch.ones(count, 2), batch_size=1)


def traces(folder):
    return sorted(folder.glob("*.pt.trace.json"), key=lambda path: path.name.split(".")[-4])


def names(path):
    found = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    return {name: found.count(name) for name in found}


def test_the_trace_and_the_table_of_a_fit(quick, tmp_path):
    quick(profiler=PyTorchProfiler(dirpath=tmp_path, filename="p")).fit(Small(), batches(6))
    (trace,) = traces(tmp_path)
    assert trace.name.startswith("fit-p-")
    assert STEP in trace.name
    seen = names(trace)
    assert seen[STEP] == 3  # one waited, one warmed up, three of the six are recorded
    assert seen["[Module]Small"] == 3
    assert seen["[Module]layers.0: Linear"] == 3
    (report,) = tmp_path.glob("fit-p*.txt")
    assert "CPU total" in report.read_text()
    assert "aten::addmm" in report.read_text()


def test_backward_belongs_to_its_step(quick, tmp_path):
    windows = schedule(wait=0, warmup=1, active=1, repeat=1)
    quick(profiler=PyTorchProfiler(dirpath=tmp_path, schedule=windows)).fit(Small(), batches(4))
    (trace,) = traces(tmp_path)
    seen = names(trace)
    assert seen[STEP] == 1
    assert seen["autograd::engine::evaluate_function: TanhBackward0"] == 1


def test_every_window_has_its_trace(quick, tmp_path):
    windows = schedule(wait=1, warmup=1, active=1, repeat=2)
    quick(profiler=PyTorchProfiler(dirpath=tmp_path, schedule=windows)).fit(Small(), batches(7))
    assert [names(trace)[STEP] for trace in traces(tmp_path)] == [1, 1]


def test_a_short_fit_ends_with_its_validation(quick, tmp_path):
    quick(profiler=PyTorchProfiler(dirpath=tmp_path)).fit(Small(), batches(2), batches(2))
    (trace,) = traces(tmp_path)
    assert "[Strategy]SingleDeviceStrategy.validation_step." in trace.name


def test_no_schedule_records_all(quick, tmp_path):
    quick(profiler=PyTorchProfiler(dirpath=tmp_path, schedule=None)).fit(Small(), batches(2))
    (trace,) = traces(tmp_path)
    assert names(trace)[STEP] == 2


def test_a_run_that_fails_keeps_its_trace_and_the_next_one_records(quick, tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, schedule=None)
    with pytest.raises(ZeroDivisionError):
        quick(profiler=profiler).fit(Small(), batches(9))
    quick(profiler=profiler).fit(Small(), batches(1))
    assert [names(trace)[STEP] for trace in traces(tmp_path)] == [8, 1]


def test_too_few_steps_are_told(quick, tmp_path):
    with pytest.warns(UserWarning, match="has recorded nothing in 1 steps.*schedule=None"):
        quick(profiler=PyTorchProfiler(dirpath=tmp_path, filename="p")).fit(Small(), batches(1))
    assert list(tmp_path.glob("fit-p*")) == []


def standalone(**kwargs):
    return PyTorchProfiler(**{"schedule": None, "export_to_chrome": False, **kwargs})


def test_memory_shapes_and_how_the_table_is_cut():
    profiler = standalone(
        group_by_input_shapes=True,
        profile_memory=True,
        sort_by_key="self_cpu_memory_usage",
        row_limit=3,
        table_kwargs={"header": "of mine"},
    )
    with profiler.profile("work"):
        torch.ones(8, 4) @ torch.ones(4, 2)
    table = profiler.summary()
    assert "of mine" in table
    assert "[[8, 4], [4, 2]" in table
    assert "Self CPU Mem" in table
    rows = [line for line in table.splitlines() if line.lstrip().startswith(("aten::", "work", "[memory]"))]
    assert len(rows) == 3


@pytest.mark.parametrize(("on", "expected"), [(True, {"[Module]Sequential", "[Module]0: Linear"}), (False, set())])
def test_names_of_modules(on, expected):
    profiler = standalone(record_module_names=on)
    model = nn.Sequential(nn.Linear(2, 1))
    with profiler.profile("work"):
        model(torch.ones(1, 2))
        with pytest.raises(RuntimeError):
            model(torch.ones(1, 7))
        model(torch.ones(1, 2))
    profiler.summary()
    ranges = [event.name for event in profiler.function_events if event.name.startswith("[Module]")]
    assert set(ranges) == expected
    assert not nn.modules.module._has_any_global_hook()


def test_a_trace_needs_a_folder():
    profiler = standalone(export_to_chrome=True)
    with profiler.profile("work"):
        torch.ones(1)
    with pytest.warns(UserWarning, match="wrote no trace.*Pass dirpath"):
        profiler.describe()


def test_what_is_done_with_a_trace_can_be_chosen(tmp_path):
    got = []
    profiler = standalone(dirpath=tmp_path, export_to_chrome=True, on_trace_ready=got.append)
    with profiler.profile("work"):
        torch.ones(1)
    profiler.describe()
    assert [type(one) for one in got] == [torch.profiler.profile]
    assert list(tmp_path.iterdir()) == []


def test_nothing_recorded_nothing_said(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, filename="p")
    profiler.describe()
    profiler.stop("never begun")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kwargs", "kind", "match"),
    [
        ({"sort_by_key": "foo"}, ConfigurationError, r"sort_by_key='foo'.*'cpu_time_total'"),
        ({"schedule": 3}, MisconfigurationException, r"schedule=3"),
        ({"on_trace_ready": 3}, MisconfigurationException, r"on_trace_ready=3"),
        ({"schedule": lambda _: 3}, ConfigurationError, r"gave 3 for step 0.*ProfilerAction"),
        ({"table_kwargs": {"foo": 1}}, KeyError, r"holds 'foo'.*header"),
        ({"table_kwargs": {"sort_by": 1}}, KeyError, r"holds 'sort_by'.*Pass sort_by_key="),
        ({"with_stacks": True}, ConfigurationError, r"PyTorchProfiler\(with_stacks=...\) is unknown.*with_stack"),
    ],
)
def test_bad_input(kwargs, kind, match):
    with pytest.raises(kind, match=match):
        PyTorchProfiler(**kwargs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is for machines without CUDA")
def test_nvtx_needs_cuda():
    with pytest.raises(HardwareError, match=r"PyTorchProfiler\(emit_nvtx=True\).*no CUDA device"):
        PyTorchProfiler(emit_nvtx=True)


def test_nvtx_marks_ranges_and_records_nothing(monkeypatch, tmp_path):
    told = []

    @contextmanager
    def edge(name, **kwargs):
        told.append((f"+{name}", kwargs))
        yield
        told.append((f"-{name}", kwargs))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.profiler, "profile", partial(edge, "cuda"))
    monkeypatch.setattr(torch.autograd.profiler, "emit_nvtx", partial(edge, "nvtx"))
    profiler = PyTorchProfiler(dirpath=tmp_path, filename="p", emit_nvtx=True, group_by_input_shapes=True)
    with profiler.profile("x.training_step"), profiler.profile("inner"):
        torch.ones(1)
    with profiler.profile("x.training_step"):
        torch.ones(1)
    profiler.describe()
    profiler.teardown("fit")
    shapes = {"record_shapes": True}
    assert told == [("+cuda", {}), ("+nvtx", shapes), ("-nvtx", shapes), ("-cuda", {})]
    assert list(tmp_path.iterdir()) == []


def test_it_goes_to_other_processes():
    profiler = standalone(row_limit=1)
    with profiler.profile("work"):
        twin = pickle.loads(pickle.dumps(profiler))
    profiler.summary()
    with twin.profile("other"):
        torch.ones(1)
    assert "other" in twin.summary() or "aten::" in twin.summary()
