"""A fabric strategy, bound to one module and its optimizers.

How a model runs on devices is written once, in `fulmen.fabric.strategies`. Here is only what a trainer adds: the steps
of a `LightningModule` as functions, backward through the module's own `backward`, and the road of the module's state
to and from a checkpoint.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.capabilities import SkipsGradientSync
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.fabric.trees import move_to_device
from fulmen.fabric.types import Optimizable
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.optimizer import LightningOptimizer
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.signature import extension_point, is_overridden
from fulmen.trainer.stages import EntryPoint
from fulmen.trainer.strategies.half_summed import KeepsGradients
from fulmen.trainer.strategies.hears_the_run import HearsTheRun
from fulmen.trainer.strategies.layer_sync import LayerSync


@extension_point
class Strategy(KeepsGradients, HearsTheRun):
    """How the trainer runs a module on devices.

    Users may subclass it and override any public method; whoever overrides the collective methods (`reduce`,
    `broadcast`, `barrier`, `all_gather`) overrides `world_size` and the ranks with them.

    Args:
        accelerator: The kind of hardware; None lets the trainer choose.
        checkpoint_io: How checkpoints are written; None is one file by `torch.save`.
        precision_plugin: How numbers are held and computed; None is 32-bit.
    """

    layer_sync: LayerSync | None = None
    # Does no process hold the whole module? Must all make the same number of evaluation steps? May they be made in
    # inference mode?
    shards_parameters: bool = False
    evaluates_in_step: bool = False
    allows_inference_mode: bool = True
    lr_scheduler_configs: list[Any]
    # The optimizers as users see them: their `step` goes through the run.
    lightning_optimizers: list[LightningOptimizer]
    # The run's way to ask the module for optimizers and the configurations of their schedulers.
    make_optimizers: Callable[[], tuple[list[Optimizer], list[Any]]] | None = None
    # The module's parameters when its optimizers were made; those that come later are in none of them.
    known_parameters: Sequence[nn.Parameter] = ()
    # The user's hook that moves batches: the module's, until `data.batch.make_placer` finds one of the datamodule's.
    transfer: Callable[[Any, torch.device, int], Any] | None
    _model: nn.Module | None
    _optimizers: list[Optimizer]
    _lightning_module: LightningModule | None
    _run_backward: Callable[..., None] | None

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        self._adopt(
            FabricSingleDeviceStrategy(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision_plugin)
        )

    @classmethod
    def from_fabric(cls, fabric_strategy: FabricStrategy) -> "Strategy":
        """A strategy around one of fabric's, which it uses and does not copy."""
        strategy = cls.__new__(cls)
        strategy._adopt(fabric_strategy)
        return strategy

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Register the names of this strategy; a subclass that wants names overrides it."""

    # What a trainer asks before it begins

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Does the strategy itself count batches until a step?"""
        return False

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Can the state of a checkpoint be loaded only after the model was set up?"""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Does the trainer put back the optimizers' states (True), or the strategy (False)?"""
        return True

    @property
    def backward_is_plain(self) -> bool:
        """Is `backward(loss, ...)` no more than `loss.backward()`, if the module does not override it?"""
        return self._is_plain(Strategy, "backward", "pre_backward", "post_backward")

    @property
    def optimizer_step_is_plain(self) -> bool:
        """Is `optimizer_step(optimizer, ...)` no more than `optimizer.step(...)`?"""
        return self._is_plain(Strategy, "optimizer_step")

    # Setting up and tearing down

    @property
    def lightning_module(self) -> LightningModule | None:
        """The user's module, never wrapped."""
        return self._lightning_module

    @property
    def model(self) -> nn.Module | None:
        """The module as it is trained: wrapped, where the strategy wraps."""
        return self._model

    @model.setter
    def model(self, new_model: nn.Module | None) -> None:
        self._model = new_model

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the module."""
        return self._optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self.lightning_optimizers = [LightningOptimizer(optimizer) for optimizer in optimizers]

    def connect(self, model: LightningModule) -> None:
        """Bind the module. Nothing is moved or wrapped yet."""
        self._lightning_module = model
        self.model = model
        overrides = is_overridden("transfer_batch_to_device", model, LightningModule)
        self.transfer = model.transfer_batch_to_device if overrides else None
        self._run_backward = None

    def setup_environment(self) -> None:
        """Join the other processes and set up the device."""
        self.fabric_strategy.setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Get everything ready for a run: the model, and if it is trained, its optimizers."""
        prepare = getattr(self.accelerator, "setup", None)  # of an accelerator of the user's own
        if prepare is not None:
            prepare(trainer)
        training = trainer.state.fn is EntryPoint.FIT
        self.setup_model(training=training)
        if training:
            self.setup_optimizers(trainer)

    def setup_model(self, *, training: bool) -> None:
        """Convert the module to the precision and move it; if it is trained, synchronise its layers and wrap it."""
        self.model = self.precision_plugin.convert_module(self._module())
        self.model_to_device()
        if training:
            if self.layer_sync is not None:
                self._check_layer_sync()
                self.model = self.layer_sync.apply(self.model)
            self.model = self._wrap(self.model)
        self.setup_precision_plugin()

    def setup_precision_plugin(self) -> None:
        """Called when the model is in place; for strategies that tie the precision to it."""
        self._run_backward = None

    def model_to_device(self) -> None:
        """Move the model to the device of this process."""
        assert self.model is not None
        self.model.to(self.root_device)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Ask the module for its optimizers and schedulers, in place of those that are here."""
        assert self.make_optimizers is not None, f"no run has told how it makes optimizers for {trainer}"
        self.take_optimizers(*self.make_optimizers())

    def take_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> None:
        """Take over the optimizers and the configurations of their schedulers.

        State that an optimizer has already (from an earlier run) moves to the device.
        """
        self.optimizers = optimizers
        self.lr_scheduler_configs = list(schedulers)
        self._optimizers_to(self.root_device)

    def teardown(self) -> None:
        """Give the module back as it came: unwrapped, its layers as they were, on the CPU."""
        if self._lightning_module is not None:
            if self.layer_sync is not None:
                self.layer_sync.revert(self._lightning_module)
            self.model = self._lightning_module
            if self.root_device.type != "cpu":
                self._lightning_module.cpu()
                self._optimizers_to(torch.device("cpu"))
        self._run_backward = None
        self.fabric_strategy.teardown()

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Inside, new tensors are born on the device and in the precision.

        Args:
            empty_init: Leave new parameters uninitialised, because a checkpoint will be loaded into them.
        """
        return self.fabric_strategy.module_init_context(empty_init=empty_init)

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Around `configure_model`; strategies that shard parameters do it here."""
        yield

    # Steps

    def step_function(self, name: str) -> Callable[..., Any]:
        """What runs the module's `name` ("training_step", ...), worked out once, before the loop.

        It holds the precision's context, and for training the wrapper's forward. If nothing is to be done around the
        step it is the module's method itself. Batches are converted and moved before, by `data.batch.make_placer`.
        """
        if getattr(type(self), name) is not getattr(Strategy, name):
            own: Callable[..., Any] = getattr(self, name)
            return own
        return self._make_step(name)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `training_step`, through the wrapper if there is one."""
        return self._make_step("training_step")(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `validation_step`, past any wrapper."""
        return self._make_step("validation_step")(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `test_step`, past any wrapper."""
        return self._make_step("test_step")(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `predict_step`, past any wrapper."""
        return self._make_step("predict_step")(*args, **kwargs)

    def post_training_step(self) -> None:
        """Called after each training step; for subclasses."""

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Compute gradients, through the module's `backward`, of the loss as the precision scales it.

        Args:
            closure_loss: What to derive.
            optimizer: The one that will step; None in manual optimization.
            args, kwargs: Handed on to the module's `backward`.
        """
        run = self._run_backward
        if run is None:
            run = self._run_backward = self._make_backward()
        self.pre_backward(closure_loss)
        run(closure_loss, *args, **kwargs)
        self.post_backward(closure_loss)
        return closure_loss

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Called before each backward."""

    def post_backward(self, closure_loss: Tensor) -> None:
        """Called after each backward."""

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any] | None = None,
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step `optimizer` as the precision wants it.

        Args:
            optimizer: The torch optimizer.
            closure: Computes the loss and its gradients; None if they are there.
            model: For strategies in which the model steps.
            kwargs: Handed on to `optimizer.step`.
        """
        if closure is not None:
            kwargs["closure"] = closure
        return self.fabric_strategy.optimizer_step(cast(Optimizable, optimizer), **kwargs)

    def clip_gradients(self, optimizer: Optimizer, clip_val: float, algorithm: str = "norm") -> None:
        """Clip the gradients of this optimizer's parameters; scaled ones are unscaled before.

        Args:
            optimizer: Whose parameters.
            clip_val: The largest norm of all gradients together ("norm"), or the largest absolute value ("value").
            algorithm: "norm" or "value".

        Raises:
            ConfigurationError: For any other algorithm.
        """
        module, fabric = self._module(), self.fabric_strategy
        if algorithm == "norm":
            fabric.clip_gradients_norm(module, optimizer, clip_val, error_if_nonfinite=False)
        elif algorithm == "value":
            fabric.clip_gradients_value(module, optimizer, clip_val)
        else:
            raise ConfigurationError(
                f"gradient_clip_algorithm={algorithm!r} is not known. Gradients are clipped by the norm of all of them"
                " or by the value of each. Pass 'norm' or 'value'."
            )

    def skip_gradient_sync(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Inside, backward leaves the gradients of this process alone: more will be added before the step."""
        fabric, model = self.fabric_strategy, self.model
        if model is None or model is self._lightning_module or not isinstance(fabric, SkipsGradientSync):
            return _NO_CONTEXT
        return fabric.no_backward_sync(model, enabled)

    # Data

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch, with the user's `transfer_batch_to_device` if there is one."""
        device = device or self.root_device
        if self.transfer is not None:
            return self.transfer(batch, device, dataloader_idx)
        return self.fabric_strategy.batch_to_device(batch, device)

    @property
    def moves_batches_itself(self) -> bool:
        """Does a subclass override `batch_to_device`?"""
        return type(self).batch_to_device is not Strategy.batch_to_device

    def process_dataloader(self, dataloader: Any) -> Any:
        """The loader as this strategy wants it."""
        return self.fabric_strategy.process_dataloader(dataloader)

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's whole state."""
        return self.fabric_strategy.get_module_state_dict(self._module())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put `checkpoint["state_dict"]` into the module."""
        self.fabric_strategy.load_module_state_dict(self._module(), checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put `checkpoint["optimizer_states"]` into the optimizers, in order.

        Raises:
            ConfigurationError: There are more or fewer of them than optimizers.
        """
        states = checkpoint["optimizer_states"]
        self._check_states(states)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self._optimizers_to(self.root_device)

    # For the strategies of this folder

    def _check_states(self, states: Sequence[Any]) -> None:
        if len(states) != len(self.optimizers):
            raise ConfigurationError(
                f"The checkpoint holds the states of {len(states)} optimizers, and the module has"
                f" {len(self.optimizers)}. State is given back in the order of configure_optimizers()."
                " Return as many optimizers as when the checkpoint was saved, or load only the weights."
            )

    def _adopt(self, fabric_strategy: FabricStrategy) -> None:
        self.fabric_strategy = fabric_strategy
        self._model = self._lightning_module = self._run_backward = self.transfer = None
        self.lr_scheduler_configs, self.optimizers = [], []

    def _module(self) -> LightningModule:
        if self._lightning_module is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no module yet. The trainer connects one when fit, validate, test or"
                " predict begins. Call one of them first, or connect(module)."
            )
        return self._lightning_module

    def _is_plain(self, known: type["Strategy"], name: str, *hooks: str) -> bool:
        """Does nobody add to the operation `name`: not the precision, not fabric's strategy, no subclass of `known`?"""
        return (
            self.precision_plugin.is_plain
            and all(getattr(type(self), method) is getattr(known, method) for method in (name, *hooks))
            and getattr(type(self.fabric_strategy), name) is getattr(FabricStrategy, name)
        )

    def _wrap(self, model: nn.Module) -> nn.Module:
        return model

    def _surrounded(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, called as this strategy calls it: training through the wrapper, evaluation past it."""
        return self._through_wrapper(step) if name == "training_step" else step

    def _through_wrapper(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return step

    def _check_layer_sync(self) -> None:
        """May layers be synchronised here? On one process there is nothing to object to."""

    def _make_step(self, name: str) -> Callable[..., Any]:
        step = self._surrounded(name, getattr(self._module(), name))
        precision = self.precision_plugin
        if not precision.has_forward_context:
            return step

        def step_in_context(*args: Any, **kwargs: Any) -> Any:
            with precision.forward_context():
                return step(*args, **kwargs)

        return step_in_context

    def _make_backward(self) -> Callable[..., None]:
        module, precision = self._lightning_module, self.precision_plugin
        if module is None or not is_overridden("backward", module, LightningModule):
            if self.backward_is_plain:
                return Tensor.backward
            return lambda loss, *args, **kwargs: self.fabric_strategy.backward(loss, module, *args, **kwargs)
        # The user's own backward gets the loss as it is to be derived: scaled, where the precision scales.
        scaler = getattr(precision, "scaler", None) if precision.scales_loss else None

        def through_module(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            precision.pre_backward(loss, module)
            module.backward(loss if scaler is None else scaler.scale(loss), *args, **kwargs)
            precision.post_backward(loss, module)

        return through_module

    def _optimizers_to(self, device: torch.device) -> None:
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                # Adam's step counter stays on the CPU unless the optimizer is capturable or fused; torch asks for it.
                keeps_step = not any(optimizer.defaults.get(flag) for flag in ("capturable", "fused"))
                optimizer.state[parameter] = {
                    key: value if key == "step" and keeps_step else move_to_device(value, device)
                    for key, value in state.items()
                }


_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()
