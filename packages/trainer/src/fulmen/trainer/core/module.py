"""LightningModule: a model with the steps that train and evaluate it.

It is a `torch.nn.Module` first: it works without any run. A run attaches itself with `attach`; from then on
`self.trainer` and `self.log` reach it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.errors import ArgumentTypeError, MisconfigurationException
from fulmen.fabric.rank_zero import rank_zero_only as _rank_zero_only
from fulmen.fabric.rank_zero import warn_once
from fulmen.fabric.trees import convert_to_tensors, map_tensors
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.export import Exports
from fulmen.trainer.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from fulmen.trainer.core.hparams import HyperparametersMixin
from fulmen.trainer.core.loading import build, class_only, load_weights, read_checkpoint
from fulmen.trainer.core.needs import (
    ATTACHMENTS,
    COMPILED,
    COMPILED_METHODS,
    STEP_OUTPUT,
    AttachedFabric,
    AttachedTrainer,
    LogSink,
    LRSchedulerPLType,
    OptimizerLRScheduler,
)
from fulmen.trainer.core.optimizer import LightningOptimizer
from fulmen.trainer.core.plain_names import PlainNames
from fulmen.trainer.core.switches_gradients import SwitchesGradients
from fulmen.trainer.core.unbuilt import expect_init
from fulmen.trainer.signature import extension_point

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MODULE_OPTIMIZERS = Optimizer | LightningOptimizer | list[Optimizer] | list[LightningOptimizer]


@extension_point
class LightningModule(
    HyperparametersMixin, ModelHooks, DataHooks, CheckpointHooks, PlainNames, SwitchesGradients, Exports
):
    """A model with the steps that train and evaluate it.

    Override `training_step` and `configure_optimizers`, and what else is needed of the steps and hooks.
    """

    # Class attributes: reading them costs nothing of nn.Module's own attribute handling, and works before __init__.
    _trainer: AttachedTrainer | None = None
    _sink: LogSink | None = None
    _run_backward: Callable[..., None] | None = None
    _fabric: AttachedFabric | None = None
    _fabric_optimizers: list[Any] | None = None
    _automatic_optimization: bool = True
    _strict_loading: bool | None = None
    __jit_unused_properties__: ClassVar[list[str]]
    _device: torch.device
    _dtype: torch.dtype

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """The object before `__init__`; a layer that is assigned to it is refused."""
        following: Callable[..., Self] = super().__new__  # a mixin's may want the arguments
        module = following(cls) if following is object.__new__ else following(cls, *args, **kwargs)
        expect_init(module)
        return module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._device = torch.get_default_device()
        self._dtype = torch.get_default_dtype()

    # ---- the run -------------------------------------------------------------------------------------------------

    def attach(self, trainer: AttachedTrainer, sink: LogSink | None) -> None:
        """Ties this module, and every LightningModule inside it, to a run.

        Args:
            trainer: What `self.trainer` is.
            sink: Where `self.log` writes to; None: nowhere.
        """
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__.update(_trainer=trainer, _sink=sink)

    def detach(self) -> None:
        """Unties what `attach` tied."""
        for module in self.modules():
            if isinstance(module, LightningModule):
                for name in ("_trainer", "_sink", "_run_backward"):
                    module.__dict__.pop(name, None)

    def bind_backward(self, backward: Callable[..., None]) -> None:
        """Lets `manual_backward` go through the run: `backward` gets all that it was given."""
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_run_backward"] = backward

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run.

        Raises:
            RuntimeError: If the module is in no run.
        """
        trainer: Any = self._trainer  # a Trainer, or what stands in for one
        if trainer is None and not self._is_scripted:
            # No AttributeError: nn.Module would turn it into one about a missing layer.
            raise RuntimeError(
                f"{type(self).__qualname__}.trainer was read while the module is in no run."
                " A trainer is there from the beginning of Trainer.fit, validate, test or predict."
                " Read it in a hook or a step, or guard it with `if self._trainer is not None`."
            )
        return trainer  # type: ignore[no-any-return]

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_trainer"] = trainer

    @property
    def fabric(self) -> AttachedFabric | None:
        """The Fabric that this module is used with in place of a Trainer."""
        return self._fabric

    @fabric.setter
    def fabric(self, fabric: AttachedFabric | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_fabric"] = fabric

    @property
    def current_epoch(self) -> int:
        """Epochs completed; 0 without a run."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; 0 without a run."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Number of this process among all; 0 without a run."""
        run = self._trainer or self._fabric
        return run.global_rank if run is not None else 0

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine; 0 without a run."""
        run = self._trainer or self._fabric
        return run.local_rank if run is not None else 0

    @property
    def logger(self) -> Any:
        """The first logger of the run, or None."""
        run = self._fabric or self._trainer
        return run.logger if run is not None else None

    @property
    def loggers(self) -> list[Any]:
        """The loggers of the run."""
        run = self._fabric or self._trainer
        return run.loggers if run is not None else []

    @property
    def device_mesh(self) -> "DeviceMesh | None":
        """The mesh of devices that a model-parallel run spans; None in other runs."""
        strategy = self._trainer.strategy if self._trainer is not None else None
        return getattr(strategy, "device_mesh", None)

    # ---- where it is ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the module was moved to; tensors made in a step belong there."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that the module was converted to."""
        return self._dtype

    @dtype.setter
    def dtype(self, new_dtype: torch.dtype) -> None:
        raise ArgumentTypeError(
            f"{type(self).__qualname__}.dtype = {new_dtype} cannot be set. It says what the parameters are, and"
            f" setting it would not change them. Call module.to({new_dtype})."
        )

    @property
    def on_gpu(self) -> bool:
        """Is it on a CUDA device?"""
        return self._device.type == "cuda"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # All of to(), cuda(), half(), type() ... come through here. A probe sees what they do to a module without
        # parameters as well, and reading `device` in a step is then a plain look-up.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own is untyped
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self.__dict__.update(_device=probe.device, _dtype=probe.dtype)
        return self

    # ---- choices -------------------------------------------------------------------------------------------------

    @property
    def automatic_optimization(self) -> bool:
        """Does the run call backward, step and zero_grad? If False, `training_step` does."""
        return self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, automatic_optimization: bool) -> None:
        self.__dict__["_automatic_optimization"] = automatic_optimization

    @property
    def strict_loading(self) -> bool:
        """Must a checkpoint hold exactly the weights of this module?"""
        return True if self._strict_loading is None else self._strict_loading

    @strict_loading.setter
    def strict_loading(self, strict_loading: bool) -> None:
        self.__dict__["_strict_loading"] = strict_loading

    # ---- what users write ----------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `module(...)` computes; as in any `torch.nn.Module`."""
        return super().forward(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Computes the loss of one batch: `training_step(self, batch, batch_idx)`.

        Returns the loss as a scalar tensor, or a dict with the key "loss", or None to skip the batch.
        """
        warn_once(
            f"{type(self).__qualname__} has no training_step. The one of LightningModule computes nothing."
            " Define training_step(self, batch, batch_idx), and return the loss."
        )
        return None

    def validation_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Looks at one validation batch: `validation_step(self, batch, batch_idx, dataloader_idx=0)`."""
        return None

    def test_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Looks at one test batch: `test_step(self, batch, batch_idx, dataloader_idx=0)`."""
        return None

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """What `Trainer.predict` returns for one batch; unless overridden, `self(batch)`."""
        return self(kwargs["batch"] if "batch" in kwargs else args[0])

    # `Callback` names the module in its hooks, so it is not named here.
    def configure_callbacks(self) -> Sequence[Any] | Any:
        """Callbacks that belong to this module; each takes the place of one of the same type given to the Trainer."""
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizers and learning-rate schedulers that train this module.

        Returns one optimizer; a list of them; `([optimizers], [schedulers])`; a dict with the keys "optimizer" and,
        if wanted, "lr_scheduler" and "monitor"; a list of such dicts; or None.
        """
        warn_once(
            f"{type(self).__qualname__} has no configure_optimizers. Without an optimizer nothing is learned."
            " Define configure_optimizers(self), and return an optimizer."
        )
        return None

    # ---- metrics -------------------------------------------------------------------------------------------------

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Records a value under a name; without a run it is dropped, with a warning.

        Args:
            name: Its name; the same in all processes.
            value: A number, a tensor of one element, or a torchmetrics object.
            prog_bar: Show it in the progress bar?
            logger: Send it to the loggers? None: yes.
            on_step: Publish the value of each step? None: as fits the hook.
            on_epoch: Publish the value reduced over the epoch? None: as fits the hook.
            reduce_fx: How to reduce over the epoch: "mean", "sum", "min" or "max".
            enable_graph: Keep the autograd graph?
            sync_dist: Reduce over processes too?
            sync_dist_group: Over which of them.
            add_dataloader_idx: With several loaders, tell their values apart by a suffix?
            batch_size: Weight of this value in the mean; None: found in the batch.
            metric_attribute: Attribute that holds the torchmetrics object.
            rank_zero_only: Is it called on the first process only?
        """
        sink = self._sink
        if sink is None:
            self._log_without_run({name: value}, logger)
            return
        sink.log(
            name,
            value,
            prog_bar=prog_bar,
            logger=logger,
            on_step=on_step,
            on_epoch=on_epoch,
            reduce_fx=reduce_fx,
            enable_graph=enable_graph,
            sync_dist=sync_dist,
            sync_dist_group=sync_dist_group,
            add_dataloader_idx=add_dataloader_idx,
            batch_size=batch_size,
            metric_attribute=metric_attribute,
            rank_zero_only=rank_zero_only,
        )

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Records several values at once; the arguments are those of `log`, `dictionary` is names to values."""
        if self._sink is None:
            self._log_without_run(dictionary, logger)
            return
        for name, value in _metric_items(dictionary):
            self.log(
                name,
                value,
                prog_bar=prog_bar,
                logger=logger,
                on_step=on_step,
                on_epoch=on_epoch,
                reduce_fx=reduce_fx,
                enable_graph=enable_graph,
                sync_dist=sync_dist,
                sync_dist_group=sync_dist_group,
                add_dataloader_idx=add_dataloader_idx,
                batch_size=batch_size,
                rank_zero_only=rank_zero_only,
            )

    def _log_without_run(self, metrics: Mapping[str, Any], logger: bool | None) -> None:
        if self._fabric is None:
            warn_once(
                f"{type(self).__qualname__}.log was called while the module is in no run. The values are dropped."
                " Log in the steps and hooks that Trainer.fit, validate and test call."
            )
        elif logger is not False:
            self._fabric.log_dict({name: _detached(value) for name, value in _metric_items(metrics)})

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints on the first process, above the progress bar if there is one."""
        if self._fabric is not None:
            self._fabric.print(*args, **kwargs)
            return
        if not (self._trainer.is_global_zero if self._trainer is not None else _rank_zero_only.rank == 0):
            return
        bar = self._trainer.progress_bar_callback if self._trainer is not None else None
        if bar is not None and bar.is_enabled:
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """The values of all processes, each tensor stacked along a new first axis; all processes must call it.

        Args:
            data: A tensor or number, or a collection of them.
            group: The processes; None: all.
            sync_grads: Let gradients flow back?
        """
        if self._fabric is not None:
            return self._fabric.all_gather(data, group=group, sync_grads=sync_grads)
        gather = self.trainer.strategy.all_gather
        return map_tensors(convert_to_tensors(data, self.device), gather, group=group, sync_grads=sync_grads)

    # ---- optimization --------------------------------------------------------------------------------------------

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizers of the run: the object itself if there is one, else a list.

        Args:
            use_pl_optimizer: As `LightningOptimizer`, whose step goes through the run? Else the torch optimizers.
        """
        found: list[Any]
        if self._fabric is not None:
            found = list(self._fabric_optimizers or [])
        elif use_pl_optimizer:
            found = list(self.trainer.strategy.lightning_optimizers)
        else:
            found = list(self.trainer.optimizers)
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> list[LRSchedulerPLType] | LRSchedulerPLType | None:
        """The learning-rate schedulers of the run: None, the object itself if there is one, or a list."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if not found:
            return None
        return found[0] if len(found) == 1 else found

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes gradients in manual optimization; use it in place of `loss.backward()`.

        Args:
            loss: A scalar; with scaled precision, it is scaled here.
            args, kwargs: For `Tensor.backward`.

        Raises:
            MisconfigurationException: In automatic optimization.
        """
        if self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
            return
        if self._automatic_optimization:
            raise MisconfigurationException(
                f"manual_backward was called in {type(self).__qualname__} with automatic optimization."
                " There the run itself calls backward, and gradients would be counted twice."
                " Set self.automatic_optimization = False in __init__, or return the loss in place of this call."
            )
        if self._run_backward is not None:
            self._run_backward(loss, *args, **kwargs)
        else:
            self.trainer.strategy.backward(loss, None, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes the gradients of `loss`; override it to do so in another way."""
        if self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step of automatic optimization; override it to change when or how optimizers step.

        Args:
            epoch, batch_idx: Where the run is.
            optimizer: The one to step.
            optimizer_closure: Runs training step, zero_grad and backward; `optimizer.step` must be given it.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clears gradients before backward."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients before a step; override it, and call `clip_gradients`, to clip in another way.

        Args:
            optimizer: The one that is about to step.
            gradient_clip_val, gradient_clip_algorithm: What the Trainer was given.
        """
        self.clip_gradients(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients of an optimizer's parameters, as the run's precision and strategy need it.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The limit; None: what the Trainer was given, 0: no clipping.
            gradient_clip_algorithm: "norm" or "value"; None: what the Trainer was given, else "norm".

        Raises:
            MisconfigurationException: If the Trainer was given another value, or the algorithm is unknown.
        """
        trainer = self._trainer
        value = _one_of("gradient_clip_val", gradient_clip_val, trainer and trainer.gradient_clip_val, default=0.0)
        algorithm = _one_of(
            "gradient_clip_algorithm",
            gradient_clip_algorithm and str(gradient_clip_algorithm).lower(),
            trainer and trainer.gradient_clip_algorithm,
            default="norm",
        )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ArgumentTypeError(
                f"clip_gradients(gradient_clip_val={value!r}) got a {type(value).__name__}."
                " Gradients are compared with it, so it must be a number. Pass an int or a float."
            )
        if algorithm not in ("norm", "value"):
            raise MisconfigurationException(
                f"clip_gradients(gradient_clip_algorithm={algorithm!r}) is unknown."
                " Gradients can be clipped by their norm, or each by its value. Pass 'norm' or 'value'."
            )
        if value <= 0:
            return
        if self._fabric is not None:
            by_norm = algorithm == "norm"
            limit = {"max_norm": value} if by_norm else {"clip_val": value}
            self._fabric.clip_gradients(self, optimizer, **limit)
        else:
            self.trainer.strategy.clip_gradients(optimizer, value, algorithm)

    def lr_scheduler_step(self, scheduler: LRSchedulerPLType, metric: Any | None) -> None:
        """Steps a learning-rate scheduler; override it for a scheduler that is not torch's.

        Args:
            scheduler: The one to step.
            metric: The monitored value, for a scheduler that takes one.
        """
        if metric is None:
            scheduler.step()  # type: ignore[call-arg]  # only ReduceLROnPlateau needs the metric, and has it
        else:
            scheduler.step(metric)

    # ---- as a whole ----------------------------------------------------------------------------------------------

    @class_only
    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A module built with the hyperparameters in a checkpoint, with its weights.

        Args:
            checkpoint_path: A path, local or remote, a URL (kept after the first time), or an open file.
            map_location: As for `torch.load`; None: where the weights were, if this machine has that device.
            hparams_file: YAML or CSV with hyperparameters to use in place of those in the file.
            strict: Must the file hold exactly the module's weights? None: as `strict_loading` says.
            weights_only: None: True. False runs code from the file: only for files you trust.
            kwargs: Arguments of `__init__`, in place of those in the file.

        Raises:
            ArgumentTypeError: If an argument of `__init__` is found nowhere, or this is called on an object.
            CheckpointNotFoundError, CheckpointDamagedError: If the file is missing or cut short.
            ConfigurationError: If arguments contradict the file or the module.
        """
        checkpoint = read_checkpoint(cls, checkpoint_path, map_location, hparams_file, weights_only, kwargs)
        module = build(cls, checkpoint, kwargs)
        load_weights(module, checkpoint, strict)
        return module

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ATTACHMENTS}
        compiled = state.pop(COMPILED, None)
        if compiled is not None:  # its methods are bound to this very object
            for name in COMPILED_METHODS:
                state.pop(name, None)
            state.update(compiled["originals"])
        return state


# Properties belong to a run or to Python; torch.jit would try to compile them.
LightningModule.__jit_unused_properties__ = [
    name for cls in LightningModule.__mro__ for name, value in vars(cls).items() if isinstance(value, property)
]


def _one_of(name: str, given: Any, of_trainer: Any, *, default: Any) -> Any:
    """The value of an argument that the Trainer has too."""
    if given is None:
        return default if of_trainer is None else of_trainer
    if of_trainer is not None and of_trainer != given:
        raise MisconfigurationException(
            f"clip_gradients({name}={given!r}) contradicts Trainer({name}={of_trainer!r})."
            " Only one of them can decide how gradients are clipped. Leave one of the two out."
        )
    return given


def _metric_items(metrics: Mapping[str, Any]) -> Any:
    # A collection of torchmetrics hands out copies of its members unless told not to; whoever has one has loaded it.
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None and isinstance(metrics, torchmetrics.MetricCollection):
        return metrics.items(keep_base=False, copy_state=False)
    return metrics.items()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
