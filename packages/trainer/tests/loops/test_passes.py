import multiprocessing

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.loops.passes import without_gradients


@pytest.mark.parametrize("inference", [True, False])
def test_no_gradients_are_kept(inference):
    with without_gradients(inference=inference):
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == inference


class Frozen(BoringModel):
    """One part is always in eval mode."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Dropout().eval()
        self.modes = []

    def validation_step(self, batch, batch_idx):
        self.modes.append((self.training, self.layer.training, self.frozen.training))
        if batch_idx == self.fails_at:
            raise ZeroDivisionError

    fails_at = None


@pytest.mark.parametrize("fails_at", [None, 1])
def test_each_part_of_the_module_is_in_the_mode_it_was_in_also_after_errors(fails_at, quick):
    module = Frozen()
    module.fails_at = fails_at
    before = [part.training for part in module.modules()]
    if fails_at is None:
        quick().validate(module, verbose=False)
    else:
        with pytest.raises(ZeroDivisionError):
            quick().validate(module, verbose=False)
    assert set(module.modes) == {(False, False, False)}
    assert [part.training for part in module.modules()] == before


def test_a_step_may_take_the_batch_alone(quick):
    class Short(BoringModel):
        def validation_step(self, batch):
            self.seen = batch

    module = Short()
    quick().validate(module, DataLoader(torch.ones(1, 32)), verbose=False)
    assert torch.equal(module.seen, torch.ones(1, 32))


def test_of_several_loaders_steps_and_hooks_hear_which_one_it_is(quick):
    class Several(BoringModel):
        def validation_step(self, batch, batch_idx, dataloader_idx=7):
            self.steps.append((batch_idx, dataloader_idx))

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=7):
            self.ends.append((batch_idx, dataloader_idx))

    def seen(*lengths):
        module = Several()
        module.steps, module.ends = [], []
        quick().validate(module, [DataLoader(RandomDataset(32, length)) for length in lengths], verbose=False)
        assert module.steps == module.ends
        return module.steps

    assert seen(2, 1) == [(0, 0), (1, 0), (0, 1)]
    assert seen(2) == [(0, 7), (1, 7)]


def test_loader_workers_do_not_outlive_a_pass_that_fails(quick):
    module = Frozen()
    module.fails_at = 0
    with pytest.raises(ZeroDivisionError):
        quick().validate(module, DataLoader(RandomDataset(32, 4), num_workers=1))
    assert multiprocessing.active_children() == []
