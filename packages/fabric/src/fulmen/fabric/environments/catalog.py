"""The environments we know, and which one this process is in."""

from __future__ import annotations

import importlib
from typing import Final

from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.environments.default import LightningEnvironment

# Asked in this order. torchrun goes first: it also runs inside the jobs of the others. Loaded only to be asked.
_ORDER: Final = (
    ("torchelastic", "TorchElasticEnvironment"),
    ("slurm", "SLURMEnvironment"),
    ("lsf", "LSFEnvironment"),
    ("mpi", "MPIEnvironment"),
    ("kubeflow", "KubeflowEnvironment"),
)


def detect_environment() -> ClusterEnvironment:
    """The first environment that finds itself around this process; `LightningEnvironment` if none does."""
    for module, name in _ORDER:
        kind: type[ClusterEnvironment] = getattr(importlib.import_module(f"fulmen.fabric.environments.{module}"), name)
        if kind.detect():
            return kind()
    return LightningEnvironment()
