import os
import weakref

import pytest

from fulmen.trainer.loggers.checkpoints import CheckpointLog, saved_by


class Callback:
    """What a checkpoint callback shows of itself."""

    monitor, mode, save_last, save_weights_only = "loss", "min", None, False

    def __init__(self, folder, save_top_k=1):
        self.folder = folder
        self.save_top_k = save_top_k
        self.best_model_path = self.last_model_path = ""
        self.best_model_score = self.current_score = None
        self.best_k_models = {}
        self.time_s = 1_000_000

    def save(self, name, score, drops=()):
        path = str(self.folder / name)
        for dropped in drops:
            del self.best_k_models[str(self.folder / dropped)]
            os.unlink(self.folder / dropped)
        with open(path, "w") as file:
            file.write(str(score))
        self.time_s += 10  # the clock of the file system may be slower than this test
        os.utime(path, (self.time_s, self.time_s))
        self.best_k_models[path] = self.current_score = score
        if self.best_model_score is None or score <= self.best_model_score:
            self.best_model_path, self.best_model_score = path, score


@pytest.fixture
def uploads():
    return []


def names(uploads):
    return [os.path.basename(saved.path) for saved in uploads]


@pytest.mark.parametrize(
    ("log_model", "save_top_k", "meanwhile", "at_the_end"),
    [
        ("all", 1, ["a", "b", "c"], ["a", "b", "c"]),
        (True, 1, [], ["c"]),
        (True, -1, ["a", "b", "c"], ["a", "b", "c"]),
        (False, 1, [], []),
    ],
)
def test_which_are_given_and_when(tmp_path, uploads, log_model, save_top_k, meanwhile, at_the_end):
    log, callback = CheckpointLog(log_model, uploads.append), Callback(tmp_path, save_top_k)
    for name, score, drops in (("a", 3.0, ()), ("b", 2.0, "a"), ("c", 1.0, "b")):
        callback.save(name, score, drops if save_top_k == 1 else ())
        log.saved(weakref.proxy(callback))
        log.saved(weakref.proxy(callback))  # nothing is given twice
    assert names(uploads) == meanwhile
    log.finish()
    log.finish()
    assert names(uploads) == at_the_end


def test_a_file_that_was_written_again_is_given_again(tmp_path, uploads):
    log, callback = CheckpointLog("all", uploads.append), Callback(tmp_path)
    for score in (2.0, 1.0):
        callback.save("last", score)
        log.saved(callback)
    assert [saved.score for saved in uploads] == [2.0, 1.0]


def test_what_is_said_about_one(tmp_path):
    callback = Callback(tmp_path)
    callback.save("a", 1.0)
    callback.save("b", 2.0)
    first, second = sorted(saved_by(callback), key=lambda saved: saved.path)
    assert (first.aliases, second.aliases) == (("latest", "best"), ("latest",))
    about = {"monitor": "loss", "mode": "min", "save_last": None, "save_top_k": 1, "save_weights_only": False}
    assert first.metadata == {"score": 1.0, "original_filename": "a", "Callback": about}


def test_a_callback_that_is_gone_has_nothing_left(tmp_path, uploads):
    log, callback = CheckpointLog(True, uploads.append), Callback(tmp_path)
    callback.save("a", 1.0)
    log.saved(weakref.proxy(callback))
    del callback
    log.finish()
    assert uploads == []
