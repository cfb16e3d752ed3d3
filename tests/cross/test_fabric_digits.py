"""The user's own loop gives the same result in one process, in two that Fabric starts, and in two of torchrun."""

import io
import os
import re
import runpy
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from torch.distributed.run import main as torchrun

from fulmen.fabric.seeding import isolate_rng

REPOSITORY = Path(__file__).parents[2]
RUN = [str(REPOSITORY / "examples" / "fabric" / "ddp.py"), "--epochs", "2"]


def printed_by(text: str) -> list[str]:
    return [line for line in text.splitlines() if "loss" in line]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    # Here rather than in a process of its own: to import torch, its compiler and scikit-learn takes 10 s.
    with pytest.MonkeyPatch.context() as patch, isolate_rng(), redirect_stdout(io.StringIO()) as output:
        patch.setattr(sys, "argv", RUN)
        for name in ("FULMEN_GLOBAL_SEED", "FULMEN_SEED_WORKERS"):
            patch.setenv(name, "0")  # so that what the example sets is taken back
        runpy.run_path(RUN[0], run_name="__main__")
    return printed_by(output.getvalue())


def test_the_example_learns(alone):
    assert len(alone) == 3  # printed once: two epochs and the test
    accuracy = re.fullmatch(r"test loss \d\.\d{4}, test accuracy (\d\.\d{4})", alone[-1])
    assert accuracy is not None
    assert float(accuracy[1]) > 0.8


def test_two_processes_print_what_one_prints(alone):
    done = subprocess.run(
        [sys.executable, *RUN, "--devices", "2"],
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert printed_by(done.stdout) == alone


def test_two_processes_of_torchrun_print_what_one_prints(alone, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        torchrun(["--standalone", "--nproc-per-node", "2", *RUN])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert printed_by(capfd.readouterr().out) == alone
