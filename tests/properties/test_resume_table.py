"""The table of what goes on exactly names tests and parts of scenarios that are there, and every part is in it."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.resume_data import LOADERS
from tests.support.resume_scenarios import CALLBACKS

ROOT = Path(__file__).parents[2]
TABLE: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "data" / "resume_scenarios.yaml").read_text())
TOGETHER = {"dict", "list", "min_size", "max_size", "max_size_cycle"}


@pytest.mark.parametrize("row", TABLE, ids=[row["what"] for row in TABLE])
def test_it_is_held(row: dict[str, Any]) -> None:
    assert {*row.get("with", [])} <= {*LOADERS, *CALLBACKS, *TOGETHER}
    for test in row["held"]:
        path, _, name = test.rpartition("::")
        tree = ast.parse((ROOT / (path or "tests/properties/test_resume_exactly.py")).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def test_every_loader_is_in_the_table() -> None:
    named = {part for row in TABLE for part in row.get("with", [])}
    assert {*LOADERS} - named <= {"no DataLoader"}
