"""What is no checkpoint is refused where it comes in."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import CheckpointError
from fulmen.trainer.core.checkpoint_form import check_form, num_values
from fulmen.trainer.demos import BoringModel

LEAVES: Any = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(torch.ones(2))
VALUES = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text() | st.integers(), some, max_size=3)
)
KEYS = st.sampled_from(["state_dict", "hyper_parameters", "hparams_name", "epoch"])


@given(VALUES | st.dictionaries(KEYS, VALUES))
def test_whatever_was_read_is_a_checkpoint_or_refused(read: Any) -> None:
    """Law."""
    refusal = ""
    try:
        check_form(read, "'a.ckpt'", ["hyper_parameters"], "hparams_name")
    except CheckpointError as error:
        refusal = str(error)
    if refusal:
        assert "'a.ckpt' was read, and is no checkpoint" in refusal
        return
    assert all(isinstance(name, str) for key in ("state_dict", "hyper_parameters") for name in read.get(key) or {})
    assert isinstance(read.get("hparams_name"), str | None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text", "holds a str"),
        ({"state_dict": 3}, "'state_dict' is no dict"),
        ({"state_dict": {1: torch.ones(1)}}, "'state_dict' is no dict"),
        ({"state_dict": {}, "hyper_parameters": [1]}, "'hyper_parameters' is no dict"),
        ({"state_dict": {}, "hparams_name": 3}, "'hparams_name' is no name"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_path(tmp_path: Any, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=words) as caught:
        BoringModel.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "a.ckpt" in str(caught.value)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_values_are_counted_as_one_walks_through_them(nest: Any) -> None:
    def walked(value: Any) -> int:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(walked, parts))

    assert num_values(nest) == walked(nest)


def test_what_has_no_end_is_refused_and_not_walked_through(tmp_path: Any) -> None:
    storeys: list[Any] = ["x"] * 10
    for _ in range(30):
        storeys = [storeys] * 10
    itself: list[Any] = []
    itself.append({"a": (itself,)})
    assert num_values(storeys) > 10**30
    assert num_values(itself) == float("inf")
    for endless in (storeys, itself):
        with pytest.raises(CheckpointError, match="its 'hyper_parameters' names the same values over and over"):
            check_form({"state_dict": {}, "hyper_parameters": {"extra": endless}}, "x.ckpt", ("hyper_parameters",))
        torch.save({"state_dict": {}, "hyper_parameters": {"extra": endless}}, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match="over and over"):
            BoringModel.load_from_checkpoint(tmp_path / "x.ckpt")
