"""A process of a run raises, dies, hangs or is stopped: the others end, and the user hears which one, and where."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
from datetime import timedelta
import torch
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.callbacks import OnExceptionCheckpoint
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.strategies import DDPStrategy


class Saves(Callback):
    # A save of the user's own, of which nothing of ours knows.
    def __init__(self, case):
        self.case = case

    def on_exception(self, trainer, pl_module, exception):
        began_s = time.monotonic()
        try:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/own.ckpt")
        finally:
            # A file of its own: lines on one pipe can mix with another process's traceback.
            with open(f"{trainer.default_root_dir}/own-{self.case}-{trainer.global_rank}", "w") as file:
                file.write(str(time.monotonic() - began_s))


class Net(BoringModel):
    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.case == "all raise":
            raise ValueError("the mistake of all")
        if batch_idx == 2 and self.global_rank == 1:
            self.lost()
        elif batch_idx == 2 and self.case == "dies while the other computes":
            time.sleep(600)
        return super().training_step(batch, batch_idx)

    def lost(self):
        if self.case == "raises":
            raise ValueError("the mistake of rank one")
        if self.case == "hangs":
            time.sleep(600)
        if self.case == "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.case == "Ctrl-C twice":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(2)  # longer than one press
        open(f"{self.trainer.default_root_dir}/died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


def fit(case, folder, **strategy):
    torch.set_num_threads(1)
    model = Net()
    model.case = case
    if case == "Ctrl-C twice":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # forked processes have that of torchrun's agent
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(timeout=timedelta(seconds=12), **strategy), max_epochs=1,
        limit_val_batches=0, logger=False, enable_checkpointing="raise" in case, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[OnExceptionCheckpoint(folder), Saves(case)] if "raise" in case else [],
    )
    try:
        trainer.fit(model)
    except SystemExit:
        if case == "Ctrl-C twice" and trainer.global_rank == 1:
            began_s = time.monotonic()
            try:
                trainer.save_checkpoint(f"{folder}/twice.ckpt")
            except Exception as error:
                with open(f"{folder}/twice", "w") as file:
                    file.write(f"{time.monotonic() - began_s} {error}")
        raise


def under_torchrun(case, folder):
    # torchrun's own agent, with forked processes in the place of new Pythons.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="fork", max_restarts=0,
    )
    try:
        elastic_launch(config, fit)(case, folder)
    except ChildFailedError:
        if "dies" in case:
            print("SECONDS", time.time() - os.path.getmtime(f"{folder}/died"))
        sys.exit(1)


def main(folder, *cases):
    # What a fit imports is imported once.
    BoringModel.case = ""
    Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder).fit(BoringModel())
    for number, case in enumerate(cases):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            with open(f"{folder}/{number}.txt", "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if case in ("dies while the other computes", "Ctrl-C twice"):
                under_torchrun(case, folder)
            else:
                fit(case, folder, start_method="fork")
            sys.exit(0)
        print(number, pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""
CASES = ("raises", "dies", "hangs", "is stopped", "dies while the other computes", "all raise", "Ctrl-C twice")

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes are there")


def of_session(session: int) -> list[str]:
    """The processes of this session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(path.parent.name)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all cases."""
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def ends(folder: Path) -> Any:
    """For each case: what the run printed, its exit code, and the processes that it has left."""
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(folder / "program.py"), str(folder), *CASES],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        number, pid, code = map(int, line.split())
        found[CASES[number]] = ((folder / f"{number}.txt").read_text(), code, of_session(pid))
    assert list(found) == list(CASES)
    return found


def test_no_process_is_left_and_the_run_fails(ends: Any) -> None:
    assert {case: (code, left) for case, (_, code, left) in ends.items()} == dict.fromkeys(CASES, (1, []))


def test_the_traceback_of_the_one_that_raised_comes_last(ends: Any) -> None:
    assert ends["raises"][0].rstrip().endswith("ValueError: the mistake of rank one")
    assert "Rank 1 of 2 failed first" in ends["raises"][0]


def test_who_fails_alone_waits_for_nobody_to_save_with(ends: Any) -> None:
    # The others are in a collective, and do not come.
    printed, *_ = ends["raises"]
    assert "OnExceptionCheckpoint saves nothing: the run failed in rank 1 of 2 alone." in printed
    assert "timed out" not in printed.lower()


def test_a_save_of_the_users_own_is_refused_where_one_fails_alone(ends: Any, folder: Path) -> None:
    printed, *_ = ends["raises"]
    assert "/own.ckpt') was called in rank 1 of 2, after the run had failed in this rank alone." in printed
    seconds = float((folder / "own-raises-1").read_text())
    assert seconds < 10, "less than the timeout of a collective"


def test_a_save_of_the_users_own_is_kept_where_all_fail(ends: Any, folder: Path) -> None:
    assert [rank for rank in range(2) if (folder / f"own-all raise-{rank}").is_file()] == [0, 1], ends["all raise"][0]
    assert torch.load(folder / "own.ckpt", weights_only=True)["global_step"] == 2


def test_a_save_after_the_second_ctrl_c_is_refused_at_once(ends: Any, folder: Path) -> None:
    seconds, _, said = (folder / "twice").read_text().partition(" ")
    assert "/twice.ckpt') was called in rank 1 of 2, after Ctrl-C had ended the run in the middle of its work." in said
    assert float(seconds) < 10, ends["Ctrl-C twice"][0]
    assert not (folder / "twice.ckpt").exists()


def test_the_one_that_died_is_named(ends: Any) -> None:
    assert "Rank 1 of 2 failed first" in ends["dies"][0]
    assert "was killed by SIGKILL" in ends["dies"][0]


def test_the_one_that_hangs_is_named_with_its_stack(ends: Any) -> None:
    printed = ends["hangs"][0]
    assert "ProcessHangsError: Rank 1 of 2 hangs" in printed
    last = [line for line in printed.splitlines() if line.strip()][-2:]
    assert [line.strip() for line in last] == [last[0].strip(), "time.sleep(600)"]
    assert "in lost" in last[0]


def test_of_the_one_that_was_stopped_it_is_said(ends: Any) -> None:
    printed = ends["is stopped"][0]
    assert "ProcessHangsError: Rank 1 of 2 hangs" in printed
    assert "does not answer" in printed
    assert "it was stopped" in printed


def test_under_torchrun_a_process_that_computes_ends_by_itself_when_another_one_has_died(ends: Any) -> None:
    printed = ends["dies while the other computes"][0]
    # torchrun only asks it to end, and kills it half a minute later. By itself it needs three seconds.
    assert float(printed.rpartition("SECONDS ")[2].split()[0]) < 25
