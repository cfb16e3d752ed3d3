"""The benchmarks run and print a table. What they measure is not looked at: tests do not fail by the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmarks draw on a pseudo-terminal")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def rows(printed: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_step_overhead_prints_a_row_for_each_subject_and_nothing_of_the_bar():
    done = run("step_overhead.py", "--steps", "20", "--pairs", "1")
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[0].split(",")[0] for row in table] == ["the plain loop again", "Fabric", *4 * ["Trainer"]]
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in table)
    assert [row[6] for row in table] == ["", "1.06", "1.12", "1.22", "1.30", "1.40"]
    assert {row[7] for row in table[1:]} <= {"pass", "fail"}
    assert "Epoch" not in done.stdout + done.stderr


def test_import_time_prints_torch_and_what_comes_on_top_of_it():
    done = run("import_time.py", "--runs", "1", "--only", "fabric.used")
    assert done.returncode == 0, done.stderr
    torch_row, fabric_row = rows(done.stdout)
    assert fabric_row[4] == "0.15 s"
    assert fabric_row[5] in ("pass", "fail")
    assert float(torch_row[1].removesuffix(" s")) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "0"], "--pairs 0"),
        (["--only", "fabrik"], "--only fabrik"),
        (["--peers", "nobody"], "--peers nobody"),
    ],
)
def test_a_wrong_argument_is_answered_before_anything_runs(arguments, words):
    done = run("step_overhead.py", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
