from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from fulmen.fabric import rank_zero
from fulmen.fabric.rank_zero import (
    LightningDeprecationWarning,
    PossibleUserWarning,
    RankZeroOnly,
    WarningCache,
    disable_possible_user_warnings,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
    warn_once,
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in rank_zero._RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(rank_zero_only, "_rank", None)
    rank_zero.warned.clear()
    yield
    rank_zero.warned.clear()


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_a_function_runs_on_rank_zero_only(rank: int) -> None:
    only = RankZeroOnly()
    only.rank = rank
    assert only(lambda x: x)(3) == (3 if rank == 0 else None)
    assert only(lambda x: x, default=-1)(3) == (3 if rank == 0 else -1)


def test_the_rank_may_change_after_decorating() -> None:
    only = RankZeroOnly()
    decorated = only(lambda: "ran")
    assert decorated() == "ran"
    only.rank = 1
    assert decorated() is None


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"RANK": "9", "LOCAL_RANK": "1"}, 9),
        ({"SLURM_PROCID": "4"}, 4),
        ({"RANK": "nonsense", "LOCAL_RANK": "2"}, 2),
    ],
)
def test_before_it_is_set_the_environment_says_the_rank(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], rank: int
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    only = RankZeroOnly()
    assert only.rank == rank
    only.rank = 5
    assert only.rank == 5


def test_a_decorated_function_keeps_its_name() -> None:
    def fetch() -> None:
        """Fetch it."""

    assert rank_zero_only(fetch).__name__ == "fetch"
    assert rank_zero_only(fetch).__doc__ == "Fetch it."


def test_a_warning_points_at_the_line_that_warns() -> None:
    with pytest.warns(UserWarning, match="look out") as record:
        rank_zero_warn("look out")
    assert record[0].filename == __file__
    with pytest.warns(LightningDeprecationWarning) as record:
        rank_zero_deprecation("old")
    assert record[0].filename == __file__
    with pytest.warns(RuntimeWarning) as record:
        warn_once("once", category=RuntimeWarning)
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="cached") as record:
        WarningCache().warn("cached")
    assert record[0].filename == __file__


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero_only.rank = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank_zero_warn("look out")
        rank_zero_deprecation("old")
        warn_once("once")
    rank_zero_info("hello")
    assert caplog.text == ""


def test_warn_once_warns_once() -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for message in ["first", "first", "second", "first"]:
            warn_once(message)
    assert [str(warning.message) for warning in record] == ["first", "second"]


def test_a_cache_says_each_thing_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = WarningCache()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        cache.deprecation("old")
        cache.deprecation("old")
    assert [warning.category for warning in record] == [LightningDeprecationWarning]
    cache.info("news")
    cache.info("news")
    assert [entry.getMessage() for entry in caplog.records] == ["news"]


def test_info_reaches_the_programs_own_logging(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero_info("epoch %d", 3)
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno, record.pathname) == ("epoch 3", logging.INFO, __file__)


def test_info_is_heard_in_a_program_without_logging_and_not_twice_in_one_with() -> None:
    program = (
        "import logging, sys\n"
        "from fulmen.fabric.rank_zero import rank_zero_info\n"
        "assert not logging.getLogger('fulmen').handlers\n"
        "rank_zero_info('alone')\n"
        "logging.basicConfig(format='root: %(message)s')\n"
        "rank_zero_info('together')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines() == ["alone", "root: together"]


def test_possible_user_warnings_can_be_silenced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disable_possible_user_warnings()
        rank_zero_warn("maybe", category=PossibleUserWarning)
        with pytest.raises(UserWarning):
            rank_zero_warn("surely")
