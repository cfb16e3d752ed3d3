import functools

import pytest

from fulmen.trainer.connectors.hook_calls import HookSignatureError, check_hook_calls
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule


def owner(base=LightningModule, **methods):
    return type("Owner", (base,), methods)()


@pytest.mark.parametrize(
    "methods",
    [
        {"on_train_start": lambda self: None},
        {"on_train_start": lambda self, *_: None},
        {"on_train_batch_end": lambda self, outputs, batch, batch_idx, more=0: None},
        {"on_validation_batch_end": lambda self, outputs, batch, batch_idx: None},
        {"setup": lambda self, stage=None: None},
        {"setup": lambda self, **kwargs: None},
        {"configure_gradient_clipping": lambda self, made, gradient_clip_val, gradient_clip_algorithm: None},
        {"optimizer_step": lambda self, epoch, batch_idx, made, closure: None},
        {"on_train_start": functools.partial(print, end="")},
        {"on_train_start": None},
        {"backward": lambda self, loss: None},
    ],
)
def test_what_the_run_can_call_is_accepted(methods):
    check_hook_calls(owner(**methods))


@pytest.mark.parametrize(
    ("base", "methods", "says"),
    [
        (LightningModule, {"on_train_start": lambda self, more: None}, r"The run calls it with \(\)"),
        (LightningModule, {"on_train_batch_start": lambda self, batch: None}, r"calls it with \(batch, batch_idx\)"),
        (LightningModule, {"setup": lambda self: None}, r"calls it with \(stage=\.\.\.\)"),
        (LightningModule, {"setup": lambda self, phase: None}, r"Define it as setup\(self, stage\)"),
        (LightningModule, {"optimizer_step": lambda self, epoch, batch_idx, made: None}, "optimizer_closure"),
        (LightningModule, {"configure_gradient_clipping": lambda self, made: None}, "gradient_clip_val=..."),
        (LightningDataModule, {"teardown": lambda self: None}, r"Owner\.teardown\(\) cannot be called as a hook"),
        (Callback, {"on_train_start": lambda self: None}, r"calls it with \(trainer, pl_module\)"),
        (Callback, {"on_exception": lambda self, trainer, pl_module: None}, "exception"),
    ],
)
def test_what_it_cannot_call_is_refused(base, methods, says):
    with pytest.raises(HookSignatureError, match=says):
        check_hook_calls(owner(base, **methods))


def test_others_are_nobodys_business():
    check_hook_calls(object())
