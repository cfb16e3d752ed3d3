import warnings

import pytest
import torch

from fulmen.trainer.connectors.checks import NotAModuleError, check_entry_point, check_module
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.sources import LoaderSource, RunData
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.stages import EntryPoint, Stage

ALL = (Stage.TRAIN, Stage.VALIDATE, Stage.TEST, Stage.PREDICT)


def data(*stages):
    sources = {stage: LoaderSource(None, [1] if stage in stages else None, "loader") for stage in ALL}
    return RunData(sources=sources)


def without(*methods):
    names = {name: getattr(BoringModel, name) for name in vars(BoringModel) if name[0] != "_"}
    return type("Less", (LightningModule,), {name: it for name, it in names.items() if name not in methods})()


@pytest.mark.parametrize("entry", EntryPoint)
def test_a_module_that_has_all_is_silently_accepted(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_entry_point(BoringModel(), data(*ALL), entry, Settings())


@pytest.mark.parametrize(
    ("entry", "missing", "says"),
    [
        (
            EntryPoint.FIT,
            ["training_step"],
            r"Less has no training_step\(\).*Define training_step\(self, batch, batch_idx\)",
        ),
        (
            EntryPoint.FIT,
            ["configure_optimizers"],
            r"has no configure_optimizers\(\).*Define configure_optimizers\(self\)",
        ),
        (EntryPoint.VALIDATE, ["validation_step"], r"Trainer.validate\(Less\) cannot run: Less has no validation_step"),
        (EntryPoint.TEST, ["test_step"], "Less has no test_step"),
        (EntryPoint.PREDICT, ["predict_step", "forward"], r"neither forward\(\) nor predict_step\(\)"),
    ],
)
def test_what_the_entry_point_calls_must_be_there(entry, missing, says):
    with pytest.raises(ConfigurationError, match=says):
        check_entry_point(without(*missing), data(*ALL), entry, Settings())


@pytest.mark.parametrize("entry", EntryPoint)
def test_there_must_be_data(entry):
    with pytest.raises(ConfigurationError, match=rf"Trainer\.{entry}\(BoringModel\) has no (training )?data"):
        check_entry_point(BoringModel(), data(), entry, Settings())


def test_half_a_validation_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="has validation data, and Less defines no validation_step"):
        check_entry_point(without("validation_step"), data(*ALL), EntryPoint.FIT, Settings())
    with pytest.warns(UserWarning, match="has a validation_step, and no validation data was given"):
        check_entry_point(BoringModel(), data(Stage.TRAIN), EntryPoint.FIT, Settings())


@pytest.mark.parametrize("flags", [{"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}])
def test_manual_optimization_leaves_no_meaning_to_some_flags(flags):
    module = BoringModel()
    module.automatic_optimization = False
    check_entry_point(module, data(*ALL), EntryPoint.FIT, Settings(gradient_clip_val=0))
    with pytest.raises(ConfigurationError, match="has no effect on BoringModel, whose optimization is manual"):
        check_entry_point(module, data(*ALL), EntryPoint.FIT, Settings(**flags))


@pytest.mark.parametrize(
    ("model", "says"), [(BoringModel, "got a class"), (torch.nn.Linear(1, 1), "got a Linear"), (None, "got a NoneType")]
)
def test_only_modules_are_run(model, says):
    with pytest.raises(NotAModuleError, match=rf"Trainer\.fit\(model=\.\.\.\) {says}"):
        check_module(model, EntryPoint.FIT)


def test_a_module_must_have_been_built():
    class Unbuilt(LightningModule):
        def __init__(self): ...

    with pytest.raises(MisconfigurationException, match=r"Unbuilt\.__init__ did not call super"):
        check_module(Unbuilt(), EntryPoint.FIT)
    check_module(BoringModel(), EntryPoint.FIT)
