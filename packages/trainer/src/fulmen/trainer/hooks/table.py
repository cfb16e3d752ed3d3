"""Every hook in one table: who hears it, in which order, and what `self.log` may do there.

The order of calls over a whole run is told by the loops; the order among those who hear one hook is told here.
"""

from dataclasses import dataclass
from enum import Enum

from fulmen.trainer.metrics.log_call import EPOCH, EPOCH_ONLY, NEVER, STEP, LogRule


class Listener(Enum):
    """Who can hear a hook."""

    DATAMODULE = "datamodule"
    CALLBACKS = "callbacks"
    MODULE = "module"
    MONITORS = "monitors"  # callbacks that read what the others logged (checkpoints, early stopping)
    STRATEGY = "strategy"


_DATA, _CALLBACKS, _MODULE, _MONITORS, _STRATEGY = Listener


@dataclass(frozen=True)
class Hook:
    """One row: `listeners` in the order in which they hear it; `log` is the rule for `self.log` inside."""

    listeners: tuple[Listener, ...]
    log: LogRule


# Unless MONITORS is named in a row, monitoring callbacks hear the hook among the other callbacks.
_USUAL = (_CALLBACKS, _MODULE)
_AND_STRATEGY = (_CALLBACKS, _MODULE, _STRATEGY)


def _evaluation(name: str, *, log: bool) -> dict[str, Hook]:
    epoch, step, epoch_only = (EPOCH_ONLY, EPOCH, EPOCH_ONLY) if log else (NEVER, NEVER, NEVER)
    hooks = {
        f"on_{name}_start": Hook(_AND_STRATEGY, epoch),
        f"on_{name}_epoch_start": Hook(_USUAL, epoch),
        f"on_{name}_batch_start": Hook(_USUAL, step),
        f"{name}_step": Hook((), step),
        f"on_{name}_batch_end": Hook(_USUAL, step),
        f"on_{name}_epoch_end": Hook(_USUAL, epoch_only),
        f"on_{name}_end": Hook(_AND_STRATEGY, NEVER),
        f"on_{name}_model_eval": Hook((_MODULE,), NEVER),
    }
    if log:  # after predicting, the module is simply back in the mode it was in
        hooks[f"on_{name}_model_train"] = Hook((_MODULE,), NEVER)
    return hooks


SECTIONS: dict[str, dict[str, Hook]] = {
    "Around a run": {
        "prepare_data": Hook((_DATA, _MODULE), NEVER),
        "setup": Hook((_DATA, _CALLBACKS, _MODULE), NEVER),
        "configure_model": Hook((_MODULE,), NEVER),
        "configure_sharded_model": Hook((_MODULE,), NEVER),
        "configure_optimizers": Hook((_MODULE,), NEVER),
        "on_exception": Hook((_CALLBACKS, _DATA), NEVER),
        "teardown": Hook((_DATA, _CALLBACKS, _MODULE), NEVER),
    },
    "Fit": {
        "on_fit_start": Hook(_USUAL, NEVER),
        "on_sanity_check_start": Hook((_CALLBACKS,), NEVER),
        "on_sanity_check_end": Hook((_CALLBACKS,), NEVER),
        "on_train_start": Hook(_AND_STRATEGY, EPOCH_ONLY),
        "on_train_epoch_start": Hook(_USUAL, EPOCH_ONLY),
        "on_train_batch_start": Hook((_CALLBACKS, _MODULE, _STRATEGY), STEP),
        "training_step": Hook((), STEP),
        "on_before_zero_grad": Hook(_USUAL, STEP),
        "optimizer_zero_grad": Hook((), STEP),
        "on_before_backward": Hook(_USUAL, STEP),
        "backward": Hook((), STEP),
        "on_after_backward": Hook(_USUAL, STEP),
        "on_before_optimizer_step": Hook(_USUAL, STEP),
        "configure_gradient_clipping": Hook((), STEP),
        "optimizer_step": Hook((), STEP),
        "lr_scheduler_step": Hook((), NEVER),
        "on_train_batch_end": Hook(_USUAL, STEP),
        "on_train_epoch_end": Hook((_CALLBACKS, _MODULE, _MONITORS), EPOCH_ONLY),
        "on_train_end": Hook(_AND_STRATEGY, NEVER),
        "on_fit_end": Hook(_USUAL, NEVER),
        "on_validation_model_zero_grad": Hook((_MODULE,), NEVER),
    },
    "Validation": _evaluation("validation", log=True),
    "Test": _evaluation("test", log=True),
    "Prediction": _evaluation("predict", log=False),
    "Data": {
        "train_dataloader": Hook((), NEVER),
        "val_dataloader": Hook((), NEVER),
        "test_dataloader": Hook((), NEVER),
        "predict_dataloader": Hook((), NEVER),
        "on_before_batch_transfer": Hook((), NEVER),
        "transfer_batch_to_device": Hook((), NEVER),
        "on_after_batch_transfer": Hook((), NEVER),
    },
    "Checkpoints": {
        "on_save_checkpoint": Hook(_USUAL, NEVER),
        "on_save_weights": Hook((_CALLBACKS,), NEVER),
        "on_checkpoint_saved": Hook((_CALLBACKS,), NEVER),
        "on_load_checkpoint": Hook((_MODULE, _CALLBACKS), NEVER),
    },
}
"""The hooks in groups, as `docs/hooks.md` shows them."""

HOOKS: dict[str, Hook] = {name: hook for section in SECTIONS.values() for name, hook in section.items()}
