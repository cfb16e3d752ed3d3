"""A SLURM job whose time is nearly over: its fit is kept, and the job put back into the queue.

SLURM then runs the same program again, under the same number. What that run goes on from without being asked is only
what this very job has left: other jobs, and strangers, may write to the same folder.
"""

import subprocess
from collections.abc import Mapping
from typing import Any

from fulmen.fabric.checkpoint_io.lazy import lazy_load
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed, is_sharded
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.slurm import SLURMEnvironment
from fulmen.fabric.filesystem import is_local, join, list_dir
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer.checkpoint.dump import FULMEN_KEY
from fulmen.trainer.checkpoint.paths import next_hpc_name

JOB_KEY = "slurm_job"
_COMMAND_TAKES_S = 60.0


class Requeue:
    """How this job gets back into the queue, and what it left when it was there before.

    Args:
        job: Its number; that of an array and of its task, for one of an array.
        command: Puts it back; run without a shell.
        signum: The signal at which that is done.
        num_restarts: How often SLURM has run it before.
    """

    def __init__(self, job: str, command: list[str], signum: int, num_restarts: int) -> None:
        self.job = job
        self.command = command
        self.signum = signum
        self.num_restarts = num_restarts

    @classmethod
    def of(cls, environment: ClusterEnvironment) -> "Requeue | None":
        """None where there is no SLURM job, or it is not to be requeued."""
        if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
            return None
        command, signum = environment.requeue_command(), environment.requeue_signal
        if command is None or signum is None:
            return None
        return cls(command[-1], command, int(signum), environment.restart_count())

    def left_before(self, hpc: Mapping[str, float]) -> dict[str, float]:
        """Of these checkpoints those that this job has left, in the same order; none if it runs the first time."""
        return {path: time_s for path, time_s in hpc.items() if self.num_restarts and _job_of(path) == self.job}

    def next_path(self, root_dir: str) -> str:
        """Where to keep the fit."""
        return join(root_dir, next_hpc_name(list_dir(root_dir)))

    def mark(self, checkpoint: dict[str, Any]) -> None:
        """Write down whose checkpoint it is."""
        checkpoint.setdefault(FULMEN_KEY, {})[JOB_KEY] = self.job

    def put_back(self) -> None:
        """Put the job back into the queue; SLURM then ends this one. If that fails, the user hears why."""
        said = " ".join(self.command)
        try:
            done = subprocess.run(
                self.command, capture_output=True, text=True, timeout=_COMMAND_TAKES_S, check=False, errors="replace"
            )
            problem = f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if problem:
            rank_zero_warn(
                f"`{said}` did not put the job back into the queue ({problem}). It ends here, and its checkpoint is"
                f" kept. Submit it again, with Trainer.fit(..., ckpt_path='hpc'), or run `{said}` by hand."
            )
        else:
            rank_zero_info(f"The job {self.job} was put back into the queue.")


def _job_of(path: str) -> str | None:
    """The job that wrote the checkpoint; None if it does not say, or cannot be read."""
    try:
        own = _own_state(path)
    except Exception:  # damaged, or not a checkpoint: whose it is cannot be told
        return None
    return own.get(JOB_KEY) if isinstance(own, Mapping) else None


def _own_state(path: str) -> Any:
    if is_sharded(path):
        from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder

        asked: dict[str, Any] = {FULMEN_KEY: None}
        ShardedFolder(path).load(asked)
        return asked[FULMEN_KEY]
    if is_deepspeed(path):
        from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder

        return DeepSpeedFolder(path).client_state().get(FULMEN_KEY)
    if not is_local(path):
        from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO

        return TorchCheckpointIO().load_checkpoint(path).get(FULMEN_KEY)
    return lazy_load(path, verify=False).get(FULMEN_KEY)  # the tensors stay in the file
