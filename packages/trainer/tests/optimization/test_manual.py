import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError


class Two(LightningModule):
    """Two weights, each with an optimizer of its own."""

    def __init__(self, answer=None):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.answer, self.heard = answer, []

    def training_step(self, batch, batch_idx):
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            with optimizer.toggle_model():
                optimizer.zero_grad()
                self.manual_backward((self.a + sign * self.b) * batch.sum())
                optimizer.step()
        return self.answer

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.heard.append(outputs)

    def on_before_optimizer_step(self, optimizer):
        assert (self.a.grad is None) != (self.b.grad is None) or self.trainer.global_step > 0

    def configure_optimizers(self):
        return [torch.optim.SGD([weight], lr=0.1) for weight in (self.a, self.b)]


def fitted(quick, module, **flags):
    trainer = quick(**flags)
    trainer.fit(module, DataLoader(torch.tensor([1.0, 1.0])))
    return trainer


def test_each_optimizer_steps_its_own_weights_and_each_step_counts(quick):
    module = Two()
    trainer = fitted(quick, module)
    assert (module.a.item(), module.b.item()) == pytest.approx((-0.2, 0.2))
    assert trainer.global_step == trainer.fit_loop.counts.manual_steps.total == 4
    assert trainer.fit_loop.counts.stepped_batches == 2
    assert module.heard == [{}, {}]
    assert module.a.requires_grad
    assert module.b.requires_grad


@pytest.mark.parametrize(
    ("answer", "heard"), [(torch.tensor(2.0), {"loss": torch.tensor(2.0)}), ({"loss": 1, "x": 2}, {"loss": 1, "x": 2})]
)
def test_the_answer_of_a_step_goes_to_the_end_of_the_batch(answer, heard, quick):
    module = Two(answer)
    fitted(quick, module)
    assert module.heard == [heard] * 2


def test_an_answer_of_another_kind_is_refused(quick):
    with pytest.raises(ConfigurationError, match=r"Two\.training_step\(\) returned a str"):
        fitted(quick, Two("done"))


@pytest.mark.parametrize("flag", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_flags_of_automatic_optimization_are_refused(flag, quick):
    [(name, value)] = flag.items()
    with pytest.raises(ConfigurationError, match=rf"Trainer\({name}={value}\) has no effect on Two"):
        fitted(quick, Two(), **flag)


def test_max_steps_counts_the_steps_of_all_optimizers(quick):
    trainer = fitted(quick, Two(), max_epochs=-1, max_steps=6)
    assert trainer.global_step == 6
