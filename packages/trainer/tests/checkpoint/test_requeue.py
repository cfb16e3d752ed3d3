"""A SLURM job that is told that its time is nearly over. SLURM is a script named `scontrol`, and variables."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.environments import SLURMEnvironment
from fulmen.trainer import Callback, seed_everything
from fulmen.trainer.checkpoint.requeue import Requeue
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import InterruptedBySignal
from fulmen.trainer.run import signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SLURM and its signals are not there")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Lets this process be the only task of a job; answers with what `scontrol` was called with."""
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "scontrol"
    script.write_text(
        f'#!/bin/sh\nls "{tmp_path}" > "{tools}/seen"\necho "$@" >> "{tools}/said"\nexit ${{SCONTROL:-0}}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")

    def begin(number: str = "77", restarts: int = 0, **more: str) -> None:
        usual = {
            "NTASKS": "1",
            "PROCID": "0",
            "LOCALID": "0",
            "NODEID": "0",
            "JOB_NAME": "train",
            "NTASKS_PER_NODE": "1",
        }
        for name, value in {**usual, "JOB_ID": number, "RESTART_COUNT": str(restarts), **more}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    begin.said = lambda: (tools / "said").read_text().splitlines() if (tools / "said").exists() else []  # type: ignore[attr-defined]
    begin.seen = lambda: (tools / "seen").read_text().split()  # type: ignore[attr-defined]
    return begin


class Warned(Callback):
    """Gets the signal after so many steps."""

    def __init__(self, after: int, signum: int = signal.SIGUSR1) -> None:
        self.after, self.signum = after, signum
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        if trainer.global_step == self.after:
            os.kill(os.getpid(), self.signum)


class Adam(BoringModel):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(quick: Any, *, after: int = 0, signum: int = signal.SIGUSR1, asked: str | None = None, **flags: Any) -> Any:
    seed_everything(1)
    module, warned = Adam(), Warned(after, signum)
    trainer = quick(max_steps=8, limit_val_batches=0, callbacks=[warned], **flags)
    if after:
        with pytest.raises(InterruptedBySignal) as caught:
            trainer.fit(module, ckpt_path=asked)
        assert caught.value.code == 128 + signum
    else:
        trainer.fit(module, ckpt_path=asked)
    return module.layer.weight.detach().clone(), warned.steps


def test_the_fit_is_kept_the_job_requeued_and_the_next_run_goes_on_exactly(
    quick: Any, job: Any, tmp_path: Path
) -> None:
    whole, _ = fit(quick)
    job()
    before = signal.getsignal(signal.SIGUSR1)
    _, steps = fit(quick, after=3)
    assert steps == [1, 2, 3]
    assert signal.getsignal(signal.SIGUSR1) is before
    assert job.said() == ["requeue 77"]
    assert "hpc_ckpt_1.ckpt" in job.seen()  # it was there when the job was requeued
    job(restarts=1)
    _, steps = fit(quick, after=6)
    assert steps == [4, 5, 6]
    assert job.said() == ["requeue 77"] * 2
    job(restarts=2)
    # The command of the job is the same as in its first run, and so is the checkpoint that it begins with.
    weights, steps = fit(quick, asked="last")
    assert steps == [7, 8]
    assert torch.equal(weights, whole)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt"]


def test_what_another_job_or_a_stranger_left_is_not_gone_on_from(quick: Any, job: Any, tmp_path: Path) -> None:
    job("78")
    fit(quick, after=3)
    torch.save({"state_dict": {}, "epoch": 5}, tmp_path / "hpc_ckpt_8.ckpt")
    (tmp_path / "hpc_ckpt_9.ckpt").write_bytes(b"planted")
    job("77", restarts=1)
    assert fit(quick)[1] == list(range(1, 9))
    job("78", restarts=1)
    assert fit(quick)[1] == list(range(4, 9))
    job("78")  # its first run: it has left nothing yet
    assert fit(quick)[1] == list(range(1, 9))


def test_a_task_of_an_array_is_requeued_by_its_own_number(quick: Any, job: Any) -> None:
    job("79", ARRAY_JOB_ID="70", ARRAY_TASK_ID="4")
    fit(quick, after=2)
    assert job.said() == ["requeue 70_4"]


def test_another_signal_and_number_may_be_chosen(quick: Any, job: Any) -> None:
    job()
    fit(quick, after=2, signum=signal.SIGUSR2, plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR2)])
    assert job.said() == ["requeue 77"]


def test_without_auto_requeue_the_signal_is_the_users(quick: Any, job: Any, tmp_path: Path) -> None:
    job()
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        trainer = quick(max_steps=4, callbacks=[Warned(2)], plugins=[SLURMEnvironment(auto_requeue=False)])
        trainer.fit(BoringModel())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]
    assert trainer.global_step == 4
    assert job.said() == []


def test_sigterm_keeps_no_hpc_checkpoint_and_requeues_nothing(quick: Any, job: Any, tmp_path: Path) -> None:
    job()
    fit(quick, after=2, signum=signal.SIGTERM)
    assert job.said() == []
    assert list(tmp_path.glob("hpc*")) == []


def test_a_job_whose_processes_have_not_met_is_put_back_too(
    quick: Any, job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Waits(BoringModel):
        def configure_callbacks(self) -> Any:  # asked before the others are met, as what takes long there
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)
            return []

    job()
    monkeypatch.setattr(signals, "_SET_UP_WITHIN_S", 0.0)
    began_s = time.monotonic()
    with pytest.raises(InterruptedBySignal) as caught:
        quick(max_steps=4).fit(Waits())
    assert time.monotonic() - began_s < 60
    assert caught.value.signum == signal.SIGUSR1
    assert job.said() == ["requeue 77"]
    assert list(tmp_path.glob("*.ckpt")) == []  # there was nothing to keep


def test_a_run_that_is_over_is_not_put_back_and_the_program_goes_on(quick: Any, job: Any, tmp_path: Path) -> None:
    class EndsLate(BoringModel):
        def on_fit_end(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    job()
    trainer = quick(max_steps=2)
    trainer.fit(EndsLate())
    assert trainer.state.finished
    assert job.said() == []
    assert list(tmp_path.glob("hpc*")) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_requeue_that_fails_is_told(
    quick: Any, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    job()
    monkeypatch.setenv("SCONTROL", "3")
    if not there:
        (tmp_path / "tools" / "scontrol").unlink()
    with pytest.warns(UserWarning, match="`scontrol requeue 77` did not put the job back") as told:
        fit(quick, after=2)
    assert any(("exit code 3" if there else "No such file") in str(warning.message) for warning in told)
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists()


def test_who_is_no_job_is_not_requeued(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulmen.fabric.environments import LightningEnvironment

    assert Requeue.of(LightningEnvironment()) is None
    job("1; rm -rf /")
    assert Requeue.of(SLURMEnvironment()) is None
    job(JOB_NAME="bash")
    assert Requeue.of(SLURMEnvironment()) is None
    job(restarts=2)
    found = Requeue.of(SLURMEnvironment())
    assert found is not None
    assert (found.job, found.command, found.num_restarts) == ("77", ["scontrol", "requeue", "77"], 2)
