"""SIGTERM and Ctrl-C end a run in good order, at once, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
from pathlib import Path
import torch
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.loggers import CSVLogger

folder = Path(sys.argv[1])


def note(line):
    with open(folder / f"rank-{os.environ.get('LOCAL_RANK', '0')}.txt", "a") as file:
        print(line, file=file, flush=True)


class Notes(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        note(f"batch {trainer.global_step} pid {os.getpid()}")
        time.sleep(0.03)

    def on_exception(self, trainer, module, exception):
        note(f"on_exception {type(exception).__name__} {getattr(exception, 'code', '')}")

    def teardown(self, trainer, module, stage):
        note(f"teardown {stage} {trainer.interrupted} {trainer.received_sigterm}")


class Logger(CSVLogger):
    def finalize(self, status):
        super().finalize(status)
        note(f"finalize {status}")


if __name__ == "__main__":
    # Threads that would slow a busy machine down.
    torch.set_num_threads(1)
    trainer = Trainer(
        accelerator="cpu", devices=int(sys.argv[2]), strategy=sys.argv[3], max_epochs=-1, limit_val_batches=0,
        callbacks=[Notes()], logger=Logger(folder), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(BoringModel())
    note("the fit returned")
"""


def hear_every_signal() -> None:
    """Who started these tests may have had signals ignored, as a shell does for what it runs in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(folder: Path, devices: int, strategy: str) -> Iterator[subprocess.Popen[str]]:
    """The program, once every rank has trained some batches; nothing of it is left afterwards."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder), str(devices), strategy],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        start_new_session=True,
        preexec_fn=hear_every_signal,
    )
    try:
        while not all("batch 3 " in notes(folder, rank) for rank in range(devices)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def notes(folder: Path, rank: int = 0) -> str:
    path = folder / f"rank-{rank}.txt"
    return path.read_text() if path.exists() else ""


def pids(folder: Path, devices: int) -> list[int]:
    return [int(notes(folder, rank).split(" pid ")[1].split()[0]) for rank in range(devices)]


def is_alive(pid: int) -> bool:
    """Is there such a process, other than one that has ended and waits to be asked how?"""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes are there"),
    pytest.mark.timeout(600),  # for a busy machine
]


@pytest.mark.parametrize(("devices", "strategy"), [(1, "auto"), (2, "ddp"), (2, "ddp_fork")])
def test_sigterm_ends_a_fit_after_the_batch_in_work(devices: int, strategy: str, tmp_path: Path) -> None:
    with running(tmp_path, devices, strategy) as process:
        before = notes(tmp_path).count("batch ")
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 143, stderr  # what shells expect of a program that SIGTERM has ended
        assert not any(is_alive(pid) for pid in pids(tmp_path, devices))
    lines = notes(tmp_path).splitlines()
    assert lines[-3:] == ["on_exception InterruptedBySignal 143", "finalize failed", "teardown fit True True"]
    batches = lines[:-3]
    assert all(line.startswith("batch ") for line in batches)
    assert len(batches) - before < 1000  # 30 s: a signal takes a while, and to train for ever longer
    assert "the fit returned" not in notes(tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_a_signal_to_one_process_stops_all_at_the_same_batch_and_keeps_a_checkpoint(
    strategy: str, tmp_path: Path
) -> None:
    with running(tmp_path, 2, strategy) as process:
        os.kill(pids(tmp_path, 2)[1], signal.SIGTERM)
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 143, stderr
        assert not any(is_alive(pid) for pid in pids(tmp_path, 2))
    batches = [[line.split()[1] for line in notes(tmp_path, rank).splitlines() if "pid" in line] for rank in (0, 1)]
    assert batches[0] == batches[1]
    [path] = tmp_path.rglob("*.ckpt")
    assert path.name == "stopped.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == int(batches[0][-1])


@pytest.mark.parametrize(("devices", "strategy"), [(2, "ddp"), (2, "ddp_fork")])
def test_ctrl_c_ends_a_fit_with_130(devices: int, strategy: str, tmp_path: Path) -> None:
    with running(tmp_path, devices, strategy) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 130, stderr
        assert not any(is_alive(pid) for pid in pids(tmp_path, devices))
    ends = [line for line in notes(tmp_path).splitlines() if not line.startswith("batch ")]
    assert ends == ["on_exception KeyboardInterrupt ", "finalize failed", "teardown fit True False"]
