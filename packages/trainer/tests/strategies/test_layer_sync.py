import copy
import pickle

import torch
from torch import nn

from fulmen.trainer.strategies.layer_sync import TorchSyncBatchNorm, has_batch_norm


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3, affine=False)))


def kinds(module):
    return [type(layer) for layer in module.modules()]


def test_what_was_exchanged_comes_back_with_what_it_learned():
    net, sync = model(), TorchSyncBatchNorm()
    before = kinds(net)
    names = list(net.state_dict())
    parameters = list(net.parameters())
    applied = sync.apply(net)
    assert kinds(applied).count(nn.SyncBatchNorm) == 2
    assert list(applied.state_dict()) == names
    with torch.no_grad():
        applied[1].weight.fill_(3.0)
        applied[1].running_mean.fill_(5.0)
    reverted = sync.revert(applied)
    assert kinds(reverted) == before
    assert all(now is then for now, then in zip(reverted.parameters(), parameters, strict=True))
    assert reverted[1].weight.tolist() == [3.0] * 3
    assert reverted[1].running_mean.tolist() == [5.0] * 3
    reverted[1](torch.rand(4, 3, 2))


def test_evaluation_gives_the_same_before_and_after():
    net, sync, batch = model().eval(), TorchSyncBatchNorm(), torch.rand(4, 2, 5)
    expected = net[:2](batch)
    assert torch.equal(sync.revert(sync.apply(net))[:2](batch), expected)


def test_the_model_itself_may_be_such_a_layer():
    sync = TorchSyncBatchNorm()
    applied = sync.apply(nn.BatchNorm2d(3))
    assert type(applied) is nn.SyncBatchNorm
    assert type(sync.revert(applied)) is nn.BatchNorm2d


def test_the_users_own_synchronised_layers_stay():
    net = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm1d(3))
    sync = TorchSyncBatchNorm()
    assert kinds(sync.revert(sync.apply(net))) == [nn.Sequential, nn.SyncBatchNorm, nn.BatchNorm1d]


def test_it_travels_to_other_processes():
    sync = pickle.loads(pickle.dumps(TorchSyncBatchNorm()))
    assert kinds(sync.apply(copy.deepcopy(model()))).count(nn.SyncBatchNorm) == 2


def test_is_there_a_batch_norm():
    assert has_batch_norm(model())
    assert not has_batch_norm(nn.Linear(2, 2))
