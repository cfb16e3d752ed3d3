"""`kill -9` at random moments while saving: the newest reported checkpoint loads, and the next start leaves no rests.

The programs, and what is asked of what they leave, are those of `benchmarks/kill_while_saving.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_while_saving.py"
KILLS = 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


def test_no_checkpoint_is_lost_and_no_byte_is_leaked(tmp_path: Path) -> None:
    """Law. What is printed names the seed and the kill that found a mistake."""
    command = [sys.executable, str(BENCHMARK), f"--kills={KILLS}", f"--folder={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.endswith("pass |")]
    assert sum(int(row[2]) for row in rows) == KILLS
    assert {row[0].strip().partition(",")[0] for row in rows} == {"a file", "files", "a folder", "a fit"}
    assert list(tmp_path.iterdir()) == []
