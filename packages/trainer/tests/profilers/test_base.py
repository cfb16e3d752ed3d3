import logging

import pytest

from fulmen.trainer.profilers.base import PassThroughProfiler, Profiler


class Listing(Profiler):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heard = []

    def start(self, action_name):
        self.heard.append(f"+{action_name}")

    def stop(self, action_name):
        self.heard.append(f"-{action_name}")

    def summary(self):
        return "so it was\n"


def test_an_action_ends_on_errors_too():
    profiler = Listing()
    with pytest.raises(ZeroDivisionError), profiler.profile("a"):
        raise ZeroDivisionError
    assert profiler.heard == ["+a", "-a"]


def test_an_error_is_not_hidden_by_one_of_the_profiler(caplog):
    class Broken(Listing):
        def stop(self, action_name):
            raise RuntimeError("no stop")

    with pytest.raises(ZeroDivisionError), Broken().profile("a"):
        raise ZeroDivisionError
    assert "no stop" in caplog.text
    with pytest.raises(RuntimeError, match="no stop"), Broken().profile("a"):
        pass


def test_the_report_goes_to_the_file_that_was_asked_for(tmp_path):
    profiler = Listing(dirpath=tmp_path / "new", filename="report")
    profiler.setup("fit", local_rank=1, log_dir="/nowhere")
    assert profiler.local_rank == 1
    profiler.describe()
    profiler.describe()
    assert (tmp_path / "new" / "fit-report-1.txt").read_text() == "so it was\n" * 2


def test_the_report_goes_to_the_log_folder(tmp_path):
    profiler = Listing(filename="report")
    profiler.setup("test", log_dir=str(tmp_path))
    profiler.describe()
    assert (tmp_path / "test-report.txt").read_text() == "so it was\n"


def test_the_report_is_printed(caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        Listing().describe()
    assert "so it was" in caplog.text


def test_the_pass_through_profiler_says_nothing(caplog):
    profiler = PassThroughProfiler()
    with profiler.profile("a"):
        pass
    profiler.describe()
    profiler.teardown("fit")
    assert caplog.text == ""
