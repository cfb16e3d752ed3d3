import pytest
from torch.utils.data import DataLoader

from fulmen.trainer.connectors.data import attach_data, prepare_data
from fulmen.trainer.data.sources import RunData
from fulmen.trainer.demos import BoringDataModule, BoringModel
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.hooks.dispatch import Hooks
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.profilers.base import PassThroughProfiler
from fulmen.trainer.stages import EntryPoint, Stage

LOADER = DataLoader([1])


def attached(entry=EntryPoint.FIT, datamodule=None, **loaders):
    data, module = RunData(), BoringModel()
    names = ["train_dataloaders", "val_dataloaders"] if entry is EntryPoint.FIT else ["dataloaders"]
    attach_data(data, module, entry, {name: loaders.get(name) for name in names}, datamodule)
    return data, module


def test_loaders_come_from_the_argument_or_the_datamodule_or_the_module():
    data, module = attached()
    assert [data.sources[stage].owner for stage in (Stage.TRAIN, Stage.VALIDATE)] == [module, module]
    datamodule = BoringDataModule()
    for given in ({"datamodule": datamodule}, {"train_dataloaders": datamodule}):
        data, _ = attached(**given)
        assert data.datamodule is datamodule
        assert [data.sources[stage].owner for stage in (Stage.TRAIN, Stage.VALIDATE)] == [datamodule, datamodule]
        assert data.sources[Stage.TRAIN].value is None
    data, module = attached(train_dataloaders=LOADER)
    assert data.sources[Stage.TRAIN].load() is LOADER
    assert data.sources[Stage.VALIDATE].owner is module


@pytest.mark.parametrize(
    ("entry", "stage", "method"),
    [
        (EntryPoint.VALIDATE, Stage.VALIDATE, "val_dataloader"),
        (EntryPoint.TEST, Stage.TEST, "test_dataloader"),
        (EntryPoint.PREDICT, Stage.PREDICT, "predict_dataloader"),
    ],
)
def test_each_entry_point_has_its_stage(entry, stage, method):
    data, _ = attached(entry, dataloaders=LOADER)
    assert list(data.sources) == [stage]
    assert (data.sources[stage].name, str(data.sources[stage])) == (method, f"Trainer.{entry}(dataloaders=...)")


def test_data_is_given_once():
    with pytest.raises(
        ConfigurationError, match=r"Trainer\.fit\(val_dataloaders=\.\.\., datamodule=\.\.\.\) got its data twice"
    ):
        attached(val_dataloaders=LOADER, datamodule=BoringDataModule())
    with pytest.raises(ConfigurationError, match="got its data twice"):
        attached(train_dataloaders=BoringDataModule(), val_dataloaders=LOADER)
    with pytest.raises(ArgumentTypeError, match=r"Trainer\.fit\(datamodule=3\) is no LightningDataModule"):
        attached(datamodule=3)


class Process:
    """A place among processes."""

    def __init__(self, local_rank, global_rank):
        self.local_rank, self.global_rank = local_rank, global_rank
        self.barriers = []

    def barrier(self, name):
        self.barriers.append(name)


@pytest.mark.parametrize("per_node", [True, False])
@pytest.mark.parametrize(("local_rank", "global_rank"), [(0, 0), (1, 1), (0, 2), (1, 3)])
def test_data_is_prepared_once_per_machine_or_once_in_all(per_node, local_rank, global_rank):
    calls = []

    class Data(BoringDataModule):
        def prepare_data(self):
            calls.append(self)

    datamodule, module, process = Data(), BoringModel(), Process(local_rank, global_rank)
    datamodule.prepare_data_per_node = per_node
    hooks = Hooks(MetricsBoard(), PassThroughProfiler(), None)
    hooks.attach(module, datamodule, None)
    prepare_data(hooks, RunData(datamodule=datamodule), module, process)
    assert len(calls) == (local_rank == 0 and (per_node or global_rank == 0))
    assert process.barriers == ["prepare_data"]
