from typing import Any

import pytest
import torch

from fulmen.cli.cli import LightningCLI
from fulmen.cli.instantiate import instantiate_class
from fulmen.cli.optimizers import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer import LightningModule
from fulmen.trainer.demos import BoringModel


class Plain(LightningModule):
    """Has no optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def configured(cli_class: type[LightningCLI], model: type[LightningModule], *arguments: str) -> Any:
    cli = cli_class(model, args=list(arguments), run=False, save_config_callback=None)
    return cli.model.configure_optimizers()


def test_a_name_makes_the_optimizer() -> None:
    optimizer = configured(LightningCLI, Plain, "--optimizer=SGD", "--optimizer.lr=0.5")
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_a_scheduler_comes_with_it() -> None:
    optimizers, schedulers = configured(
        LightningCLI, Plain, "--optimizer=SGD", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"
    )
    assert [type(one) for one in optimizers] == [torch.optim.SGD]
    assert [type(one) for one in schedulers] == [torch.optim.lr_scheduler.StepLR]


def test_a_plateau_says_what_it_watches() -> None:
    returned = configured(
        LightningCLI, Plain, "--optimizer=SGD", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val_loss"
    )
    assert isinstance(returned["lr_scheduler"]["scheduler"], ReduceLROnPlateau)
    assert returned["lr_scheduler"]["monitor"] == "val_loss"


def test_the_models_own_is_replaced_with_a_warning_and_only_if_asked_for() -> None:
    optimizers, _ = configured(LightningCLI, BoringModel)
    assert isinstance(optimizers[0], torch.optim.SGD)
    with pytest.warns(UserWarning, match="will be replaced"):
        assert isinstance(configured(LightningCLI, BoringModel, "--optimizer=Adam"), torch.optim.Adam)
    optimizers, _ = configured(LightningCLI, BoringModel)
    assert isinstance(optimizers[0], torch.optim.SGD), "other objects keep theirs"


def test_a_scheduler_without_an_optimizer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names StepLR, and there is no optimizer"):
        configured(LightningCLI, Plain, "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2")


def test_fixed_classes_have_only_their_arguments() -> None:
    class Fixed(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(torch.optim.Adam)
            parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)

    (optimizer,), (scheduler,) = configured(Fixed, Plain, "--optimizer.lr=0.7", "--lr_scheduler.gamma=0.9")
    assert isinstance(optimizer, torch.optim.Adam)
    assert scheduler.gamma == 0.9
    with pytest.raises(SystemExit):
        configured(Fixed, Plain, "--optimizer.lr=0.7")


def test_several_are_linked_to_arguments_of_the_model() -> None:
    class Two(Plain):
        def __init__(self, first: dict[str, Any], second: dict[str, Any]) -> None:
            super().__init__()
            self.first, self.second = first, second

        def configure_optimizers(self) -> Any:
            return [instantiate_class(self.parameters(), one) for one in (self.first, self.second)]

    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(nested_key="opt1", link_to="model.first")
            parser.add_optimizer_args(torch.optim.Adam, nested_key="opt2", link_to="model.second")

    optimizers = configured(Linked, Two, "--opt1=SGD", "--opt1.lr=0.2", "--opt2.lr=0.3")
    assert [type(one) for one in optimizers] == [torch.optim.SGD, torch.optim.Adam]
    assert [one.param_groups[0]["lr"] for one in optimizers] == [0.2, 0.3]


def test_two_that_are_linked_to_nothing_contradict_each_other() -> None:
    class Both(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(nested_key="opt1")
            parser.add_optimizer_args(nested_key="opt2")

    with pytest.raises(MisconfigurationException, match="opt1, opt2"):
        configured(Both, Plain, "--opt1=SGD")


def test_configure_optimizers_of_the_command_line_has_the_last_word() -> None:
    class Own(LightningCLI):
        @staticmethod
        def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            return {"optimizer": optimizer, "mine": 1}

    assert configured(Own, Plain, "--optimizer=SGD")["mine"] == 1


def test_it_can_be_left_out() -> None:
    with pytest.raises(SystemExit):
        LightningCLI(Plain, args=["--optimizer=SGD"], run=False, auto_configure_optimizers=False)


def test_a_model_may_take_factories() -> None:
    class Factories(Plain):
        def __init__(
            self,
            optimizer: OptimizerCallable = torch.optim.Adam,
            scheduler: LRSchedulerCallable = torch.optim.lr_scheduler.ConstantLR,
        ) -> None:
            super().__init__()
            self.optimizer, self.scheduler = optimizer, scheduler

        def configure_optimizers(self) -> Any:
            optimizer = self.optimizer(self.parameters())
            return [optimizer], [self.scheduler(optimizer)]

    (optimizer,), (scheduler,) = configured(
        LightningCLI, Factories, "--model.optimizer=SGD", "--model.scheduler=StepLR", "--model.scheduler.step_size=4"
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert scheduler.step_size == 4


@pytest.mark.parametrize("wrong", [int, "SGD", (torch.optim.SGD, int)])
def test_other_classes_are_refused(wrong: Any) -> None:
    with pytest.raises(MisconfigurationException, match="cannot be the optimizer"):
        LightningArgumentParser().add_optimizer_args(wrong)
