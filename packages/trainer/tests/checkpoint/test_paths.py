import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import CheckpointNotFoundError, ConfigurationError
from fulmen.trainer.checkpoint.paths import (
    Offers,
    check_exists,
    choose,
    gather_offers,
    newest_first,
    newest_hpc,
    next_hpc_name,
)
from fulmen.trainer.loggers.base import Logger


@given(st.sets(st.integers(0, 10**6)), st.lists(st.sampled_from(["last.ckpt", "hpc_ckpt_.ckpt", "hpc_ckpt_1.tmp"])))
def test_the_highest_number_of_a_requeued_job_is_taken(numbers, others):
    names = [*others, *(f"hpc_ckpt_{number}.ckpt" for number in numbers)]
    assert newest_hpc(names) == (f"hpc_ckpt_{max(numbers)}.ckpt" if numbers else None)
    assert next_hpc_name(names) not in names
    assert newest_hpc([*names, next_hpc_name(names)]) == next_hpc_name(names)


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1e9), min_size=1))
def test_the_newest_is_not_older_than_any(written):
    assert written[newest_first(written)[0]] == max(written.values())


def test_a_path_is_that_path_and_nothing_is_nothing():
    assert choose("x.ckpt", Offers()).path == "x.ckpt"
    assert choose(None, Offers(best=["b"])).path is None
    assert choose(None, Offers(best=["b"]), fits=False).path is None


def test_without_a_model_the_best_is_loaded_and_said():
    choice = choose(None, Offers(best=["b"]), call="Trainer.test", fits=False, model_given=False)
    assert choice.path == "b"
    assert "Trainer.test()" in choice.warning


def test_of_two_callbacks_the_first_is_asked_for_the_best():
    choice = choose("best", Offers(best=["a", "b"]))
    assert choice.path == "a"
    assert "2 checkpoint callbacks" in choice.warning


def test_last_is_the_newest_and_none_is_only_a_warning():
    assert choose("last", Offers(last={"a": 1.0, "b": 2.0})).path == "b"
    choice = choose("last", Offers())
    assert choice.path is None
    assert "no last checkpoint" in choice.warning


def test_what_a_failed_run_left_is_taken_unasked_by_fit_only():
    offers = Offers(last={"e": 1.0}, left_by_exception=frozenset({"e"}))
    choice = choose(None, offers)
    assert choice.path == "e"
    assert "OnExceptionCheckpoint" in choice.warning
    assert choose(None, offers, fits=False).path is None


def test_a_requeued_job_goes_on_before_anything_else():
    offers = Offers(last={"e": 1.0}, left_by_exception=frozenset({"e"}), hpc={"h": 1.0})
    assert choose(None, offers, requeued=True).path == "h"
    assert choose(None, Offers(hpc={"h": 1.0})).path is None
    assert choose("hpc", offers).path == "h"


@pytest.mark.parametrize(
    ("asked", "offers", "options"),
    [
        ("best", Offers(), {}),
        ("best", Offers(best=[""]), {}),
        ("best", Offers(best=["b"]), {"fast_dev_run": True}),
        (None, Offers(best=["b"]), {"fast_dev_run": True, "fits": False, "model_given": False}),
        ("hpc", Offers(), {}),
    ],
)
def test_what_is_not_there_is_a_value_error_with_advice(asked, offers, options):
    with pytest.raises(ConfigurationError, match=r"(?i)pass a|pass the") as caught:
        choose(asked, offers, call="Trainer.test", **options)
    assert isinstance(caught.value, ValueError)


def test_a_missing_file_is_refused_at_once_and_its_neighbours_are_named(tmp_path):
    (tmp_path / "epoch=1.ckpt").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"epoch=1\.ckpt") as caught:
        check_exists(str(tmp_path / "nofile.ckpt"))
    assert isinstance(caught.value, FileNotFoundError)
    check_exists(str(tmp_path / "epoch=1.ckpt"))


class Ranks:
    """Stands for a ModelCheckpoint."""

    FILE_EXTENSION = ".ckpt"
    state_key = "ModelCheckpoint{}"

    def __init__(self, dirpath=None, kept=()):
        self.dirpath, self.kept = dirpath, list(kept)
        self.best_model_path = self.kept[0] if self.kept else ""

    def folder(self, trainer):
        return str(self.dirpath)

    def checkpoints_by_score(self):
        return self.kept

    def is_last_name(self, name):
        return name.startswith("newest")


class Saves:
    """Stands for an OnExceptionCheckpoint."""

    def __init__(self, path):
        self.path = str(path)

    def path_after_exception(self):
        return self.path


