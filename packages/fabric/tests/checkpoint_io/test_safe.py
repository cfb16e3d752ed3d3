"""What cannot be loaded safely is not saved, and its place is named."""

from __future__ import annotations

import collections
import datetime
import threading
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io.safe import cannot_be_saved, encode, unsafe_to_load
from fulmen.fabric.errors import CheckpointError


class Code:
    """Something that is no plain data."""


def test_plain_data_is_encoded() -> None:
    value = {"a": [1, 2.5, None, True, "x", b"y", (1,), torch.float16], "b": collections.OrderedDict(c=torch.ones(2))}
    assert torch.serialization.get_unsafe_globals_in_checkpoint.__name__  # the public way to ask torch
    import io

    loaded = torch.load(io.BytesIO(encode("x.ckpt", "'a'", value)), weights_only=True)
    assert loaded["a"] == value["a"]


@pytest.mark.parametrize("thing", [Code(), datetime.timedelta(1), print])
def test_what_would_run_code_is_refused_with_its_name(thing: Any) -> None:
    with pytest.raises(CheckpointError, match=r"x\.ckpt.*'entry' holds .*(Code|timedelta|print).*add_safe_globals"):
        encode("x.ckpt", "'entry'", thing)


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"x\.ckpt.*'entry' cannot be pickled"):
        encode("x.ckpt", "'entry'", threading.Lock())


def test_the_place_of_the_culprit_is_told() -> None:
    state = {"model": {"w": torch.ones(2)}, "callbacks": {"mine": [1, {"code": Code()}]}}
    assert "['callbacks']['mine'][1]['code'] holds Code" in str(unsafe_to_load("x", state, ["Code"]))
    state["callbacks"]["mine"] = (threading.Lock(),)  # type: ignore[assignment, index]
    assert "under ['callbacks']['mine'][0] cannot be pickled" in str(cannot_be_saved("x", state, "a lock"))
