import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.compiled import from_compiled, is_compiled_wrapper, to_uncompiled
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.signature import is_overridden


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self(batch).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self(batch).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def compiled(net):
    """Compiled by a compiler that changes nothing, and counts."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return torch.compile(net, backend=backend), graphs


def loader():
    return DataLoader(torch.arange(12.0).view(4, 3), batch_size=2)


def test_a_compiled_module_is_trained_as_the_plain_one_and_its_keys_stay_clean(quick, tmp_path):
    torch.manual_seed(0)
    plain = Net()
    inside = copy.deepcopy(plain)
    wrapper, graphs = compiled(inside)
    assert is_compiled_wrapper(wrapper)
    assert not is_compiled_wrapper(plain)
    quick().fit(plain, loader(), loader())
    trainer = quick()
    trainer.fit(wrapper, loader(), loader())
    assert graphs, "nothing was compiled"
    assert trainer.lightning_module is inside
    assert list(inside.state_dict()) == ["layer.weight", "layer.bias"]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, inside.state_dict()[name])
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    assert list(torch.load(path, weights_only=True)["state_dict"]) == ["layer.weight", "layer.bias"]
    assert torch.equal(Net.load_from_checkpoint(path).layer.weight, plain.layer.weight)
    assert trainer.validate(wrapper, loader(), verbose=False)[0].keys() == {"loss"}


def test_it_can_be_undone_and_done_again():
    net = Net()
    wrapper, graphs = compiled(net)
    assert from_compiled(wrapper) is net
    assert is_overridden("training_step", net)
    assert not is_overridden("test_step", net)
    net.training_step(torch.ones(2, 3), 0)
    count = len(graphs)
    assert count
    other, other_graphs = compiled(net)
    from_compiled(other)
    net.training_step(torch.ones(2, 3), 0)
    assert len(graphs) == count
    assert other_graphs
    assert to_uncompiled(net) is net
    assert "training_step" not in vars(net)
    assert to_uncompiled(wrapper) is net
    with pytest.raises(ConfigurationError, match="not compiled"):
        to_uncompiled(net)


def test_a_copy_is_its_own_and_is_not_compiled():
    net = from_compiled(compiled(Net())[0])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.layer.weight.data.zero_()
        other.layer.bias.data.zero_()
        assert other.training_step(torch.ones(2, 3), 0) == 0
        assert net.training_step(torch.ones(2, 3), 0) != 0
    in_place = Net()
    in_place.compile(backend="eager")  # torch's own way, which leaves class and keys alone
    pickle.dumps(in_place)


def test_what_was_not_compiled_or_is_no_module_is_refused():
    with pytest.raises(TypeError, match="not compiled"):
        from_compiled(Net())
    with pytest.raises(ArgumentTypeError, match=r"Linear.*holds no LightningModule"):
        from_compiled(torch.compile(nn.Linear(1, 1), backend="eager"))
    with pytest.raises(TypeError, match="got no LightningModule"):
        to_uncompiled(nn.Linear(1, 1))


def test_it_is_not_sent_to_new_processes(quick):
    with pytest.raises(ConfigurationError, match=r"configure_model\(\)"):
        quick(strategy="ddp_spawn", devices=2).fit(compiled(Net())[0], loader())
