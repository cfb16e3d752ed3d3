"""Which arguments a step takes: worked out once, from its signature; one that fits no form is refused."""

import inspect
from collections.abc import Callable
from typing import Any

from fulmen.fabric.rank_zero import PossibleUserWarning, warn_once
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.signature import is_param_in_hook_signature

Step = Callable[..., Any]
ITERATOR = "dataloader_iter"


class StepSignatureError(MisconfigurationException, RuntimeError):
    """A step cannot be called with what the run passes."""


def takes_iterator(method: Step) -> bool:
    """Does the step fetch its batches itself, from a parameter called `dataloader_iter`?"""
    signature = _signature(method)
    return signature is not None and ITERATOR in signature.parameters


def warn_self_fetching(step: str) -> None:
    """Tell, once, what is different for a step that fetches its batches itself.

    Args:
        step: How the message calls it.
    """
    warn_once(
        f"{step}(dataloader_iter) fetches its batches itself, which is experimental."
        " Hooks hear of the batch that was taken last, and batches are neither converted nor moved to the device."
        " Move them with self.transfer_batch_to_device(batch, self.device, 0).",
        category=PossibleUserWarning,
    )


def step_arguments(method: Step, call: Step) -> Step:
    """`call` as a function of (batch, batch_idx), though `method` may take the batch alone, or an iterator."""
    if not takes_iterator(method) and is_param_in_hook_signature(method, "batch_idx", min_args=2):
        return call
    return lambda batch, _index: call(batch)


def loader_arguments(method: Step, call: Step, *, several: bool) -> Step:
    """`call` as a function of (batch, batch_idx), of `several` loaders also dataloader_idx; `method` may take fewer."""
    if takes_iterator(method):
        return lambda batch, *_: call(batch)
    last, count = ("dataloader_idx", 3) if several else ("batch_idx", 2)
    if is_param_in_hook_signature(method, last, min_args=count):
        return call
    return lambda batch, *_: call(batch)


def check_training_step(method: Step, *, module: str) -> None:
    """Refuse a training step that needs more than a batch and its index.

    Raises:
        StepSignatureError: Naming the step and what it takes.
    """
    signature = _signature(method)
    if signature is None or takes_iterator(method):
        return
    if "optimizer_idx" in signature.parameters:
        raise StepSignatureError(
            f"{module}.training_step{signature} takes optimizer_idx. Automatic optimization steps one optimizer, so"
            " there is no index to pass. Set `self.automatic_optimization = False` in __init__, and step your"
            " optimizers in training_step(self, batch, batch_idx)."
        )
    _check_call(signature, f"{module}.training_step", "batch, batch_idx")


def check_evaluation_step(method: Step, *, module: str, name: str, num_loaders: int) -> None:
    """Refuse a step of validation, test or predict that does not fit the number of loaders.

    Raises:
        StepSignatureError: Naming the step and what it takes.
    """
    signature = _signature(method)
    if signature is None or takes_iterator(method):
        return
    where = f"{module}.{name}"
    if num_loaders > 1:
        check_takes_loader(method, where)
        _check_call(signature, where, "batch, batch_idx, dataloader_idx")
        return
    index = signature.parameters.get("dataloader_idx")
    if index is not None and index.default is inspect.Parameter.empty:
        raise StepSignatureError(
            f"{where}{signature} needs a dataloader_idx, and there is one dataloader."
            " The index is passed only where there are several."
            f" Give it a default: def {name}(self, batch, batch_idx, dataloader_idx=0)."
        )
    _check_call(signature, where, "batch, batch_idx")


def check_takes_loader(method: Step, where: str, *, before: int = 2) -> None:
    """Refuse a step or hook that would not hear which of several loaders a batch is of.

    Args:
        method: Called with `before` arguments, then the index.
        where: How messages call it.
        before: The arguments before the index.

    Raises:
        StepSignatureError: It takes no index.
    """
    signature = _signature(method)
    if signature is None or is_param_in_hook_signature(method, "dataloader_idx", min_args=before + 1):
        return
    raise StepSignatureError(
        f"{where}{signature} takes no dataloader_idx, and there are several dataloaders."
        " Without it batches of different loaders could not be told apart."
        " Add the parameter `dataloader_idx=0` behind the others."
    )


def _check_call(signature: inspect.Signature, where: str, passed: str) -> None:
    names = passed.split(", ")
    for count in range(len(names), 0, -1):  # a step may leave out the last ones
        try:
            signature.bind(*names[:count])
        except TypeError as error:
            said = error
        else:
            return
    step = where.rpartition(".")[2]
    raise StepSignatureError(
        f"{where}{signature} cannot be called as a step: {said}."
        f" The run calls it with ({passed}), or with the first of these. Define it as {step}(self, {passed})."
    )


def _signature(method: Step) -> inspect.Signature | None:
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):  # written in C, or no function at all
        return None
