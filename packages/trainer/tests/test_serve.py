import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.serve import ServableModule, ServableModuleValidator


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.drop = nn.Dropout()

    def training_step(self, batch, batch_idx):
        assert self.drop.training, "serving left it in eval mode"
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Serving(Net, ServableModule):
    answer = (0, 1)

    def configure_payload(self):
        return {"body": {"x": [1.0, 2.0]}}

    def configure_serialization(self):
        return {"x": torch.tensor}, {"output": torch.Tensor.tolist}

    def serve_step(self, x):
        assert not self.drop.training
        assert not torch.is_grad_enabled()
        assert self.layer(x).shape == (2,)
        return {"output": torch.tensor(self.answer)}

    def configure_response(self):
        return {"output": [0, 1]}


class Wrong(Serving):
    answer = (1, 0)


class Broken(Serving):
    def serve_step(self, x):
        raise ZeroDivisionError("no way")


def fit(quick, module, **arguments):
    validator = ServableModuleValidator(**{"server": "http", "port": 0, **arguments})
    quick(callbacks=[validator], max_steps=1).fit(module, DataLoader(torch.ones(2, 2)))
    return validator


@pytest.mark.parametrize("server", ["http", "fastapi"])
def test_a_module_that_answers_right_is_trained(server, quick):
    if server == "fastapi":
        pytest.importorskip("fastapi")
        pytest.importorskip("uvicorn")
    validator = fit(quick, Serving(), server=server)
    assert validator.successful
    assert validator.resp == {"output": [0, 1]}
    assert validator.state_dict() == {"successful": True, "optimization": None, "server": server}
    json.dumps(validator.state_dict())


@pytest.mark.parametrize(("module", "words"), [(Wrong, r"\[1, 0\].*\[0, 1\]"), (Broken, "ZeroDivisionError: no way")])
def test_a_module_that_answers_wrong_is_not(module, words, quick):
    with pytest.raises(ConfigurationError, match=words):
        fit(quick, module())
    with pytest.warns(UserWarning, match=words):
        assert fit(quick, module(), exit_on_failure=False).successful is False


def test_a_module_that_serves_nothing_is_refused(quick):
    with pytest.raises(ConfigurationError, match="ServableModule too"):
        fit(quick, Net())


@pytest.mark.parametrize("arguments", [{"optimization": "trace"}, {"server": "torchserve"}])
def test_what_is_not_there_is_refused_at_once(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments.values()))):
        ServableModuleValidator(**arguments)


def test_nothing_can_be_forgotten():
    with pytest.raises(TypeError, match="serve_step"):
        type("Half", (Net, ServableModule), {})()
