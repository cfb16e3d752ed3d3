"""What a fit on an engine of DeepSpeed refuses of flags and module, before a process starts."""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.deepspeed import checks
from fulmen.fabric.strategies.deepspeed.sections import OPEN
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.signature import is_overridden

# Where a module may clip by hand, and what it calls then: ours, and those of torch.
_PLACES = (
    "training_step",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)
_OURS, _TORCHS = "clip_gradients", ("clip_grad_norm_", "clip_grad_norm", "clip_grad_value_", "clip_grads_with_norm_")


def check_deepspeed_fit(config: Mapping[str, Any], module: LightningModule, flags: Any) -> None:
    """Refuse what contradicts the configuration, and what the engine would leave out.

    Args:
        config: The user's.
        module: The user's.
        flags: The arguments of the Trainer, as attributes.

    Raises:
        ConfigurationError: Naming both.
    """
    checks.check_recomputation(config)
    name = class_name(module)
    if config.get("optimizer") is not None:
        rank_zero_warn(checks.optimizer_of_configuration(config, f"{name}.configure_optimizers()"))
    clip_val, accumulate = flags.gradient_clip_val, flags.accumulate_grad_batches
    if clip_val and flags.gradient_clip_algorithm == "value":
        raise ConfigurationError(
            "Trainer(gradient_clip_algorithm='value') cannot be used with DeepSpeedStrategy. Its engine clips"
            " gradients by the norm of all of them. Pass gradient_clip_algorithm='norm', or use strategy='fsdp'."
        )
    checks.agreed(config, "gradient_clipping", clip_val or None, f"Trainer(gradient_clip_val={clip_val})")
    where = f"Trainer(accumulate_grad_batches={accumulate})"
    checks.agreed(config, "gradient_accumulation_steps", accumulate, where)
    for hook, instead in (
        ("configure_gradient_clipping", "Remove it, and pass Trainer(gradient_clip_val=...)."),
        ("backward", "Remove it, and change the loss in training_step."),
    ):
        if is_overridden(hook, module, LightningModule):
            raise ConfigurationError(
                f"{name}.{hook}() cannot be called with DeepSpeedStrategy. The engine derives the loss, and clips"
                f" gradients in its step. {instead}"
            )
    _check_clipping_by_hand(config, module)


def _check_clipping_by_hand(config: Mapping[str, Any], module: LightningModule) -> None:
    # What asks for the same as the engine does, and is known to do nothing then, may stay.
    refused = _TORCHS if config.get("gradient_clipping") not in OPEN else (_OURS, *_TORCHS)
    for place in _PLACES:
        if not is_overridden(place, module, LightningModule):
            continue
        names = set(_names_read(type(module), place))
        if any("strategy" in name.lower() for name in names):
            continue  # it may clip with others only
        called = next((name for name in refused if name in names), None)
        if called is not None:
            flag = (
                "Trainer(gradient_clip_val=...)"
                if module.automatic_optimization
                else "DeepSpeedStrategy(config={'zero_optimization': {'stage': 2}, 'gradient_clipping': 1.0})"
            )
            raise ConfigurationError(
                f"{class_name(module)}.{place}() calls {called}, which cannot be done with DeepSpeedStrategy. Its"
                " engine holds gradients in pieces, none of them in parameter.grad, and clips them in its step."
                f" Remove the call, or ask for the class of self.trainer.strategy before it, and pass {flag}."
            )


def _names_read(kind: type[Any], method: str) -> Iterator[str]:
    """The names that a method reads, and the methods of the user that it reads by these names; each once."""
    waiting, seen = [method], {method}
    while waiting:
        code = getattr(getattr(kind, waiting.pop(), None), "__code__", None)
        for name in _names(code) if code is not None else ():
            if name in seen:
                continue
            seen.add(name)
            yield name
            if not hasattr(LightningModule, name):
                waiting.append(name)


def _names(code: CodeType) -> Iterator[str]:
    before: Any = None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        # Hyperparameters, too, may have the name of our method: it is `self.clip_gradients` only. Python 3.13 loads two
        # variables at once.
        is_of_self = before == "self" or (isinstance(before, tuple) and before[-1] == "self")
        if name in code.co_names and (name != _OURS or is_of_self):
            yield name
        before = name
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
