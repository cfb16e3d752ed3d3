"""Operations that torch counts, and those counted by shape."""

import torch
from torch import nn

from fulmen.trainer.summary.flops import BY_SHAPE, count_flops


class Opaque(nn.Module):
    """A linear layer by operations that torch has no formula for."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 4, 3
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return (x.unsqueeze(-2) * self.weight).sum(-1)


def counted(model, *calls):
    with count_flops(model) as count:
        for call in calls:
            model(call)
    return {name: sum(kinds.values()) for name, kinds in count().items() if sum(kinds.values())}


def test_by_shape_is_what_torch_would_have_counted():
    calls = torch.ones(2, 4), torch.ones(5, 4)
    plain = counted(nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 2)), *calls)
    by_shape = counted(nn.Sequential(nn.Sequential(Opaque()), nn.Linear(3, 2)), *calls)
    assert plain == by_shape
    assert plain["Global"] == 7 * 2 * (4 * 3 + 3 * 2)


def test_what_torch_counts_is_not_counted_again():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv1d(1, 2, 3), nn.ConvTranspose1d(2, 1, 2))
    with count_flops(model) as count:
        model(torch.ones(2, 1, 4))
    assert count()["Global"]
    assert not any(BY_SHAPE in kinds for kinds in count().values())


def test_no_hook_stays():
    layer = Opaque()
    with count_flops(nn.Sequential(layer)):
        assert layer._forward_hooks
    assert not layer._forward_hooks
