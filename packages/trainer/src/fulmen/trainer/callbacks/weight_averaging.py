"""Average the weights while training; validate with the average, and keep it as the result."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.masked_weights import buffers_without_masks
from fulmen.trainer.callbacks.whole_weights import NeedsWholeWeights
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import STEP_OUTPUT

_AVERAGING_FUNCTIONS = ("avg_fn", "multi_avg_fn")


class TwoAveragesError(MisconfigurationException, RuntimeError):
    """Two callbacks would put their averages into one place."""


class WeightAveraging(NeedsWholeWeights):
    """Keep an average of the weights, by default the mean of those after every optimizer step.

    Validation inside a fit runs with the average. The `state_dict` of checkpoints is the average, and
    `current_model_state` beside it what is trained on, unless they hold weights only. After the fit the module holds
    the average. As long as nothing was averaged, all of this is done with the weights as they are.

    Override `should_update` to say when the average takes in the weights.

    Args:
        device: Where the average is kept; None: where the module is.
        use_buffers: Average buffers too, and not only copy them.
        kwargs: `avg_fn` or `multi_avg_fn`, as for `torch.optim.swa_utils.AveragedModel`.

    Raises:
        ArgumentTypeError: If other keyword arguments are passed, or both functions.
        ConfigurationError: If `device` is none; when a fit begins, if parameters are split over processes.
        TwoAveragesError: When a fit begins, if there are two such callbacks.
    """

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        super().__init__()
        name = type(self).__name__
        if unknown := sorted(set(kwargs) - set(_AVERAGING_FUNCTIONS)):
            raise ArgumentTypeError(
                f"{name}({', '.join(unknown)}=...) is not known. Beside its own arguments it takes how to average."
                " Pass avg_fn or multi_avg_fn, or leave it out."
            )
        given = [key for key in _AVERAGING_FUNCTIONS if kwargs.get(key) is not None]
        if len(given) > 1:
            raise ArgumentTypeError(
                f"{name} got both avg_fn and multi_avg_fn. Each of them alone says how to average. Pass one."
            )
        for key in given:
            if not callable(kwargs[key]):
                raise ArgumentTypeError(
                    f"{name}({key}={kwargs[key]!r}) cannot be called. It computes the average. Pass a function."
                )
        self._device = device_of(name, device)
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._average: AveragedModel | None = None
        self._has_average = False  # has it taken in anything yet? Until then there is none
        self._holds_average = False  # is the average in the module, and what is trained in `_average`?
        self._validates = False
        self._latest_update_step = 0
        self._restored: tuple[list[Tensor], Mapping[str, Tensor]] | None = None

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Is the average to take in the weights now? By default after every optimizer step.

        Args:
            step_idx: The optimizer step (0-based) that was made; None at the end of an epoch.
            epoch_idx: The epoch (0-based) that is over; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin without an average."""
        self._average = self._restored = None
        self._has_average = self._holds_average = self._validates = False
        if stage != "fit":
            return
        name = type(self).__name__
        others = [one for one in trainer.callbacks if isinstance(one, WeightAveraging) and one is not self]
        if others:
            raise TwoAveragesError(
                f"Trainer(callbacks=...) has {name} and {type(others[0]).__name__}, which both average the weights."
                " Validation and checkpoints have place for one average. Remove one of them."
            )
        self.check_strategy(trainer.strategy)  # again: the module may have brought this callback

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make place for the average, or take that of the checkpoint."""
        average = AveragedModel(Tensors(pl_module), use_buffers=self._use_buffers, **self._kwargs)
        average.module.to(self._device or pl_module.device)  # the count stays: asking it must not wait for a device
        self._average = average
        if self._restored is None:
            return
        content, state = self._restored
        self._restored = None
        with torch.no_grad():
            for tensor, saved in zip(tensors(average.module), content, strict=True):
                tensor.copy_(saved)
        average.load_state_dict(dict(state), strict=False)
        self._has_average = bool(average.n_averaged > 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the step after which a checkpoint was written before the average could."""
        if trainer.global_step > 0:
            self._after_step(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights if a step was made, and `should_update` says so."""
        self._after_step(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the weights if `should_update` says so."""
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        if self._has_average:
            self._agree(trainer)
            self._validates = True
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what is trained."""
        self._back_to_training(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; what was trained is kept for checkpoints that are still to be written."""
        if self._has_average:
            self._agree(trainer)
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A validation that broke off leaves the weights that are trained."""
        self._back_to_training(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Follow the module to where it is after the run."""
        self._back_to_training(pl_module)
        if self._average is not None:
            self._average.module.to(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """The step after which the average took in the weights."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._latest_update_step = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights, and what is trained beside it."""
        if self._average is None:
            return
        here = checkpoint["state_dict"]
        there = self._state_of_other(trainer, pl_module) if self._has_average else here
        average, trained = (here, there) if self._holds_average else (there, here)
        checkpoint["state_dict"] = average
        checkpoint["current_model_state"] = trained
        checkpoint["averaging_state"] = {
            name: value for name, value in self._average.state_dict().items() if not name.startswith("module.")
        }

    def on_save_weights(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights."""
        if self._has_average and not self._holds_average:
            checkpoint["state_dict"] = self._state_of_other(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """For a fit, give the module back what is trained: it was loaded with the average."""
        if trainer.state.fn != "fit":
            return
        if "current_model_state" not in checkpoint:
            rank_zero_warn(
                f"The checkpoint of `ckpt_path` was saved without {type(self).__name__}. The average begins anew with"
                " its weights. Pass the callback also to the run that saves, if this one is to go on exactly."
            )
            return
        content = [tensor.detach().clone() for tensor in tensors(pl_module)]
        self._restored = content, checkpoint["averaging_state"]
        trained = {"state_dict": checkpoint["current_model_state"]}
        trainer.strategy.load_model_state_dict(trained, strict=pl_module.strict_loading)

    def _after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        # While gradients accumulate there is no new step.
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(pl_module)
            self._latest_update_step = step

    def _update(self, pl_module: LightningModule) -> None:
        assert self._average is not None
        trained: Any = _WithoutMasks(pl_module)
        self._average.update_parameters(trained)
        self._has_average = True

    def _agree(self, trainer: Trainer) -> None:
        """Processes have seen different batches, as running means show; as in training, those of the first count."""
        assert self._average is not None
        buffers = list(self._average.module.buffers())
        if trainer.world_size == 1 or not buffers:
            return
        first = trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
        with torch.no_grad():
            for buffer, content in zip(buffers, first, strict=True):
                buffer.copy_(content)

    def _state_of_other(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The module's state with the numbers that are not in it now."""
        assert self._average is not None
        with exchanged(pl_module, self._average.module):
            return trainer.strategy.lightning_module_state_dict()

    def _back_to_training(self, pl_module: LightningModule) -> None:
        if self._validates:
            self._validates = False
            self._swap(pl_module)

    def _swap(self, pl_module: LightningModule) -> None:
        assert self._average is not None
        swap_content(pl_module, self._average.module)
        self._holds_average = not self._holds_average


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights: `decay` of the old one, the rest of the new weights.

    Args:
        device: Where the average is kept; None: where the module is.
        use_buffers: Average buffers too, and not only copy them.
        decay: From 0 (no memory) to 1 (never changes).
        update_every_n_steps: Take in the weights after every so many optimizer steps; 0: not after steps.
        update_starting_at_step: From this step (0-based) on; None: from the first.
        update_starting_at_epoch: At the end of every epoch from this one (0-based) on; None: never at the end of one.
        kwargs: None is left: how to average is settled by `decay`.

    Raises:
        ArgumentTypeError: If a number is none, or a function to average is passed.
        ConfigurationError: If a number is out of range, or nothing would ever be averaged.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
            raise ConfigurationError(
                f"EMAWeightAveraging(decay={decay!r}) is no share. It says how much of the old average stays."
                " Pass a number from 0 to 1, such as 0.999."
            )
        if settled := [key for key in _AVERAGING_FUNCTIONS if key in kwargs]:
            raise ArgumentTypeError(
                f"EMAWeightAveraging({settled[0]}=...) contradicts decay={decay!r}, which settles how to average."
                " Leave it out, or use WeightAveraging."
            )
        numbers = {
            "update_every_n_steps": update_every_n_steps,
            "update_starting_at_step": update_starting_at_step or 0,
            "update_starting_at_epoch": update_starting_at_epoch or 0,
        }
        for key, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ConfigurationError(
                    f"EMAWeightAveraging({key}={value!r}) is no number of steps or epochs. It says when the average"
                    " takes in the weights. Pass an int of at least 0."
                )
        if update_every_n_steps == 0 and update_starting_at_epoch is None:
            raise ConfigurationError(
                "EMAWeightAveraging(update_every_n_steps=0) would never average. It does so neither after steps nor, as"
                " update_starting_at_epoch is None, at the end of epochs. Pass one of them."
            )
        super().__init__(device, use_buffers, **kwargs, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Is it a step, or an epoch, after which the arguments ask for it?"""
        if step_idx is not None and self.update_every_n_steps and step_idx % self.update_every_n_steps == 0:
            return step_idx >= (self.update_starting_at_step or 0)
        return (
            epoch_idx is not None
            and self.update_starting_at_epoch is not None
            and epoch_idx >= self.update_starting_at_epoch
        )


class Tensors(nn.Module):
    """The parameters and buffers of a module in its order, without its layers: cheap to copy, whatever they hold.

    Masks of pruning are left out: they come while a module is trained, and an average of them is no mask.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for index, parameter in enumerate(module.parameters()):
            self.register_parameter(f"parameter{index}", parameter)
        for index, buffer in enumerate(buffers_without_masks(module)):
            self.register_buffer(f"buffer{index}", buffer.detach())


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, then buffers; without masks."""
    return chain(module.parameters(), buffers_without_masks(module))


class _WithoutMasks:
    """What an average takes in of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = module.parameters
        self._module = module

    def buffers(self) -> Iterator[Tensor]:
        return buffers_without_masks(self._module)


@torch.no_grad()
def swap_content(one: nn.Module, other: nn.Module) -> None:
    """Each gets the numbers of the other; the tensors stay where they are."""
    for left, right in zip(tensors(one), tensors(other), strict=True):
        kept = left.detach().clone()
        left.copy_(right)
        right.copy_(kept)


@contextmanager
def exchanged(one: nn.Module, other: nn.Module) -> Iterator[None]:
    """Inside, each has the memory of the other. Nothing is copied; a state read inside stays that of the other."""
    pairs: Iterable[tuple[Tensor, Tensor]] = list(zip(tensors(one), tensors(other), strict=True))
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for left, right in pairs:
        left.data, right.data = right.data, left.data


def device_of(name: str, device: torch.device | str | int | None) -> torch.device | None:
    """The device that the callback `name` was given.

    Raises:
        ConfigurationError: If torch knows none of that name.
    """
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"{name}(device={device!r}) is no device. The average is kept there."
            " Pass a torch.device or its name, as 'cpu' or 'cuda:0', or None for where the module is."
        ) from error
