import copy
import pickle

from fulmen.trainer.loggers.base import DummyLogger, Logger, merge_dicts


class MyLogger(Logger):
    name, version = "mine", 3

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


def test_what_a_users_logger_gets_for_nothing():
    logger = MyLogger()
    assert (logger.save_dir, logger.log_dir, logger.root_dir, logger.group_separator) == (None, None, None, "/")
    assert logger.after_save_checkpoint(object()) is None
    logger.finalize("success")


def test_a_dummy_takes_everything():
    logger = DummyLogger()
    logger.log_metrics({"a": 1}, step=3)
    logger.log_hyperparams({"a": 1}, "more", even=1)
    logger.watch("model")
    logger.experiment.add_image("x")
    logger.experiment[0]["loss"] = 1
    assert logger[3] is logger
    assert (logger.name, logger.version) == ("", "")
    assert isinstance(copy.deepcopy(logger), DummyLogger)
    assert isinstance(pickle.loads(pickle.dumps(logger)), DummyLogger)


def test_dicts_are_merged_key_by_key():
    first, second, third = (
        {"a": 1.7, "b": 2.0, "c": 1, "d": {"d1": 1, "d3": 3}},
        {"a": 1.1, "b": 2.2, "v": 1},
        {"a": 1.1, "d": {"d1": 2, "d2": 3}},
    )
    functions = {"a": min, "v": max, "d": {"d1": sum}}
    merged = merge_dicts([first, second, third], functions)
    assert merged == {"a": 1.1, "b": 2.1, "c": 1, "d": {"d1": 3, "d3": 3, "d2": 3}, "v": 1}
