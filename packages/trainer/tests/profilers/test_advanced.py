import pickle
import pstats
import re
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.profilers import AdvancedProfiler


def sleep_in_outer():
    time.sleep(0.002)


def sleep_in_inner():
    time.sleep(0.002)


def table_of(summary, action):
    (table,) = re.findall(rf"^Profile of {re.escape(action)}\n(.*?)(?=^Profile of |\Z)", summary, re.M | re.S)
    return table


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, _):
        return self.layer(batch).mean()

    def test_step(self, batch):
        self.layer(batch)

    def on_train_start(self):
        sleep_in_outer()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


BATCHES = DataLoader(torch.ones(2, 2), batch_size=1)


def test_each_action_lists_its_functions():
    profiler = AdvancedProfiler()
    for _ in range(3):
        with profiler.profile("outer"):
            sleep_in_outer()
            with profiler.profile("inner"):
                sleep_in_inner()
            sleep_in_outer()
    summary = profiler.summary()
    outer, inner = table_of(summary, "outer"), table_of(summary, "inner")
    assert re.search(r"^ +6 .*\(sleep_in_outer\)", outer, re.M)
    assert re.search(r"^ +3 .*\(sleep_in_inner\)", inner, re.M)
    assert "sleep_in_inner" not in outer
    assert "sleep_in_outer" not in inner


def test_a_summary_in_the_middle_does_not_end_the_action():
    profiler = AdvancedProfiler()
    with profiler.profile("a"):
        sleep_in_inner()
        assert "1 " in table_of(profiler.summary(), "a")
        sleep_in_outer()
    assert "sleep_in_outer" in profiler.summary()


def test_an_action_that_fails_ends():
    profiler = AdvancedProfiler()
    with pytest.raises(ZeroDivisionError), profiler.profile("a"), profiler.profile("b"):
        raise ZeroDivisionError
    with profiler.profile("a"):
        sleep_in_outer()
    assert "sleep_in_outer" in table_of(profiler.summary(), "a")


def test_an_action_of_the_caller_around_runs_goes_on():
    profiler = AdvancedProfiler()
    with profiler.profile("mine"):
        profiler.setup("fit")
        profiler.start("left open")
        profiler.teardown("fit")
        with profiler.profile("left open"):
            profiler.teardown("fit")  # of a run that was never set up
    assert set(profiler.profiled_actions) == {"mine", "left open"}


def test_how_many_lines():
    def lines(restriction):
        profiler = AdvancedProfiler(line_count_restriction=restriction)
        with profiler.profile("a"):
            sleep_in_outer()
            len([])
        return len(re.findall(r"^ +\d+ +\d\.\d+ .*$", profiler.summary(), re.M))

    everything = lines(1.0)  # sleep_in_outer, time.sleep, len, and the end of the measurement at least
    assert everything >= 4
    assert (lines(1), lines(2.0), lines(0.5)) == (1, 2, int(everything * 0.5 + 0.5))


@pytest.mark.parametrize("restriction", [0, -1, 1.5, True, "all"])
def test_restrictions_that_restrict_nothing(restriction):
    with pytest.raises(ConfigurationError, match=r"AdvancedProfiler\(line_count_restriction="):
        AdvancedProfiler(line_count_restriction=restriction)


def test_mistakes_are_value_errors_that_quote_the_action():
    profiler = AdvancedProfiler()
    profiler.start("a")
    with pytest.raises(ValueError, match=r"start\('a'\) was called while 'a' is being profiled") as raised:
        profiler.start("a")
    assert isinstance(raised.value, MisconfigurationException)
    profiler.stop("a")
    with pytest.raises(ValueError, match=r"stop\('b'\) was called, and 'b' is not being profiled"):
        profiler.stop("b")


def test_the_files_of_a_fit(quick, tmp_path):
    profiler = AdvancedProfiler(dirpath=tmp_path, filename="p", dump_stats=True)
    trainer = quick(profiler=profiler)
    trainer.fit(Small(), BATCHES)
    (report,) = tmp_path.glob("fit-p*.txt")
    assert "sleep_in_outer" in table_of(report.read_text(), "[LightningModule]Small.on_train_start")
    (path,) = tmp_path.glob("fit-p*-[[]LightningModule]Small.on_train_start.prof")
    names = {name for _, _, name in pstats.Stats(str(path)).stats}
    assert "sleep_in_outer" in names
    assert list(tmp_path.glob("fit-p*-[[]Strategy]SingleDeviceStrategy.training_step.prof"))
    trainer.test(Small(), BATCHES, verbose=False)
    (report,) = tmp_path.glob("test-p*.txt")
    assert "training_step" not in report.read_text()


def test_files_of_stats_need_a_folder(tmp_path):
    profiler = AdvancedProfiler(dump_stats=True)
    with profiler.profile("a/b"):
        pass
    with pytest.warns(UserWarning, match="wrote no .prof files.*Pass dirpath"):
        profiler.describe()
    profiler.setup("fit", log_dir=str(tmp_path))
    profiler.describe()
    assert [path.name for path in tmp_path.iterdir()] == ["fit-a_b.prof"]


def test_without_actions_there_is_nothing_to_say(tmp_path):
    profiler = AdvancedProfiler(dirpath=tmp_path, filename="p", dump_stats=True)
    profiler.describe()
    assert list(tmp_path.iterdir()) == []


def test_it_goes_to_other_processes():
    profiler = AdvancedProfiler(line_count_restriction=3)
    with profiler.profile("a"):
        twin = pickle.loads(pickle.dumps(profiler))
    assert (twin.line_count_restriction, twin.profiled_actions) == (3, {})
    with twin.profile("a"):
        pass
    assert "Profile of a" in twin.summary()
