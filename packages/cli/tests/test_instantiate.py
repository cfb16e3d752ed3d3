from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.cli.cli import LightningCLI
from fulmen.cli.instantiate import instantiate_class
from fulmen.cli.parser import instantiate_module
from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer import LightningModule
from fulmen.trainer.demos import BoringModel


class Wide(BoringModel):
    def __init__(self, width: int = 3, act: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.act = width, act


def test_one_argument_or_a_tuple_of_them() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = instantiate_class(parameters, {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}})
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert instantiate_class((2, 3), {"class_path": "torch.nn.Linear"}).weight.shape == (3, 2)


@pytest.mark.parametrize("path", ["Nope", "torch.optim.Nope"])
def test_a_class_that_is_not_there(path: str) -> None:
    with pytest.raises(ConfigurationError, match="finds no such class"):
        instantiate_class((), {"class_path": path})


def test_hyperparameters_are_what_the_user_wrote() -> None:
    act = {"class_path": "torch.nn.LeakyReLU", "init_args": {"negative_slope": 0.2}}
    cli = LightningCLI(Wide, args={"model": {"width": 5, "act": act}}, run=False)
    assert isinstance(cli.model.act, torch.nn.LeakyReLU)
    written = dict(cli.model.hparams)
    assert written.pop("_instantiator") == "fulmen.cli.instantiate_module"
    assert written["width"] == 5
    assert written["act"]["class_path"] == "torch.nn.LeakyReLU"
    again = instantiate_module(Wide, dict(cli.model.hparams))
    assert (type(again), again.width, again.act.negative_slope) == (Wide, 5, 0.2)


def test_and_not_if_that_is_not_wanted() -> None:
    cli = LightningCLI(Wide, args=["--model.width=5"], run=False, load_from_checkpoint_support=False)
    assert dict(cli.model.hparams) == {"width": 5, "act": None}


def test_a_checkpoint_of_a_run_loads_in_python(folder: Path, command: Callable[..., Any]) -> None:
    import cliapp

    arguments = ["--model=cliapp.OtherModel", "--model.width=7", "--model.depth=4", "--trainer.logger=false"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    ended = command("fit", *arguments, *quiet, "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    assert ended.code == 0, ended.err
    (path,) = (folder / "checkpoints").glob("*.ckpt")
    for loader in (cliapp.OtherModel, cliapp.Model, LightningModule):
        loaded = loader.load_from_checkpoint(path)
        # By name: a class of an earlier test may have the same path.
        assert (type(loaded).__qualname__, loaded.width, loaded.depth) == ("OtherModel", 7, 4)
