"""A file that grows by whole pieces."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.loggers.growing_file import GrowingFile

# A lone half of a surrogate pair is no text that a file can hold.
texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.lists(st.tuples(texts, st.sampled_from(["", "close", "copy"])), max_size=8))
@settings(deadline=None, max_examples=50)
def test_what_was_appended_lies_there(tmp_path_factory: Any, pieces: Any) -> None:
    path = tmp_path_factory.mktemp("folder") / "file"
    file = GrowingFile(str(path))
    expected = ""
    for text, then in pieces:
        file.append(text)
        expected += text
        if then == "close":
            file.close()
        if then == "copy":
            file = pickle.loads(pickle.dumps(file))
        assert path.read_bytes() == expected.encode()
    file.close()


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GrowingFile(str(tmp_path / "no" / "file")).append("a")
