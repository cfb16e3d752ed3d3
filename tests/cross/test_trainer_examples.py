"""The examples in examples/trainer run, and learn what they set out to."""

import importlib
import multiprocessing
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainer"
# File, and the last number that it prints in such a line: at least, or at most.
CASES = {
    "finetuning.py": (r"^accuracy (\S+)", 0.9, 1.0),
    "ema.py": (r"^accuracy of the mean (\S+)", 0.9, 1.0),
    "pruning.py": (r"^zero: (\S+)%", 90.0, 92.0),
    "predictions.py": (r"^359 samples from 2 processes, accuracy (\S+)", 0.85, 1.0),
    "custom_callback.py": (r"^at the end: (\S+) mistakes", 0, 30),
    "custom_logger.py": (r"^accuracy (\S+)", 0.9, 1.0),
}


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """What the examples import: loaded once, and not in each of their processes."""
    for name in ("sklearn.datasets", "fulmen.trainer.trainer"):
        importlib.import_module(name)


def run(path: str) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(path, run_name="__main__")


@pytest.mark.timeout(600)  # on a machine that has much else to do
@pytest.mark.parametrize("name", CASES)
def test_an_example_learns(name, capfd, monkeypatch, tmp_path):
    line, lowest, highest = CASES[name]
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # A process of its own, so that seeds, threads and handlers of signals stay as they are here.
    process = multiprocessing.get_context("fork").Process(target=run, args=(str(EXAMPLES / name),))
    process.start()
    process.join()
    printed, told = capfd.readouterr()
    assert process.exitcode == 0, told
    found = re.findall(line, printed, re.MULTILINE)
    assert len(found) == 1, printed
    assert lowest <= float(found[0]) <= highest, printed
    if name == "pruning.py":
        assert float(re.findall(r"^accuracy (\S+)", printed, re.MULTILINE)[0]) > 0.9


def test_every_example_is_short_and_here():
    files = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(files) == {*CASES, "small_digits.py"}
    assert {name: len(text.splitlines()) for name, text in files.items() if len(text.splitlines()) > 100} == {}
    index = (EXAMPLES / "README.md").read_text()
    assert [name for name in files if f"[{name}]({name})" not in index] == []
