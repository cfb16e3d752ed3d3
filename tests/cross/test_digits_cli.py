"""The example that the README begins with: two commands train a classifier of digits, and test the best of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

CONFIG = Path(__file__).parents[2] / "examples" / "digits" / "config.yaml"
COMMAND = (
    ["lightning-cli"]
    if shutil.which("lightning-cli")
    else [
        sys.executable,
        "-P",
        "-c",
        "import sys; sys.argv[0] = 'lightning-cli'; from fulmen.cli.command import main; main()",
    ]
)


def run(*arguments: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FULMEN_")}
    ended = subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Warning" not in ended.stderr, ended.stderr
    return ended.stdout


def test_digits_from_the_command_line(tmp_path: Path) -> None:
    shown = run("fit", "--config", str(CONFIG), cwd=tmp_path)
    assert re.search(r"Epoch 9/9.*loss=.*acc=", shown), "a progress bar with loss and accuracy"
    results = dict(line.split(maxsplit=1) for line in shown.partition("Results:\n")[2].splitlines())
    assert results["folder"] == "lightning_logs/version_0"
    for name in ("metrics", "configuration"):
        assert (tmp_path / results[name]).is_file()
    best = re.search(r"best checkpoint\s+(.*)", shown)
    assert best is not None
    assert (tmp_path / best[1]).is_file()
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "curves" not in results
    else:
        assert (tmp_path / results["curves"]).read_bytes().startswith(b"\x89PNG")

    shown = run("test", "--config", str(CONFIG), "--ckpt_path", "best", cwd=tmp_path)
    accuracy = re.search(r"test_acc\s+\S+\s+([\d.]+)", shown)
    assert accuracy is not None, shown
    assert float(accuracy[1]) > 0.97
