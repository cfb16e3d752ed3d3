"""The scripts in examples/cluster: all but that for Kubernetes start real processes on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
PROGRAM = CLUSTER / "train.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bash and processes of Unix")


def run(script: str, folder: Path, **variables: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(CLUSTER / script), "--accelerator", "cpu", "--epochs", "1", "--folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_torchrun(tmp_path: Path) -> None:
    # Port 0: any that is free.
    assert "2 processes, 29 steps" in run("torchrun.sh", tmp_path, PORT="0", PER_MACHINE="2", MAX="1")
    assert list(tmp_path.glob("checkpoints/*.ckpt"))


@pytest.mark.timeout(600)
def test_mpi(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    if shutil.which("mpiexec", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("there is no mpiexec")
    assert "2 processes, 29 steps" in run("mpi.sh", tmp_path, PROCESSES="2")


@pytest.mark.parametrize("script", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_a_script_is_bash_and_can_be_executed(script: str) -> None:
    path = CLUSTER / script
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


# Two nodes with a task each, and the signal of `sbatch --signal` once something is worth keeping.
SRUN = """
import os, pathlib, signal, subprocess, sys, time

print("srun", *sys.argv[1:], flush=True)
tasks = []
for rank in range(2):
    place = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0, "SLURM_STEP_NODELIST": "localhost"}
    place |= {"SLURM_NTASKS": 2, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_ID": 0}
    tasks.append(subprocess.Popen(sys.argv[1:], env={**os.environ, **{name: str(at) for name, at in place.items()}}))
saved = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1], "checkpoints")
while os.environ["SLURM_RESTART_COUNT"] == "0" and not any(task.poll() is not None for task in tasks):
    if any(saved.glob("*.ckpt")):
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
        break
    time.sleep(0.1)
sys.exit(max(map(abs, [task.wait() for task in tasks])))
"""


@pytest.mark.timeout(600)
def test_slurm_runs_the_job_again_before_its_time_is_over(tmp_path: Path) -> None:
    """With an srun that starts what it is told to, and an scontrol that writes down what it is asked."""
    (tmp_path / "srun").write_text(f"#!{sys.executable}{SRUN}")
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "scontrol.txt"}\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    folder, path = tmp_path / "run", os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent)])
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "digits", "SLURM_SUBMIT_DIR": str(CLUSTER)}
    job |= {"OMP_NUM_THREADS": "1", "FOLDER": str(folder), "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}

    def submit(num_restarts: int, epochs: int) -> str:
        # Kept here, so that nobody else can take its port, which is made of the number of the job else.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        job.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
        script = subprocess.Popen(
            [str(CLUSTER / "slurm.sh"), "--accelerator", "cpu", "--epochs", str(epochs)],
            env={**os.environ, **job, "SLURM_RESTART_COUNT": str(num_restarts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = script.communicate(timeout=280)
        finally:
            # Whatever failed: tasks that nobody told to end would train for hours.
            with suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
        # SLURM ends a job that was put back; here it ends by itself, as programs do that a signal has ended.
        assert script.returncode == (0 if num_restarts else 128 + signal.SIGUSR1), stdout + stderr
        return stdout

    started, *_ = submit(0, 100_000).splitlines()
    assert started.startswith(f"srun python {PROGRAM.name} --num-nodes 2 --folder {folder} --accelerator cpu")
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 41\n"
    kept = torch.load(folder / "hpc_ckpt_1.ckpt", weights_only=True)
    epochs = int(kept["epoch"]) + 1
    assert f"2 processes, {29 * epochs} steps" in submit(1, epochs)
    assert kept["global_step"] > 0


def test_slurm_asks_for_a_task_for_each_gpu() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    # Directives behind the first command are not read.
    assert text.rindex("#SBATCH") < text.index("set -euo")
    assert directives["signal"].startswith("SIGUSR1@")


def test_kubernetes_says_the_same_everywhere() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    options: dict[str, Any] = dict(word[2:].split("=") for word in container["args"] if word.startswith("--"))
    assert int(options["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name = job["metadata"]["name"]
    assert options["rdzv-endpoint"].split(":")[0] == f"{name}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert options["folder"].startswith(container["volumeMounts"][0]["mountPath"])
