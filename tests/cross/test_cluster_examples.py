"""The scripts in examples/cluster: two run for real on this machine, the others are read by who would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"

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


def test_slurm_starts_what_the_program_expects(tmp_path: Path) -> None:
    """With an srun that prints what it got."""
    text = (CLUSTER / "slurm.sh").read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    # Directives behind the first command are not read.
    assert text.rindex("#SBATCH") < text.index("set -euo")
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    variables = {"SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(CLUSTER), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(CLUSTER / "slurm.sh"), "--epochs", "3"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["python", "train.py", "--num-nodes", "2", "--folder", "run", "--epochs", "3"]


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