class Runs(Logger):
    """Counts the versions of an experiment, unless its version is given."""

    def __init__(self, save_dir, version=None):
        super().__init__()
        self.save_dir, self.given = str(save_dir), version

    save_dir = None
    name = "logs"

    @property
    def version(self):
        assert self.given is not None, "looking takes no version"
        return self.given

    @property
    def versions_dir(self):
        return None if self.given is not None else os.path.join(self.save_dir, self.name)

    def log_metrics(self, *_, **__): ...

    def log_hyperparams(self, *_, **__): ...


def touch(path, *, at_s):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (at_s, at_s))
    return str(path)


def test_offers_are_what_callbacks_and_files_say(tmp_path):
    for at_s, name in enumerate(("newest.ckpt", "stopped.ckpt", "failed.ckpt", "hpc_ckpt_10.ckpt", "hpc_ckpt_2.ckpt")):
        touch(tmp_path / name, at_s=at_s + 1)
    callbacks = [Ranks(str(tmp_path), ["best.ckpt", "next.ckpt"]), Saves(tmp_path / "failed.ckpt"), object()]
    offers = gather_offers(callbacks, root_dir=tmp_path)
    assert list(offers.best) == ["best.ckpt"]
    assert list(offers.next_best) == ["next.ckpt"]
    assert {os.path.basename(path) for path in offers.last} == {"newest.ckpt", "stopped.ckpt", "failed.ckpt"}
    assert os.path.basename(choose("last", offers).path) == "failed.ckpt"
    assert [os.path.basename(path) for path in offers.hpc] == ["hpc_ckpt_10.ckpt", "hpc_ckpt_2.ckpt"]
    assert os.path.basename(choose("hpc", offers).path) == "hpc_ckpt_10.ckpt"
    assert os.path.basename(choose("auto", offers).path) == "hpc_ckpt_2.ckpt"


def test_a_word_stands_for_several_and_a_path_for_one():
    offers = Offers(
        best=["b"], next_best=["c"], last={"m": 2.0, "l": 3.0}, others={"o": 9.0}, earlier={"e": 10.0}, hpc={"h": 1.0}
    )
    assert choose("best", offers).candidates == ("b", "c")
    assert choose("last", offers).candidates == ("l", "m", "o")
    assert choose("auto", offers).candidates == ("o", "l", "m", "h", "e")
    assert choose("x.ckpt", offers).candidates == ("x.ckpt",)


def test_auto_may_begin_afresh_only_where_something_is_trained():
    assert choose("auto", Offers()).candidates == ()
    assert choose("auto", Offers(last={"l": 1.0})).may_begin
    assert not choose("auto", Offers(last={"l": 1.0}), fits=False).may_begin
    assert choose("auto", Offers(last={"l": 1.0}), fast_dev_run=True).candidates == ()
    with pytest.raises(ConfigurationError, match="ckpt_path='auto'"):
        choose("auto", Offers(), fits=False)


def test_a_new_process_looks_into_the_versions_before_its_own(tmp_path):
    runs = tmp_path / "logs"
    old = touch(runs / "version_0" / "checkpoints" / "newest.ckpt", at_s=10)
    new = touch(runs / "version_1" / "checkpoints" / "epoch=0.ckpt", at_s=20)
    (runs / "version_2").mkdir()
    offers = gather_offers([Ranks()], root_dir=tmp_path, loggers=[Runs(tmp_path)], wants_best=False)
    assert (dict(offers.last), dict(offers.others), dict(offers.earlier)) == ({}, {new: 20.0}, {old: 10.0})
    assert choose("last", offers).path == new
    assert choose("auto", offers).candidates == (new, old)


def test_what_the_user_named_is_all_that_is_looked_at(tmp_path):
    touch(tmp_path / "logs" / "version_0" / "checkpoints" / "a.ckpt", at_s=10)
    mine = touch(tmp_path / "logs" / "version_7" / "checkpoints" / "b.ckpt", at_s=5)
    given = gather_offers([Ranks()], root_dir=tmp_path, loggers=[Runs(tmp_path, 7)], wants_best=False)
    named = gather_offers([Ranks(str(tmp_path / "elsewhere"))], root_dir=tmp_path, loggers=[Runs(tmp_path)])
    begun = [Ranks(os.path.dirname(mine))]
    own = gather_offers(begun, root_dir=tmp_path, loggers=[Runs(tmp_path)], wants_best=False)
    assert choose("auto", given).candidates == choose("auto", own).candidates == (mine,)
    assert choose("auto", named).candidates == ()


def test_own_extensions_are_checkpoints_too(tmp_path):
    callback = Ranks(str(tmp_path))
    callback.FILE_EXTENSION = ".pt"
    path = touch(tmp_path / "newest.pt", at_s=1)
    assert choose("last", gather_offers([callback], root_dir=tmp_path)).path == path
