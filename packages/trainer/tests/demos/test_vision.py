import sys
import types

import pytest
from torch import nn

from fulmen.trainer.demos.vision import get_torchvision_model
from fulmen.trainer.errors import ConfigurationError


def test_a_model_comes_by_its_name(monkeypatch):
    """torchvision stands outside: what it is asked for is what counts."""

    def get_model_builder(name):
        if name != "resnet18":
            raise ValueError(name)
        return lambda weights=None: nn.Linear(1, 2 if weights else 1)

    models = types.ModuleType("torchvision.models")
    models.get_model_builder, models.list_models = get_model_builder, lambda: ["resnet18"]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert get_torchvision_model("resnet18", weights="DEFAULT").out_features == 2
    with pytest.raises(ConfigurationError, match=r"'resnet1'.*resnet18"):
        get_torchvision_model("resnet1")


def test_without_the_package_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        get_torchvision_model("resnet18")
