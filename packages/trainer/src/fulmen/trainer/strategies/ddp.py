"""Bound: a replica of the module in every process, gradients averaged in backward.

Only what the trainer does differently: training goes through `DistributedDataParallel`, evaluation past it, and manual
optimization, where backward runs inside forward, prepares the gradient reduction itself.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.class_names import class_name
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from fulmen.fabric.trees import leaves
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.half_summed import Gradients
from fulmen.trainer.strategies.layer_sync import has_batch_norm
from fulmen.trainer.strategies.parallel import ParallelStrategy


class DDPStrategy(ParallelStrategy):
    """`torch.nn.parallel.DistributedDataParallel` around the module.

    Args:
        accelerator, checkpoint_io, precision_plugin: See `Strategy`.
        parallel_devices, cluster_environment: See `ParallelStrategy`.
        ddp_comm_hook: How gradients are reduced; see torch's `register_comm_hook`.
        ddp_comm_state: Handed to the hook.
        ddp_comm_wrapper: Called with the hook; what it returns is registered.
        model_averaging_period: Average parameters every so many steps; for the post-local-SGD hook.
        process_group_backend: "gloo", "nccl", ...; None is the one that fits the device.
        timeout: How long a collective may take.
        start_method: How the other processes are started.
        kwargs: For `DistributedDataParallel`, such as `find_unused_parameters`.
    """

    strategy_name = "ddp"

    _comm_state: object | None = None
    _comm_hook: Callable[..., Any] | None = None
    _comm_wrapper: Callable[..., Any] | None = None
    _averaging_period: int | None = None
    _averager: Any = None

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        model_averaging_period: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(seconds=1800),  # a constant
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        **kwargs: Any,
    ) -> None:
        self._comm_state = ddp_comm_state
        self._comm_hook = ddp_comm_hook
        self._comm_wrapper = ddp_comm_wrapper
        self._averaging_period = model_averaging_period
        self._adopt(
            FabricDDPStrategy(
                accelerator=accelerator,
                parallel_devices=parallel_devices,
                cluster_environment=cluster_environment,
                checkpoint_io=checkpoint_io,
                precision=precision_plugin,
                process_group_backend=process_group_backend,
                timeout=timeout,
                start_method=start_method,
                **kwargs,
            )
        )

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Register "ddp", its ways to start processes, and each of them with and without unused parameters."""
        register_ddp(strategy_registry, cls)

    @property
    def is_distributed(self) -> bool:
        """Always: also one process is a group."""
        return True

    @property
    def optimizer_step_is_plain(self) -> bool:
        """Is `optimizer_step(optimizer, ...)` no more than `optimizer.step(...)`?"""
        return self._averager is None and self._is_plain(DDPStrategy, "optimizer_step")

    @property
    def backward_is_plain(self) -> bool:
        """Is `backward(loss, ...)` no more than `loss.backward()`? Not where the reduction must be prepared."""
        plain = self._is_plain(DDPStrategy, "backward", "pre_backward", "post_backward")
        return plain and not self._prepares_backward

    def configure_ddp(self) -> None:
        """Wrap the model for training."""
        assert self.model is not None
        wrapped = self.fabric_strategy.setup_module(self.model)
        if self._comm_hook is not None and isinstance(wrapped, DistributedDataParallel):
            hook = self._comm_hook if self._comm_wrapper is None else self._comm_wrapper(self._comm_hook)
            wrapped.register_comm_hook(self._comm_state, hook)
        self.model = wrapped

    def determine_ddp_device_ids(self) -> list[int] | None:
        """What `DistributedDataParallel` is told of devices: the index of the one here; None on the CPU."""
        device = self.root_device
        return None if device.type == "cpu" or device.index is None else [device.index]

    def take_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> None:
        """Take over optimizers and schedulers; begin to average parameters, if asked for."""
        super().take_optimizers(optimizers, schedulers)
        self._averager = None
        if self._averaging_period is not None and isinstance(self.model, DistributedDataParallel):
            self._averager = self._make_averager(self._averaging_period)

    def on_trained_parameters_change(self) -> None:
        """Wrap the module anew: the wrapper joins the gradients of what was trained when it was made, and no others.

        Every process must call it, between two optimizer steps.
        """
        wrapped = self.model
        inner = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
        assert inner is not None
        self._wrap(inner)
        self._run_backward = None

    def put_back_gradients(self, module: nn.Module, saved: Sequence[Gradients]) -> bool:
        """Give the parameters the gradients of an accumulation window that goes on; was it possible?

        Inside a window, torch's wrapper does not share the buffers of the first process; a new one must not either.

        Args:
            module: With the same parameters as when they were gathered.
            saved: Of each process then; see `KeepsGradients`.
        """
        wrapped = self.model
        if isinstance(wrapped, DistributedDataParallel) and len(saved) == self.world_size:
            wrapped.require_forward_param_sync = not self._module().automatic_optimization
        return super().put_back_gradients(module, saved)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Prepare the gradient reduction where torch's wrapper cannot: in manual optimization."""
        if self._prepares_backward:
            prepare_for_backward(cast(DistributedDataParallel, self.model), closure_loss)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any] | None = None,
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step `optimizer`; average parameters when their period is over."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._averager is not None:
            self._averager.average_parameters(iter(optimizer.param_groups))
        return output

    def teardown(self) -> None:
        """Give the module back unwrapped."""
        self._averager = None
        super().teardown()

    @property
    def _prepares_backward(self) -> bool:
        module = self._lightning_module
        return (
            module is not None and not module.automatic_optimization and isinstance(self.model, DistributedDataParallel)
        )

    def _wrap(self, model: nn.Module) -> nn.Module:
        self.model = model
        self.configure_ddp()
        return self.model

    def _through_wrapper(self, step: Callable[..., Any]) -> Callable[..., Any]:
        through, left_out = self._through_this_wrapper(step), self._frozen()
        if not left_out:
            return through

        def through_one_that_knows_all(*args: Any, **kwargs: Any) -> Any:
            nonlocal through, left_out
            if any(parameter.requires_grad for parameter in left_out):
                # They have been frozen until now, also when the wrapper was made: it would leave their gradients
                # different in every process.
                self.on_trained_parameters_change()
                through, left_out = self._through_this_wrapper(step), self._frozen()
            return through(*args, **kwargs)

        return through_one_that_knows_all

    def _frozen(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._module().parameters() if not parameter.requires_grad]

    def _through_this_wrapper(self, step: Callable[..., Any]) -> Callable[..., Any]:
        wrapped, module = self.model, self._module()
        if not isinstance(wrapped, DistributedDataParallel):
            return step
        if module.automatic_optimization:
            return lambda *args, **kwargs: call_through_forward(wrapped, module, step, *args, **kwargs)

        def with_backward_inside(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            # Each backward has prepared its own reduction and finished it. The wrapper must not prepare one more
            # for the output: it would wait for gradients that never come.
            wrapped.require_backward_grad_sync = False
            return output

        def manual_step(*args: Any, **kwargs: Any) -> Any:
            syncs = wrapped.require_backward_grad_sync
            try:
                return call_through_forward(wrapped, module, with_backward_inside, *args, **kwargs)
            finally:
                # The wrapper took this for a forward without sync, and would not share the buffers before the next.
                wrapped.require_backward_grad_sync = wrapped.require_forward_param_sync = syncs

        return manual_step

    def _check_layer_sync(self) -> None:
        if self.world_size > 1 and self.root_device.type == "cpu" and has_batch_norm(self._module()):
            raise ConfigurationError(
                f"Trainer(sync_batchnorm=True) cannot synchronise the batch norms of {class_name(self._module())} on"
                " the CPU. torch.nn.SyncBatchNorm runs on GPUs only."
                " Leave out sync_batchnorm, or train with accelerator='gpu'."
            )

    def _make_averager(self, period: int) -> Any:
        import torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook as post_localSGD
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
        from torch.distributed.optim import DistributedOptimizer, PostLocalSGDOptimizer, ZeroRedundancyOptimizer

        if not isinstance(self._comm_state, post_localSGD.PostLocalSGDState):
            raise ConfigurationError(
                f"DDPStrategy(model_averaging_period={period}) has no state that says when averaging begins."
                " Parameters are averaged after the steps in which gradients were, by the post-local-SGD hook."
                " Pass ddp_comm_state=PostLocalSGDState(...) and ddp_comm_hook=post_localSGD_hook."
            )
        for optimizer in self.optimizers:
            if isinstance(optimizer, DistributedOptimizer | PostLocalSGDOptimizer | ZeroRedundancyOptimizer):
                raise ConfigurationError(
                    f"DDPStrategy(model_averaging_period={period}) does not go with {type(optimizer).__name__}."
                    " This optimizer averages or shards parameters by itself. Use the optimizer that it wraps."
                )
        return PeriodicModelAverager(period=period, warmup_steps=self._comm_state.start_localSGD_iter)


START_METHODS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
"""The ways to start processes, by the name that a user writes."""


def register_ddp(registry: Registry[Any], kind: type[Any]) -> None:
    """Register `kind` under all names of DDP: each way to start processes, with and without unused parameters."""
    for name, start_method in START_METHODS.items():
        registry.register(name, kind, f"DDP, processes by {start_method}", start_method=start_method)
        for unused in (False, True):
            registry.register(
                f"{name}_find_unused_parameters_{str(unused).lower()}",
                kind,
                f"DDP, processes by {start_method}, find_unused_parameters={unused}",
                start_method=start_method,
                find_unused_parameters=unused,
            )


def prepare_for_backward(model: DistributedDataParallel, output: Any) -> None:
    """Make the reducer of `model` ready for one backward from `output`, wherever it happens.

    torch's wrapper does this at the end of its forward; who calls backward inside forward must do it before.

    Args:
        model: The wrapper.
        output: The loss, or any collection of tensors that backward starts from.
    """
    if not (torch.is_grad_enabled() and model.require_backward_grad_sync):
        model.require_forward_param_sync = False
        return
    model.require_forward_param_sync = True
    tensors = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)] if model.find_unused_parameters else []
    model.reducer._rebuild_buckets()  # A second backward in one forward meets buckets that the first one outdated.
    model.reducer.prepare_for_backward(tensors)
