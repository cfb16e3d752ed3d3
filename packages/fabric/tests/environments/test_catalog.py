import os

import pytest

from fulmen.fabric.environments.catalog import detect_environment
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.environments.kubeflow import KubeflowEnvironment
from fulmen.fabric.environments.slurm import SLURMEnvironment
from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment

# More of them at the same time: see test_selection.py.
_VARIABLES = {
    LightningEnvironment: {},
    KubeflowEnvironment: {
        "KUBERNETES_PORT": "x",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "WORLD_SIZE": "2",
        "RANK": "0",
    },
    SLURMEnvironment: {"SLURM_NTASKS": "2"},
    TorchElasticEnvironment: {"TORCHELASTIC_RUN_ID": "me", "SLURM_NTASKS": "2"},
}


@pytest.mark.parametrize("kind", _VARIABLES)
def test_the_one_around_this_process_is_found(kind, monkeypatch):
    managers = ("SLURM_", "LSB_", "JSM_", "PMI_", "OMPI_", "KUBERNETES_", "TORCHELASTIC_", "MASTER_")
    for name in list(os.environ):
        if name.startswith(managers) or name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in _VARIABLES[kind].items():
        monkeypatch.setenv(name, value)
    assert type(detect_environment()) is kind
