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
    newest,
    newest_hpc,
    next_hpc_name,
)


@given(st.sets(st.integers(0, 10**6)), st.lists(st.sampled_from(["last.ckpt", "hpc_ckpt_.ckpt", "hpc_ckpt_1.tmp"])))
def test_the_highest_number_of_a_requeued_job_is_taken(numbers, others):
    names = [*others, *(f"hpc_ckpt_{number}.ckpt" for number in numbers)]
    assert newest_hpc(names) == (f"hpc_ckpt_{max(numbers)}.ckpt" if numbers else None)
    assert next_hpc_name(names) not in names
    assert newest_hpc([*names, next_hpc_name(names)]) == next_hpc_name(names)


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1e9), min_size=1))
def test_the_newest_is_not_older_than_any(written):
    assert written[newest(written)] == max(written.values())


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
    offers = Offers(last={"e": 1.0}, left_by_exception=frozenset({"e"}), hpc="h")
    assert choose(None, offers, requeued=True).path == "h"
    assert choose(None, Offers(hpc="h")).path is None
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


def test_offers_are_what_callbacks_and_files_say(tmp_path):
    class Ranks:
        best_model_path = "best.ckpt"

        def folder(self, trainer):
            return str(tmp_path)

        def find_last_checkpoints(self, trainer):
            return {str(tmp_path / "last.ckpt"), str(tmp_path / "gone.ckpt")}

    class Saves:
        def path_after_exception(self):
            return str(tmp_path / "failed.ckpt")

    for name, age_s in (
        ("last.ckpt", 100),
        ("stopped.ckpt", 70),
        ("failed.ckpt", 50),
        ("hpc_ckpt_2.ckpt", 0),
        ("hpc_ckpt_10.ckpt", 10),
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (10_000 - age_s, 10_000 - age_s))
    offers = gather_offers([Ranks(), Saves(), object()], root_dir=tmp_path, trainer=None)
    assert list(offers.best) == ["best.ckpt"]
    assert {os.path.basename(path) for path in offers.last} == {"last.ckpt", "stopped.ckpt", "failed.ckpt"}
    assert os.path.basename(choose("last", offers).path) == "failed.ckpt"
    assert offers.hpc == str(tmp_path / "hpc_ckpt_10.ckpt")
