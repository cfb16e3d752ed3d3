"""Public names are promises: none comes or goes by accident."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "public_names.py"))


def test_the_public_names_are_those_that_were_promised():
    promised = TOOL["SNAPSHOT"].read_text().splitlines()
    now = list(TOOL["public_names"]())
    changed = {"gone": sorted(set(promised) - set(now)), "new": sorted(set(now) - set(promised))}
    assert changed == {"gone": [], "new": []}, "if this is meant: python tools/public_names.py --write"
