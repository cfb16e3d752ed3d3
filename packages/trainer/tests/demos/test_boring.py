import pytest
import torch

from fulmen.trainer import demos


@pytest.mark.parametrize("cls", [demos.BoringModel, demos.ManualOptimBoringModel])
def test_boring_models_learn(cls):
    torch.manual_seed(0)
    model = cls()
    [optimizer], [_] = model.configure_optimizers()
    optimizer.param_groups[0]["lr"] = 0.01
    batches = [next(iter(model.train_dataloader()))] * 20
    losses = []
    for batch in batches:
        loss = model.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert set(demos.BoringModel().training_step(batches[0], 0)) == {"loss"}
    assert set(model.validation_step(batches[0], 0)) == {"x"}
    assert set(model.test_step(batches[0], 0)) == {"y"}


@pytest.mark.parametrize("cls", [demos.BoringDataModule, demos.BoringDataModuleNoLen, demos.IterableBoringDataModule])
def test_datamodules_have_all_loaders(cls):
    data = cls()
    for stage, name in (("fit", "train"), ("fit", "val"), ("test", "test"), ("predict", "predict")):
        data.setup(stage)
        loaders = getattr(data, f"{name}_dataloader")()
        loaders = loaders if isinstance(loaders, list) else [loaders]
        assert all(next(iter(loader)).dim() == 2 for loader in loaders)


def test_datasets():
    assert demos.RandomDataset(3, 5)[1].shape == (3,)
    item = demos.RandomDictDataset(3, 5)[1]
    assert torch.equal(item["b"], item["a"] + 2)
    assert len(list(demos.RandomIterableDataset(3, 5))) == 5
    assert len(demos.RandomIterableDatasetWithLen(3, 5)) == 5


def test_models():
    model = demos.DemoModel(out_dim=3)
    assert model.training_step(torch.ones(2, 32), 0).requires_grad
    assert model.configure_optimizers().param_groups[0]["lr"] == 0.02
    assert demos.Net()(torch.ones(2, 1, 28, 28)).exp().sum().item() == pytest.approx(2)
