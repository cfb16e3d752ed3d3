from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from fulmen.cli.written import as_yaml

NUMBERS = st.from_regex(r"[-+]?\.?[0-9]{1,3}(\.[0-9]{0,2})?([eE][-+]?[0-9]{1,2})?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32), max_size=8) | NUMBERS
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(TEXTS, DATA, max_size=4))
def test_yaml_reads_it_back(data: dict[str, Any]) -> None:
    assert yaml.safe_load(as_yaml(data)) == data


@given(TEXTS)
def test_so_does_jsonargparse(text: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--text", type=str)
    assert parser.parse_string(as_yaml({"text": text})).text == text
