import pytest

from fulmen.trainer.connectors.loggers import choose_loggers
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.loggers.base import DummyLogger
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.run.settings import Settings


@pytest.mark.parametrize("flag", [None, True])
def test_by_default_metrics_go_to_csv_files_in_the_root_folder(flag, tmp_path):
    [logger] = choose_loggers(flag, Settings(default_root_dir=str(tmp_path)))
    assert isinstance(logger, CSVLogger)
    assert logger.save_dir == str(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing is made before it is needed


def test_one_several_and_none(tmp_path):
    loggers = [CSVLogger(tmp_path), CSVLogger(tmp_path, name="b")]
    assert choose_loggers(False, Settings()) == []
    assert choose_loggers(loggers[0], Settings()) == loggers[:1]
    assert choose_loggers(loggers, Settings()) == choose_loggers(iter(loggers), Settings()) == loggers
    assert choose_loggers([], Settings()) == []


def test_a_quick_run_logs_to_nowhere_and_a_bare_one_not_at_all(tmp_path):
    [logger] = choose_loggers(CSVLogger(tmp_path), Settings(fast_dev_run=True))
    assert isinstance(logger, DummyLogger)
    assert choose_loggers(False, Settings(fast_dev_run=True)) == []
    assert choose_loggers(None, Settings(barebones=True)) == []
    with pytest.raises(ConfigurationError, match=r"Trainer\(barebones=True, logger=True\)"):
        choose_loggers(True, Settings(barebones=True))


@pytest.mark.parametrize("flag", [3, "csv", [CSVLogger], CSVLogger])
def test_what_is_no_logger_is_refused(flag):
    with pytest.raises(ArgumentTypeError, match=r"Trainer\(logger=.*which is no logger"):
        choose_loggers(flag, Settings())
