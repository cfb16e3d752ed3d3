"""Is this a loss that can be derived, and is it still a number? Errors name what is wrong with it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException

_STEPS_BETWEEN_LOOKS = 50


class LossError(MisconfigurationException, RuntimeError):
    """Backward cannot start from what the step gave."""


class NonFiniteLossError(MisconfigurationException, RuntimeError):
    """The loss is NaN or infinite, and `detect_anomaly=True` ends the run there."""


def check_type(loss: object, name: str) -> None:
    """Refuse a loss that is no tensor.

    Raises:
        ConfigurationError: Naming the step and the type.
    """
    if not isinstance(loss, Tensor):
        raise ConfigurationError(
            f"{name}.training_step() gave a {type(loss).__name__} as the loss."
            " Backward starts from a tensor that was computed from the parameters."
            " Return the tensor itself, not loss.item() or a number."
        )


def check_derivable(loss: Tensor, name: str, parameters: Iterable[nn.Parameter]) -> None:
    """Say what is wrong with a loss from which backward cannot start; nothing if there is nothing.

    Raises:
        LossError: It has many elements, is cut off from the parameters, or all of these are frozen.
    """
    if loss.numel() != 1:
        raise LossError(
            f"{name}.training_step() gave a loss of shape {tuple(loss.shape)}."
            " Gradients are those of one number. Reduce it, such as loss.mean()."
        )
    if loss.requires_grad:
        return
    if all(not parameter.requires_grad for parameter in parameters):
        raise LossError(
            f"{name}.training_step() gave a loss without gradients: every parameter of {name} is frozen."
            " There is nothing to train. Call unfreeze(), or set requires_grad=True on those to be trained."
        )
    raise LossError(
        f"{name}.training_step() gave a loss that is not connected to the parameters (requires_grad=False)."
        " It was detached, made anew from numbers, or computed under torch.no_grad()."
        " Return the loss as it was computed, without .detach(), .item() or torch.tensor(...)."
    )


def check_finite(loss: Tensor, name: str, *, epoch: int, batch: int, step: int) -> None:
    """End the run if the loss is no number; waits for the device.

    Raises:
        NonFiniteLossError: Naming step and batch.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"The loss of {name}.training_step() is {value} at step {step} (epoch {epoch}, batch {batch})."
            " Trainer(detect_anomaly=True) ends the run before it reaches the weights."
            " Look at this batch and at the learning rate, or clip gradients with gradient_clip_val."
        )


def check_no_late_layers(module: nn.Module, known: Iterable[nn.Parameter], optimized: Iterable[nn.Parameter]) -> None:
    """Refuse parameters that got gradients, were made after the optimizers, and that none of these has.

    Args:
        module: After its first backward.
        known: Its parameters when the optimizers were made.
        optimized: Those of all optimizers.

    Raises:
        ConfigurationError: Naming them.
    """
    seen = {id(parameter) for parameters in (known, optimized) for parameter in parameters}
    late = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.requires_grad and id(parameter) not in seen
    ]
    if late:
        shown = ", ".join(late[:3]) + (", ..." if len(late) > 3 else "")
        raise ConfigurationError(
            f"{class_name(module)} has parameters that were made after configure_optimizers(): {shown}."
            " They get gradients, and no optimizer has them, so they would never be trained."
            " Make the layers in __init__ or configure_model, or add them with optimizer.add_param_group."
        )


class LossWatch:
    """Warns, once, when the loss is no number any more. Looks where metrics are read anyway, never in between.

    Args:
        name: The module's.
        reads: Does somebody read metrics at these steps? If not, it looks less often: a look waits for the device.
    """

    def __init__(self, name: str, *, reads: bool) -> None:
        self._name = name
        self._steps_between = 1 if reads else _STEPS_BETWEEN_LOOKS
        self._looked: int | None = None  # the last step whose loss was seen to be a number
        self._is_over = False

    def look(self, output: Any, *, step: int, epoch: int, batch: int, is_last: bool) -> None:
        """Look at the loss in what a training step returned, if it is time.

        Args:
            output: A tensor, a dict with the key "loss", or anything else, which is passed over.
            step, epoch, batch: Where the run is, 0-based.
            is_last: Is it the last batch of the epoch?
        """
        looked = self._looked
        if self._is_over or not (is_last or looked is None or step - looked >= self._steps_between):
            return
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        value = float(loss.detach())
        if math.isfinite(value):
            self._looked = step
            return
        self._is_over = True
        since = "the first that was looked at" if looked is None else f"at step {looked} it was a number"
        rank_zero_warn(
            f"The loss of {self._name}.training_step() is {value} at step {step} (epoch {epoch}, batch {batch};"
            f" {since}). The weights are likely to be no numbers any more either, and the rest of this run is lost."
            " Lower the learning rate or clip gradients; Trainer(detect_anomaly=True) ends a run at the very first"
            " such loss."
        )
