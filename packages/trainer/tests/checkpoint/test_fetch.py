import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.trainer.checkpoint.fetch import (
    find_model_local_ckpt_path,
    is_elsewhere,
    is_registry,
    model_folder,
    registered_name,
)
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import CheckpointNotFoundError, MissingPackageError

names = st.from_regex(r"[a-z0-9-]+(/[a-z0-9-]+){0,2}", fullmatch=True).filter(lambda name: name != "version")
versions = st.from_regex(r"v?[0-9]+(\.[0-9]+)*", fullmatch=True)


@given(asked=st.none() | names, version=st.none() | versions, default=st.none() | names)
def test_the_parts_of_a_name_are_found_again(asked, version, default):
    path = "registry" + (f":{asked}" if asked else "") + (f":version:{version}" if version else "")
    assert is_registry(path)
    name = asked or default
    if name is None:
        with pytest.raises(FileNotFoundError, match="names no model"):
            registered_name(path, default)
    else:
        assert registered_name(path, default) == (f"{name}:{version}" if version else name)


def test_other_paths_are_no_names():
    assert not any(is_registry(path) for path in ("registry.ckpt", "my/registry:a", "best", None, 3))
    assert is_elsewhere("REGISTRY:net")
    assert is_elsewhere("https://host/net.ckpt")
    assert not is_elsewhere("net.ckpt")


@given(names, versions)
def test_each_version_has_a_folder_of_its_own(name, version):
    folders = {model_folder(full, "root") for full in (name, f"{name}:{version}", f"{name}:{version}1")}
    assert len(folders) == 3
    assert all("/" not in folder.removeprefix("root/") and ":" not in folder for folder in folders)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    return torch.utils.data.DataLoader(torch.ones(2, 2))


@pytest.fixture
def registry(monkeypatch, quick, tmp_path):
    """The package that talks to a registry, with one model in it."""
    first = quick()
    first.fit(Net(), data())
    asked = []

    def download_model(name, download_dir):
        asked.append(name)
        if name.startswith("team/net"):
            first.save_checkpoint(f"{download_dir}/net.ckpt")

    package = types.ModuleType("litmodels")
    package.download_model = download_model
    monkeypatch.setitem(sys.modules, "litmodels", package)
    return asked


@pytest.mark.parametrize(
    ("ckpt_path", "default", "name"),
    [
        ("registry", "team/net", "team/net"),
        ("registry:version:2", "team/net", "team/net:2"),
        ("registry:team/net:version:3", "other", "team/net:3"),
    ],
)
def test_a_run_goes_on_from_a_registered_model(ckpt_path, default, name, registry, quick, tmp_path):
    trainer = quick(max_epochs=2, model_registry=default)
    trainer.fit(Net(), data(), ckpt_path=ckpt_path)
    assert registry == [name]
    assert trainer.global_step == 4
    assert trainer.ckpt_path == find_model_local_ckpt_path(ckpt_path, default, str(tmp_path))


def test_a_model_without_a_checkpoint_is_told(registry, quick):
    with pytest.raises(CheckpointNotFoundError, match=r"'other'.*no \.ckpt file"):
        quick().fit(Net(), data(), ckpt_path="registry:other")


def test_without_the_package_or_a_name_nothing_begins(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "litmodels", None)
    heard = []
    net = Net()
    net.prepare_data = lambda: heard.append("prepare_data")
    with pytest.raises(MissingPackageError, match="pip install litmodels"):
        quick(model_registry="team/net").fit(net, data(), ckpt_path="registry")
    with pytest.raises(FileNotFoundError, match="names no model"):
        quick().fit(net, data(), ckpt_path="registry")
    assert heard == []
