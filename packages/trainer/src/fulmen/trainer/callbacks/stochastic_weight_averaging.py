"""Average the weights at the end of the last epochs, which train at a high learning rate."""

from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_parameters
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.seeding import isolate_rng
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.weight_averaging import Tensors, device_of
from fulmen.trainer.callbacks.whole_weights import NeedsWholeWeights
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.data.batch import make_placer
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.optimization.arguments import step_arguments, takes_iterator
from fulmen.trainer.stages import Stage

AveragingFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_CPU = torch.device("cpu")
_NAME = "StochasticWeightAveraging"


def mean_so_far(averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor) -> Tensor:
    """The mean of `num_averaged` + 1 weights, of which the last is `model_parameter`."""
    return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (num_averaged + 1)


class StochasticWeightAveraging(NeedsWholeWeights):
    """In the last epochs, train at `swa_lrs` and average the weights at the end of each; leave the average.

    From the first of these epochs on, the schedulers of the module are replaced by `torch.optim.swa_utils.SWALR`, which
    steps once per epoch. After the last one the module gets the average, and running means of batch norms are computed
    anew in one more pass over the training batches, in which nothing is trained and nothing logged; processes join what
    they have seen. What is saved at the end of the last epoch is from before that; what is saved after the fit holds
    the average, and beside it what was trained: a fit that goes on from there trains that on.
    After Izmailov et al., https://arxiv.org/abs/1803.05407.

    Args:
        swa_lrs: The learning rate of these epochs; a list has one for each parameter group.
        swa_epoch_start: The first of these epochs, counted from 1; a float is a share of `max_epochs`.
        annealing_epochs: In how many epochs the learning rate comes to `swa_lrs`.
        annealing_strategy: How it does: "cos" or "linear".
        avg_fn: Gives the new average from (the old one, new weights, how many were averaged); None: the mean.
        device: Where the average is kept; None: where the module is.

    Raises:
        ArgumentTypeError, ConfigurationError: If an argument has the wrong type or is out of range; when a fit begins,
            if it has not just one optimizer that is stepped automatically, or parameters split over processes.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: AveragingFunction | None = None,
        device: torch.device | str | None = _CPU,
    ) -> None:
        super().__init__()
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates):
            raise ConfigurationError(
                f"{_NAME}(swa_lrs={swa_lrs!r}) is no learning rate. It is that of the epochs that are averaged."
                " Pass a float above 0, or a list with one for each parameter group."
            )
        is_epoch = type(swa_epoch_start) is int and swa_epoch_start >= 1
        if not is_epoch and not (isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1):
            raise ConfigurationError(
                f"{_NAME}(swa_epoch_start={swa_epoch_start!r}) is no epoch. It says from which one on weights are"
                " averaged. Pass an int of at least 1, or a float from 0 to 1 for a share of max_epochs."
            )
        if type(annealing_epochs) is not int or annealing_epochs < 0:
            raise ConfigurationError(
                f"{_NAME}(annealing_epochs={annealing_epochs!r}) is no number of epochs. In so many the learning rate"
                " comes to swa_lrs. Pass an int of at least 0."
            )
        if annealing_strategy not in ("cos", "linear"):
            raise ConfigurationError(
                f"{_NAME}(annealing_strategy={annealing_strategy!r}) is not known. It says how the learning rate comes"
                " to swa_lrs. Pass 'cos' or 'linear'."
            )
        if avg_fn is not None and not callable(avg_fn):
            raise ArgumentTypeError(
                f"{_NAME}(avg_fn={avg_fn!r}) cannot be called. It computes the average."
                " Pass a function of (average, weights, how many), or None for the mean."
            )
        if device is not None and not isinstance(device, str | torch.device):
            raise ArgumentTypeError(
                f"{_NAME}(device={device!r}) is no device. The average is kept there."
                " Pass a torch.device, its name, or None for where the module is."
            )
        self.n_averaged: Tensor | None = None
        self.momenta: dict[nn.Module, float | None] = {}
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy = annealing_strategy
        self._avg_fn: AveragingFunction = avg_fn or self.avg_fn
        self._device = device_of(_NAME, device)
        self._max_epochs = 0
        self._latest_update_epoch = -1
        self._scheduler: SWALR | None = None
        self._module: LightningModule | None = None
        self._average: nn.Module | None = None
        self._restored: dict[str, Any] | None = None
        self._trained: dict[str, Any] | None = None  # what the average has taken the place of
        self._before_cut: dict[str, Any] | None = None  # its state without an epoch that may be gone on with

    @property
    def swa_start(self) -> int:
        """The first epoch (0-based) that is averaged; known when a fit has begun."""
        start = self._swa_epoch_start
        return max((int(self._max_epochs * start) if isinstance(start, float) else start) - 1, 0)

    @property
    def swa_end(self) -> int:
        """The last epoch (0-based); known when a fit has begun."""
        return self._max_epochs - 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin without an average."""
        if stage == "fit":
            self._average = self._scheduler = self._module = self._restored = self.n_averaged = self._trained = None
            self._before_cut = None
            self._latest_update_epoch = -1
            self._max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that it can be done, and take what a checkpoint holds."""
        self._check(trainer, pl_module)
        self._module = pl_module
        restored, self._restored = self._restored, None
        if restored is None or restored["average_model_state"] is None:
            return
        if trained := restored.get("trained_model_state"):
            trainer.strategy.load_model_state_dict({"state_dict": trained}, strict=pl_module.strict_loading)
        # The schedulers of the checkpoint are those of averaging: its optimizer is restored after this.
        self._begin(trainer, pl_module)
        assert self._average is not None
        state = restored["average_model_state"]
        with torch.no_grad():
            for name, average in zip(plain_parameters(pl_module), self._average.parameters(), strict=True):
                average.copy_(state[name] if name in state else state[f"{name}_orig"])  # it was pruned
        self.n_averaged = torch.tensor(restored["n_averaged"])
        self._latest_update_epoch = restored["latest_update_epoch"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the epoch after which a checkpoint was written before the average could."""
        if self._scheduler is not None:
            self._take_in(pl_module, trainer.current_epoch - 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the first epoch that is averaged."""
        if self._scheduler is None and trainer.current_epoch >= self.swa_start:
            self._begin(trainer, pl_module)
            trainer.fit_loop.epoch_loop.setup_steps()  # it has new schedulers to step

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        """Take in the weights of this epoch."""
        # An epoch that was cut off may be gone on with: its weights count when it is over, or the run is.
        if self._scheduler is not None and not trainer.fit_loop.epoch_loop.was_cut:
            self._take_in(args[0], trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average, and batch norms the running means that belong to it."""
        if self._scheduler is not None and trainer.fit_loop.epoch_loop.was_cut:
            self._before_cut = deepcopy(self.state_dict())
            self._take_in(pl_module, trainer.current_epoch - 1)
        if self._average is None or not self.n_averaged:
            return
        state = trainer.strategy.lightning_module_state_dict()
        self._trained = {
            name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        self.transfer_weights(self._average, pl_module)
        if self.pl_module_contains_batch_norm(pl_module):
            self._renew_batch_norms(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average, and how far it is."""
        trained = {} if self._trained is None else {"trained_model_state": self._trained}
        if self._before_cut is not None:
            return trained | self._before_cut
        average_state = None
        if self._average is not None and self._module is not None:
            average_state = self._module.state_dict()
            for name, average in zip(plain_parameters(self._module), self._average.parameters(), strict=True):
                average_state[name] = average.detach()
        # That of torch 2.9 holds the function by which it anneals; the one that loads it has its own.
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return trained | {
            "n_averaged": 0 if self.n_averaged is None else int(self.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if scheduler is None else {k: v for k, v in scheduler.items() if not callable(v)},
            "average_model_state": average_state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, when the fit begins."""
        self._restored = state_dict

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Has it batch norms whose running means are learned?"""
        return bool(_learning_batch_norms(pl_module))

    def reset_batch_norm_and_save_state(self, pl_module: nn.Module) -> None:
        """Let the batch norms forget what they have seen, and compute plain means from now on."""
        self.momenta = {}
        for layer in _learning_batch_norms(pl_module):
            self.momenta[layer] = layer.momentum
            layer.reset_running_stats()
            layer.momentum = None

    def reset_momenta(self) -> None:
        """Give the batch norms back the momenta that `reset_batch_norm_and_save_state` took."""
        for layer, momentum in self.momenta.items():
            layer.momentum = momentum  # type: ignore[assignment]  # no tensor, a number
        self.momenta = {}

    @staticmethod
    def transfer_weights(src_pl_module: nn.Module, dst_pl_module: nn.Module) -> None:
        """Copy the parameters of one module into another of the same form."""
        with torch.no_grad():
            for source, target in zip(src_pl_module.parameters(), dst_pl_module.parameters(), strict=True):
                target.copy_(source)

    @staticmethod
    def update_parameters(
        average_model: nn.Module, model: nn.Module, n_averaged: Tensor, avg_fn: AveragingFunction
    ) -> None:
        """Take the parameters of `model` into those of `average_model`, and count that in `n_averaged`."""
        with torch.no_grad():
            for average, parameter in zip(average_model.parameters(), model.parameters(), strict=True):
                new = parameter.to(average.device)
                is_first = int(n_averaged) == 0
                average.copy_(new if is_first else avg_fn(average, new, n_averaged.to(average.device)))
            n_averaged += 1

    avg_fn = staticmethod(mean_so_far)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = class_name(pl_module)
        self.check_strategy(trainer.strategy)  # again: the module may have brought this callback
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"{_NAME} meets {name}, which has {len(trainer.optimizers)} optimizers and automatic_optimization="
                f"{pl_module.automatic_optimization}. It sets the learning rate of one that is stepped automatically."
                " Return one optimizer from configure_optimizers and leave the steps to the Trainer."
            )
        if takes_iterator(pl_module.training_step) and self.pl_module_contains_batch_norm(pl_module):
            raise ConfigurationError(
                f"{_NAME} meets {name}.training_step(dataloader_iter) and batch norms. Their running means are computed"
                " at the end by giving the step batch after batch. Define training_step(self, batch, batch_idx)."
            )
        if isinstance(self._swa_epoch_start, float) and self._max_epochs < 0:
            raise ConfigurationError(
                f"{_NAME}(swa_epoch_start={self._swa_epoch_start!r}) is a share of max_epochs, and the fit has no"
                f" such bound (max_epochs={trainer.max_epochs}). Pass max_epochs to the Trainer, or an int here."
            )
        groups = len(trainer.optimizers[0].param_groups)
        if isinstance(self._swa_lrs, list) and len(self._swa_lrs) != groups:
            raise ConfigurationError(
                f"{_NAME}(swa_lrs={self._swa_lrs!r}) has {len(self._swa_lrs)} learning rates, and the optimizer has"
                f" {groups} parameter groups. Each group has one. Pass one float for all, or a list of {groups}."
            )
        if any(config.interval == "step" for config in trainer.lr_scheduler_configs):
            rank_zero_warn(
                f"{_NAME} replaces the schedulers of {name}, of which one steps after optimizer steps. From epoch"
                f" {self.swa_start} on the learning rate changes once per epoch. Remove the scheduler if it must not."
            )

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self._average = deepcopy(Tensors(pl_module)).to(self._device or pl_module.device)
        self.n_averaged = torch.tensor(0)
        self._scheduler = SWALR(
            optimizer,
            swa_lr=self._swa_lrs,  # type: ignore[arg-type]  # a list too
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
        )
        trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(self._scheduler)]

    def _take_in(self, pl_module: LightningModule, epoch: int) -> None:
        if self.swa_start <= epoch and epoch > self._latest_update_epoch:
            assert self._average is not None
            assert self.n_averaged is not None
            self.update_parameters(self._average, pl_module, self.n_averaged, self._avg_fn)
            self._latest_update_epoch = epoch

    def _renew_batch_norms(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = trainer.context
        place = make_placer(pl_module, trainer.datamodule, trainer.strategy, run.hooks.as_hook)
        step = step_arguments(pl_module.training_step, self._step_past_wrapper(trainer, pl_module))
        prepared = run.data.prepared[Stage.TRAIN]
        position = prepared.state_dict()
        prepared.set_epoch(trainer.current_epoch)  # all of it, also where a resumed run ends before it reads a batch
        batches = Fetcher(prepared.loader, trainer.num_training_batches)
        self.reset_batch_norm_and_save_state(pl_module)
        pl_module.attach(trainer, _Nowhere())
        try:
            with isolate_rng(), torch.no_grad(), closing(batches):
                for index, batch in enumerate(batches):
                    step(batch if place is None else place(batch, 0), index)
                self._join_batch_norms(trainer)
        finally:
            pl_module.attach(trainer, run.metrics)
            self.reset_momenta()
            prepared.load_state_dict(position)  # a fit that goes on has not made this pass

    @staticmethod
    def _step_past_wrapper(trainer: Trainer, pl_module: LightningModule) -> Callable[..., Any]:
        """The step in which each process works for itself: a wrapper would replace its running means by the first's."""
        strategy = trainer.strategy
        if strategy.model is pl_module:
            return strategy.step_function("training_step")

        def step(*args: Any, **kwargs: Any) -> Any:
            with strategy.precision_plugin.forward_context():
                return pl_module.training_step(*args, **kwargs)

        return step

    def _join_batch_norms(self, trainer: Trainer) -> None:
        """Running means over the batches of all processes, whose numbers may differ."""
        if trainer.world_size == 1:
            return
        means, counts = [], []
        for layer in self.momenta:
            assert isinstance(layer, _BatchNorm)
            count = layer.num_batches_tracked
            assert count is not None
            counts.append(count)
            means.append([mean for mean in (layer.running_mean, layer.running_var) if mean is not None])
        sums = [mean * count for count, pair in zip(counts, means, strict=True) for mean in pair]
        *joined, totals = trainer.strategy.reduce_tensors([*sums, torch.stack(counts)], op="sum")
        for count, total, pair in zip(counts, totals, means, strict=True):
            for mean in pair:
                new = joined.pop(0)
                if total > 0:
                    mean.copy_(new / total)
            count.copy_(total)


class _Nowhere:
    """Takes what steps log, and drops it."""

    def log(self, name: str, value: Any, **_: Any) -> None: ...


def _learning_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    found = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in found if layer.training and layer.track_running_stats]
