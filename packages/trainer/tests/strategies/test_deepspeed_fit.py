"""What a fit with DeepSpeed refuses before a process starts; the package need not be there."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.deepspeed import DeepSpeedStrategy
from fulmen.trainer.strategies.deepspeed_fit import check_deepspeed_fit

CLIPS = {"gradient_clipping": 0.5}


def check(module, config=None, **flags):
    usual = {"gradient_clip_val": None, "gradient_clip_algorithm": None, "accumulate_grad_batches": 1}
    check_deepspeed_fit(config or {}, module, SimpleNamespace(**usual | flags))


class Manual(BoringModel):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Ours(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self(batch).sum())
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()


class Torchs(Manual):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self(batch).sum())
        self.finish()

    def finish(self):
        [nn.utils.clip_grad_norm_(part.parameters(), 0.5) for part in self.children()]
        self.optimizers().step()


class InAHook(BoringModel):
    def on_before_optimizer_step(self, optimizer):
        torch.nn.utils.clip_grad_value_(self.parameters(), 0.5)


class WithOthers(Manual):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self(batch).sum())
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            self.clip_gradients(self.optimizers(), gradient_clip_val=0.5)
            nn.utils.clip_grad_norm_(self.parameters(), 0.5)


class NamedSo(BoringModel):
    def training_step(self, batch, batch_idx):
        assert not self.hparams.clip_gradients
        return super().training_step(batch, batch_idx)


class NeverCalled(BoringModel):
    def clip_as_elsewhere(self):
        nn.utils.clip_grad_norm_(self.parameters(), 0.5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Ours, r"Ours\.training_step\(\) calls clip_gradients.*config=.*'gradient_clipping'"),
        (Torchs, r"Torchs\.training_step\(\) calls clip_grad_norm_.*config=.*'gradient_clipping'"),
        (InAHook, r"InAHook\.on_before_optimizer_step\(\) calls clip_grad_value_.*Trainer\(gradient_clip_val=\.\.\.\)"),
    ],
)
def test_clipping_by_hand_is_refused(kind, message):
    with pytest.raises(ConfigurationError, match=message):
        check(kind())


def test_what_the_engine_does_anyway_may_be_asked_for():
    check(Ours(), CLIPS)
    check(Ours(), {"gradient_clipping": 0.5, "optimizer": None})
    with pytest.raises(ConfigurationError, match="clip_grad_norm_"):
        check(Torchs(), CLIPS)  # it would find no gradients
    for kind in (NeverCalled, NamedSo, WithOthers):
        check(kind())
    check(BoringModel())


def test_whose_optimizer_steps_is_told_at_once():
    with pytest.warns(UserWarning, match=r"BoringModel\.configure_optimizers\(\) is not called.*whose Lamb steps"):
        check(BoringModel(), {"optimizer": {"type": "Lamb"}})


def test_flags_that_say_the_same_as_the_configuration_are_taken():
    check(BoringModel(), CLIPS, gradient_clip_val=0.5)
    check(BoringModel(), {"gradient_accumulation_steps": 3}, accumulate_grad_batches=3)
    with pytest.raises(ConfigurationError, match=r"Trainer\(gradient_clip_val=1\.0\).*gradient_clipping is 0\.5"):
        check(BoringModel(), CLIPS, gradient_clip_val=1.0)
    with pytest.raises(ConfigurationError, match="gradient_clip_algorithm='value'"):
        check(BoringModel(), gradient_clip_val=1.0, gradient_clip_algorithm="value")
