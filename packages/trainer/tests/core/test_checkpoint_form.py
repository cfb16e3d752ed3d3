"""What is no checkpoint is refused where it comes in."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import CheckpointError
from fulmen.trainer.core.checkpoint_form import check_form
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
