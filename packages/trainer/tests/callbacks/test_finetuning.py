import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.finetuning import BackboneFinetuning, BaseFinetuning, multiplicative
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel

DATA = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))


class Model(BoringModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(self.backbone(x))

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(DATA, batch_size=4, shuffle=True)

    val_dataloader = None


class Watch(Callback):
    def __init__(self):
        self.states, self.rates = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def _modules(depth):
    leaf = st.sampled_from(["linear", "norm", "relu"])
    return st.recursive(leaf, lambda inside: st.lists(inside, max_size=3), max_leaves=depth)


def _build(form):
    layers = {"linear": lambda: nn.Linear(2, 2), "norm": lambda: nn.BatchNorm1d(2), "relu": nn.ReLU}
    return layers[form]() if isinstance(form, str) else nn.Sequential(*[_build(one) for one in form])


@given(st.lists(_modules(6), max_size=4), st.booleans())
def test_frozen_and_unfrozen(forms, train_bn):
    modules = [_build(form) for form in forms]
    everything = [parameter for module in modules for parameter in module.parameters()]
    BaseFinetuning.freeze(modules, train_bn=train_bn)
    trained = list(BaseFinetuning.filter_params(modules, train_bn=train_bn))
    norms = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert len(trained) == (2 * len(norms) if train_bn else 0)
    assert all(norm.track_running_stats == train_bn for norm in norms)
    BaseFinetuning.make_trainable(modules)
    assert all(parameter.requires_grad for parameter in everything)
    assert len(list(BaseFinetuning.filter_params(modules))) == len(everything)
    assert all(norm.track_running_stats for norm in norms)


def test_a_module_with_parameters_and_modules_inside():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.inside = nn.Parameter(torch.zeros(1)), nn.Linear(1, 1)

    both = Both()
    assert BaseFinetuning.flatten_modules([both, [nn.Sequential(nn.ReLU())]])[:2] == [both, both.inside]
    BaseFinetuning.freeze(both)
    assert not any(parameter.requires_grad for parameter in both.parameters())


def test_the_backbone_is_trained_from_its_epoch_on(quick):
    watch, module = Watch(), Model()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    tuning = BackboneFinetuning(2, train_bn=False)
    quick(callbacks=[tuning, watch], max_epochs=7).fit(module)
    for name in ("backbone.0.weight", "backbone.1.weight", "backbone.1.running_mean"):
        assert torch.equal(watch.states[1][name], first[name])
    assert not torch.equal(watch.states[2]["backbone.0.weight"], first["backbone.0.weight"])
    assert torch.equal(watch.states[-1]["backbone.1.weight"], first["backbone.1.weight"])
    assert not torch.equal(watch.states[0]["layer.weight"], first["layer.weight"])
    rates = [0.1 * 0.9**epoch for epoch in range(7)]
    assert [group[0] for group in watch.rates] == pytest.approx(rates)
    assert watch.rates[1] == pytest.approx([rates[1]])
    backbone = [group[1] for group in watch.rates[2:]]
    assert backbone[0] == pytest.approx(0.1 * rates[2])
    expected = backbone[0]
    for rate, found in zip(rates[3:], backbone[1:], strict=True):
        expected = min(2 * expected, rate)
        assert found == pytest.approx(expected)
    assert expected == pytest.approx(rates[-1])


def test_what_is_in_the_optimizer_already():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match="2 parameters"):
        BaseFinetuning.unfreeze_and_add_param_group(layer, optimizer)
    assert len(optimizer.param_groups) == 1
    BaseFinetuning.unfreeze_and_add_param_group(nn.Linear(2, 2), optimizer, initial_denom_lr=4.0)
    assert optimizer.param_groups[1]["lr"] == 0.25


class Save(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class ByParts(BaseFinetuning):
    """The backbone's last layer first, then all of it, with frozen batch norms."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[2], optimizer)
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer, lr=0.01)


@pytest.mark.parametrize("tuning", [lambda: BackboneFinetuning(1), ByParts])
@pytest.mark.parametrize("step", [2, 4, 6, 8, 11])
def test_resumes_exactly(quick, tmp_path, step, tuning):
    path, whole, again = tmp_path / "there.ckpt", Model(), Model()
    torch.manual_seed(7)
    quick(callbacks=[tuning(), Save(path, step)], max_epochs=4).fit(whole)
    watch = Watch()
    quick(callbacks=[tuning(), watch], max_epochs=4).fit(again, ckpt_path=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in whole.parameters()]
    assert again.backbone[1].track_running_stats == whole.backbone[1].track_running_stats


def test_what_a_checkpoint_holds(quick, tmp_path):
    path = tmp_path / "there.ckpt"
    quick(callbacks=[BackboneFinetuning(1), Save(path, 5)], max_epochs=2).fit(Model())
    state = torch.load(path)["callbacks"]["BackboneFinetuning"]
    groups = state["internal_optimizer_metadata"][0]
    assert groups[1]["params"] == ["backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias"]
    assert state["previous_backbone_lr"] == groups[1]["lr"] == pytest.approx(0.009)
    assert state["frozen"] == state["still_batch_norms"] == []


def test_no_backbone(quick):
    with pytest.raises(MisconfigurationException, match=r"BoringModel\.backbone"):
        quick(callbacks=BackboneFinetuning()).fit(BoringModel())


def test_nothing_defined(quick):
    with pytest.raises(NotImplementedError, match="freeze_before_training"):
        quick(callbacks=BaseFinetuning()).fit(BoringModel())


@pytest.mark.parametrize(
    "arguments",
    [
        {"unfreeze_backbone_at_epoch": -1},
        {"unfreeze_backbone_at_epoch": 1.5},
        {"lambda_func": 2.0},
        {"backbone_initial_ratio_lr": "a"},
        {"backbone_initial_lr": -0.1},
        {"initial_denom_lr": True},
        {"initial_denom_lr": 0},
    ],
)
def test_bad_arguments(arguments):
    [name] = arguments
    with pytest.raises(MisconfigurationException, match=f"{name}="):
        BackboneFinetuning(**arguments)


def test_it_doubles():
    assert multiplicative(3) == 2.0
