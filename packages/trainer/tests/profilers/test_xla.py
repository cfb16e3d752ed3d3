import sys
from types import ModuleType

import pytest

from fulmen.trainer.connectors.profiler import choose_profiler
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.profilers import XLAProfiler


@pytest.fixture
def happened(monkeypatch):
    """What torch_xla was told: no machine of ours has it."""
    happened = []

    class Trace:
        def __init__(self, name, **given):
            self.told = (type(self).__name__, name.rpartition(".")[2], *given.values())

        def __enter__(self):
            happened.append(("begin", *self.told))

        def __exit__(self, *_):
            happened.append(("end", *self.told))

    profiler = ModuleType("torch_xla.debug.profiler")
    profiler.Trace, profiler.StepTrace = Trace, type("StepTrace", (Trace,), {})
    profiler.start_server = lambda port: happened.append(("server", port)) or "server"
    for name, module in {
        "torch_xla": ModuleType("torch_xla"),
        "torch_xla.debug": ModuleType("torch_xla.debug"),
        "torch_xla.debug.profiler": profiler,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return happened


def test_steps_and_backward_are_ranges_and_one_server_shows_them(happened, quick):
    profiler = XLAProfiler(port=9100)
    quick(profiler=profiler, limit_train_batches=2, limit_val_batches=2).fit(BoringModel())
    assert [one for one in happened if one[0] == "server"] == [("server", 9100)]
    begun = [one[1:] for one in happened if one[0] == "begin"]
    assert begun[:2] == [("Trace", "training_step"), ("Trace", "backward")]
    assert begun[-2:] == [("StepTrace", "validation_step", 0), ("StepTrace", "validation_step", 1)]
    assert sorted(one[1:] for one in happened if one[0] == "end") == sorted(begun)
    assert profiler.server == "server"


def test_processes_of_one_machine_have_ports_of_their_own(happened):
    profiler = XLAProfiler()
    profiler.setup("fit", local_rank=3)
    profiler.start("[Strategy]X.training_step")
    profiler.stop("[Strategy]X.training_step")
    profiler.stop("never begun")
    assert happened[0] == ("server", 9015)


def test_it_has_a_name_and_says_what_is_missing(happened, monkeypatch):
    assert isinstance(choose_profiler("xla"), XLAProfiler)
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ModuleNotFoundError, match=r"XLAProfiler needs .*pip install torch_xla"):
        choose_profiler("xla")


def test_ranges_that_an_error_left_open_end_with_the_run(happened):
    profiler = XLAProfiler()
    for name in ("a.training_step", "a.backward"):
        profiler.start(name)
    profiler.teardown("fit")
    assert [one[2] for one in happened if one[0] == "end"] == ["backward", "training_step"]
    profiler.stop("a.backward")
