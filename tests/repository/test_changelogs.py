"""Changelog fragments: one file per change, named and written so that they can be put together."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DISTRIBUTIONS = ("fabric", "trainer", "tuner", "cli", "fulmen")
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")
NAME = re.compile(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(KINDS)})\.md")
FRAGMENTS = sorted(REPOSITORY.glob("packages/*/changelog.d/*"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_has_its_changelog(distribution):
    assert (REPOSITORY / "packages" / distribution / "CHANGELOG.md").read_text().startswith("# Changes of ")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_a_fragment_says_in_whole_sentences_what_changed(fragment):
    assert NAME.fullmatch(fragment.name), f"expected WORDS-WITH-HYPHENS.KIND.md, where KIND is one of {KINDS}"
    text = fragment.read_text().strip()
    assert text
    assert text.endswith(".")
    assert not re.search(r"^\s*([#*-]|\d+\.)\s", text, re.MULTILINE), "no headings and no lists: it becomes one item"
