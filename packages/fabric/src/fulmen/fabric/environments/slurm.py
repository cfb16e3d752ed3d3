"""SLURM: processes that `srun` started.

Everything is read from the variables that SLURM sets. They are data: what is used as a number is a number, what is used
as a host name looks like one, and no string made of them ever reaches a shell.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from typing import Final

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.environments.base import ClusterEnvironment, check_host, read_int
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, HardwareError
from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_warn

# The names of jobs in which somebody types: there is no task per process, and our launchers start them.
_INTERACTIVE_JOBS: Final = frozenset({"bash", "interactive"})
# Where the first node's name is looked for: a step may have fewer nodes than its job.
_NODE_LISTS: Final = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
_FIRST_PORT: Final = 15000
_PORT_WITHOUT_JOB: Final = 12910


class SLURMEnvironment(ClusterEnvironment):
    """The tasks of a SLURM job, one per process.

    Start the program by `srun`, with as many tasks per node as devices. A job in which somebody types (its name is
    "bash" or "interactive") is not detected: there our launchers start the processes.

    Args:
        auto_requeue: May a trainer that gets `requeue_signal` put the job back into the queue?
        requeue_signal: The signal that SLURM sends before the time is over (`sbatch --signal`); SIGUSR1 by default.
    """

    def __init__(self, auto_requeue: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        if requeue_signal is not None and not isinstance(requeue_signal, signal.Signals):
            raise ArgumentTypeError(
                f"SLURMEnvironment(requeue_signal={requeue_signal!r}) is no signal. It is the one that SLURM sends"
                " before the time of the job is over. Pass a member of signal.Signals, such as signal.SIGUSR1."
            )
        check_flag(self, "auto_requeue", auto_requeue)
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal
        if requeue_signal is None and sys.platform != "win32":
            self.requeue_signal = signal.SIGUSR1

    @property
    def creates_processes_externally(self) -> bool:
        """True: `srun` starts them."""
        return True

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, or the first node of the job step."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        for variable in _NODE_LISTS:
            if nodes := os.environ.get(variable):
                return self.resolve_root_node_address(nodes)
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, or a port made of the numbers of job and step, the same in all its processes."""
        if "MASTER_PORT" in os.environ:
            return read_int("MASTER_PORT")
        job_id = self.job_id()
        if job_id is None:
            return _PORT_WITHOUT_JOB
        # Several steps of one job may run on one node at the same time.
        step_id = os.environ.get("SLURM_STEP_ID", "")
        return _FIRST_PORT + (job_id + (int(step_id) if _is_number(step_id) else 0)) % 10000

    @staticmethod
    def detect() -> bool:
        """Did `srun` start this process? Warns where it could have, and somebody else did."""
        if _is_interactive():
            return False
        has_tasks = "SLURM_NTASKS" in os.environ
        if not has_tasks and shutil.which("srun") is not None:
            rank_zero_warn(
                "The command `srun` is there, and did not start this program. On a cluster with SLURM, a program that"
                " runs without it gets one process of one node, whatever was allocated."
                f" In a job, start it by `srun python {os.path.basename(sys.argv[0]) if sys.argv else ''} ...`.",
                category=PossibleUserWarning,
            )
        return has_tasks

    @staticmethod
    def job_name() -> str | None:
        """`SLURM_JOB_NAME`."""
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """`SLURM_JOB_ID`; None in a job in which somebody types, and where there is none or it is no number."""
        job_id = os.environ.get("SLURM_JOB_ID", "")
        return int(job_id) if _is_number(job_id) and not _is_interactive() else None

    @staticmethod
    def restart_count() -> int:
        """How often SLURM has run this job before: `SLURM_RESTART_COUNT`, 0 if it is not set or no number."""
        count = os.environ.get("SLURM_RESTART_COUNT", "")
        return int(count) if _is_number(count) else 0

    def requeue_command(self) -> list[str] | None:
        """The words of the command that puts this job back into the queue; None if its number is not known.

        For `subprocess.run` without a shell. A job of an array is named by the array's number and its own.
        """
        array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
        if _is_number(array) and _is_number(task):
            return ["scontrol", "requeue", f"{int(array)}_{int(task)}"]
        job_id = self.job_id()
        return None if job_id is None else ["scontrol", "requeue", str(job_id)]

    def world_size(self) -> int:
        """`SLURM_NTASKS`."""
        return read_int("SLURM_NTASKS", tool="srun")

    def set_world_size(self, size: int) -> None:
        """Nothing: SLURM knows."""

    def global_rank(self) -> int:
        """`SLURM_PROCID`."""
        return read_int("SLURM_PROCID", tool="srun")

    def set_global_rank(self, rank: int) -> None:
        """Nothing: SLURM knows."""

    def local_rank(self) -> int:
        """`SLURM_LOCALID`."""
        return read_int("SLURM_LOCALID", tool="srun")

    def node_rank(self) -> int:
        """`SLURM_NODEID`."""
        return read_int("SLURM_NODEID", tool="srun")

    def local_world_size(self) -> int | None:
        """Tasks on this node, if SLURM says so."""
        tasks = _tasks_per_node()
        if len(tasks) <= 1:
            return tasks[0] if tasks else None
        node_rank = self.node_rank()
        return tasks[node_rank] if node_rank < len(tasks) else None

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a number of processes that is not that of the job's tasks.

        Raises:
            ConfigurationError: If there are other numbers of nodes or of tasks than asked for.
            HardwareError: If it is not said how many tasks run on a node.
        """
        if _is_interactive():
            return
        num_tasks, tasks = read_int("SLURM_NTASKS", 1), _tasks_per_node()
        if num_tasks > 1 and not tasks:
            raise HardwareError(
                f"SLURM started {num_tasks} tasks, and SLURM_NTASKS_PER_NODE is not set."
                " One process runs on each device, so their number on each node must be known."
                f" Ask for `--ntasks-per-node={num_devices}` instead of `--ntasks={num_tasks}`."
            )
        nodes = read_int("SLURM_NNODES", num_nodes)
        if nodes != num_nodes:
            raise ConfigurationError(
                f"num_nodes={num_nodes} was asked for, and SLURM runs this job on {nodes} node(s) (SLURM_NNODES)."
                f" Both must say the same. Pass num_nodes={nodes}, or ask SLURM for `--nodes={num_nodes}`."
            )
        wrong = [count for count in tasks if count != num_devices] if tasks else []
        if wrong or num_tasks != num_devices * num_nodes:
            found = f"{wrong[0]} task(s) on a node" if wrong else f"{num_tasks} task(s) in all (SLURM_NTASKS)"
            raise ConfigurationError(
                f"devices={num_devices} and num_nodes={num_nodes} ask for {num_devices} process(es) per node,"
                f" and SLURM runs {found}. One process runs on each device, and SLURM starts them."
                f" {_advice(num_devices)}"
            )

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        """The first host of a node list, as SLURM writes it.

        >>> SLURMEnvironment.resolve_root_node_address("rack[2-3]node[07,11-13],login1")
        'rack2node07'

        Raises:
            ConfigurationError: If that is no host name.
        """
        first = re.split(r"[,\s](?![^\[]*\])", nodes.strip(), maxsplit=1)[0]
        host = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)
        return check_host(host, f"The node list {nodes!r} of SLURM")


def _is_interactive() -> bool:
    return SLURMEnvironment.job_name() in _INTERACTIVE_JOBS


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _tasks_per_node() -> list[int]:
    """For each node its number of tasks, or one number for all; empty if SLURM does not say."""
    # What holds for this step goes before what was asked for the job.
    if "SLURM_STEP_TASKS_PER_NODE" in os.environ:
        return expand_counts(os.environ["SLURM_STEP_TASKS_PER_NODE"], "SLURM_STEP_TASKS_PER_NODE")
    if "SLURM_NTASKS_PER_NODE" in os.environ:
        return [read_int("SLURM_NTASKS_PER_NODE", tool="srun")]
    if "SLURM_TASKS_PER_NODE" in os.environ:
        return expand_counts(os.environ["SLURM_TASKS_PER_NODE"], "SLURM_TASKS_PER_NODE")
    return []


def expand_counts(text: str, source: str) -> list[int]:
    """The numbers of a list in which SLURM writes n times the same as "(xn)".

    >>> expand_counts("2(x3),1", "SLURM_TASKS_PER_NODE")
    [2, 2, 2, 1]

    Raises:
        ConfigurationError: If it is no such list.
    """
    counts: list[int] = []
    for part in text.split(","):
        # No cluster has a million nodes: a list that says so is not worth its memory.
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\(x([0-9]{1,6})\))?\s*", part)
        if match is None:
            raise ConfigurationError(
                f"The environment variable {source} is {text!r}. It must hold the number of tasks on each node, such"
                " as '2(x3),1'. Start the program by `srun`, which sets it, or unset it."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _advice(num_devices: int) -> str:
    if "SLURM_STEP_ID" in os.environ:
        return f"Ask SLURM for `--ntasks-per-node={num_devices}`, or pass devices='auto'."
    # A batch script is a task too, the only one until it calls `srun`.
    return (
        f"Ask SLURM for `--ntasks-per-node={num_devices}` and start the program by `srun`, or pass"
        " plugins=LightningEnvironment() to have the processes of one node started for you."
    )
