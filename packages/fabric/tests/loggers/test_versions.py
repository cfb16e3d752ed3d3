from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.loggers.csv import CSVLogger
from fulmen.fabric.loggers.versions import take_version, version_dir
from fulmen.fabric.rank_zero import rank_zero_only

names = st.integers(0, 30).map("version_{}".format) | st.sampled_from(["version_", "version_x", "version_1a", "other"])


@given(st.sets(names, max_size=6))
def test_a_taken_number_is_above_all_others_and_is_taken(tmp_path_factory: object, there: set[str]) -> None:
    folder = tmp_path_factory.mktemp("experiment")  # type: ignore[attr-defined]
    for name in there:
        (folder / name).mkdir()
    numbers = [int(name.removeprefix("version_")) for name in there if name.removeprefix("version_").isdecimal()]
    for expected in range(max(numbers, default=-1) + 1, max(numbers, default=-1) + 3):
        assert take_version(folder) == expected
        assert Path(version_dir(folder, expected)).is_dir()


def test_other_ranks_look_and_take_nothing(tmp_path: Path) -> None:
    rank_zero_only.rank = 1
    try:
        assert take_version(tmp_path / "none") == take_version(tmp_path / "none") == 0
    finally:
        rank_zero_only.rank = 0
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_used_as_it_is(tmp_path: Path) -> None:
    assert version_dir(tmp_path, "mine") == str(tmp_path / "mine")


@pytest.mark.parametrize("argument", ["name", "version"])
@pytest.mark.parametrize("bad", ["a\nb", "\x1b[31mred", "a\x00", "a\u2028b", "\x9bm"])
def test_a_folder_gets_no_name_with_control_characters(tmp_path: Path, argument: str, bad: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        CSVLogger(tmp_path, **{argument: bad})  # type: ignore[arg-type]
    message = str(raised.value)
    assert f"CSVLogger({argument}={bad!r}) holds the control character" in message
    assert message.isprintable()
    assert list(tmp_path.iterdir()) == []
