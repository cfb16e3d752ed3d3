"""Bound: an engine of DeepSpeed runs the module, and steps its optimizer."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.checkpoint_io.deepspeed_folder import DeepSpeedFolder
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed
from fulmen.fabric.class_names import class_name
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.forward_redirect import call_through_forward
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy as FabricStrategy
from fulmen.fabric.strategies.deepspeed import checks
from fulmen.fabric.strategies.deepspeed.arguments import NAMES
from fulmen.fabric.strategies.deepspeed.engine import stop_engine
from fulmen.fabric.strategies.deepspeed.strategy import DeepSpeedStrategy as FabricDeepSpeedStrategy
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.stages import Stage
from fulmen.trainer.strategies.deepspeed_fit import check_deepspeed_fit
from fulmen.trainer.strategies.half_summed import Gradients
from fulmen.trainer.strategies.parallel import ParallelStrategy

_NO_CONTEXT: AbstractContextManager[Any] = nullcontext()
# What the engine writes itself.
_OF_ENGINE = ("state_dict", "optimizer_states")


class DeepSpeedStrategy(ParallelStrategy):
    """ZeRO: every process trains on its part of the data, and keeps its part of what training needs.

    Args:
        accelerator, precision_plugin: See `Strategy`.
        parallel_devices, cluster_environment: See `ParallelStrategy`.
        logging_batch_size_per_gpu: Samples of one process in a batch, for DeepSpeed's own reports; "auto" asks the
            loader that was passed to `fit`, and is 1 where a hook makes it.
        zero_optimization, stage, remote_device, offload_optimizer, offload_parameters, offload_params_device,
            nvme_path, params_buffer_count, params_buffer_size, max_in_cpu, offload_optimizer_device,
            optimizer_buffer_count, block_size, queue_depth, single_submit, overlap_events, thread_count, pin_memory,
            sub_group_size, contiguous_gradients, overlap_comm, allgather_partitions, reduce_scatter,
            allgather_bucket_size, reduce_bucket_size, zero_allow_untested_optimizer, config, logging_level, loss_scale,
            initial_scale_power, loss_scale_window, hysteresis, min_loss_scale, partition_activations,
            cpu_checkpointing, contiguous_memory_optimization, synchronize_checkpoint_boundary, load_full_weights,
            process_group_backend, timeout, exclude_frozen_parameters: As for
            `fulmen.fabric.strategies.DeepSpeedStrategy`.
    """

    strategy_name = "deepspeed"
    DEEPSPEED_ENV_VAR = FabricDeepSpeedStrategy.DEEPSPEED_ENV_VAR
    shards_parameters = True  # with all stages: master weights, at least

    _engine: Any = None
    _folder: str | None = None  # from which the run goes on, if it is one of DeepSpeed
    _trusts = False  # may what is loaded run code?

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        zero_optimization: bool = True,
        stage: int = 2,
        remote_device: str | None = None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_params_device: str = "cpu",
        nvme_path: str = "/local_nvme",
        params_buffer_count: int = 5,
        params_buffer_size: int = 100_000_000,
        max_in_cpu: int = 1_000_000_000,
        offload_optimizer_device: str = "cpu",
        optimizer_buffer_count: int = 4,
        block_size: int = 1048576,
        queue_depth: int = 8,
        single_submit: bool = False,
        overlap_events: bool = True,
        thread_count: int = 1,
        pin_memory: bool = False,
        sub_group_size: int = 1_000_000_000_000,
        contiguous_gradients: bool = True,
        overlap_comm: bool = True,
        allgather_partitions: bool = True,
        reduce_scatter: bool = True,
        allgather_bucket_size: int = 200_000_000,
        reduce_bucket_size: int = 200_000_000,
        zero_allow_untested_optimizer: bool = True,
        logging_batch_size_per_gpu: str | int = "auto",
        config: str | Path | dict[str, Any] | None = None,
        logging_level: int = logging.WARN,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        loss_scale: float = 0,
        initial_scale_power: int = 16,
        loss_scale_window: int = 1000,
        hysteresis: int = 2,
        min_loss_scale: int = 1,
        partition_activations: bool = False,
        cpu_checkpointing: bool = False,
        contiguous_memory_optimization: bool = False,
        synchronize_checkpoint_boundary: bool = False,
        load_full_weights: bool = False,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(seconds=1800),  # a constant
        exclude_frozen_parameters: bool = False,
    ) -> None:
        if not (logging_batch_size_per_gpu == "auto" or isinstance(logging_batch_size_per_gpu, int)):
            raise ArgumentTypeError(
                f"DeepSpeedStrategy(logging_batch_size_per_gpu={logging_batch_size_per_gpu!r}) is no number of samples."
                " DeepSpeed's reports tell how many it saw in a second. Pass an int, or 'auto' to ask the loader."
            )
        batch_size = None if isinstance(logging_batch_size_per_gpu, str) else logging_batch_size_per_gpu
        fabric = FabricDeepSpeedStrategy(
            accelerator=accelerator,
            zero_optimization=zero_optimization,
            stage=stage,
            remote_device=remote_device,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            offload_params_device=offload_params_device,
            nvme_path=nvme_path,
            params_buffer_count=params_buffer_count,
            params_buffer_size=params_buffer_size,
            max_in_cpu=max_in_cpu,
            offload_optimizer_device=offload_optimizer_device,
            optimizer_buffer_count=optimizer_buffer_count,
            block_size=block_size,
            queue_depth=queue_depth,
            single_submit=single_submit,
            overlap_events=overlap_events,
            thread_count=thread_count,
            pin_memory=pin_memory,
            sub_group_size=sub_group_size,
            contiguous_gradients=contiguous_gradients,
            overlap_comm=overlap_comm,
            allgather_partitions=allgather_partitions,
            reduce_scatter=reduce_scatter,
            allgather_bucket_size=allgather_bucket_size,
            reduce_bucket_size=reduce_bucket_size,
            zero_allow_untested_optimizer=zero_allow_untested_optimizer,
            logging_batch_size_per_gpu=batch_size,
            config=config,
            logging_level=logging_level,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            loss_scale=loss_scale,
            initial_scale_power=initial_scale_power,
            loss_scale_window=loss_scale_window,
            hysteresis=hysteresis,
            min_loss_scale=min_loss_scale,
            partition_activations=partition_activations,
            cpu_checkpointing=cpu_checkpointing,
            contiguous_memory_optimization=contiguous_memory_optimization,
            synchronize_checkpoint_boundary=synchronize_checkpoint_boundary,
            load_full_weights=load_full_weights,
            precision=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            exclude_frozen_parameters=exclude_frozen_parameters,
        )
        self._adopt(fabric)

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Register "deepspeed" and its variants."""
        register_deepspeed(strategy_registry, cls)

    @classmethod
    def get_registered_strategies(cls) -> list[str]:
        """The names of this strategy."""
        return [name for name, _, _ in NAMES]

    def _adopt(self, fabric_strategy: FabricStrategy) -> None:
        super()._adopt(fabric_strategy)
        # Parameters are gathered in the forward of the module, on all processes together.
        self.evaluates_in_step = self.zero_stage_3
        self.allows_inference_mode = not self.zero_stage_3

    @property
    def _fabric(self) -> FabricDeepSpeedStrategy:
        return cast(FabricDeepSpeedStrategy, self.fabric_strategy)

    # What a trainer asks before it begins

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of DeepSpeed, as far as the user says it."""
        return self._fabric.config

    @property
    def zero_stage_3(self) -> bool:
        """Are parameters split?"""
        return self._fabric.zero_stage_3

    @property
    def deepspeed_engine(self) -> Any:
        """The engine of DeepSpeed; None before a run has set the module up."""
        return self._engine

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Always: the engine loads what it trains."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Never: the engine loads its optimizer."""
        return False

    @property
    def is_distributed(self) -> bool:
        """Always: also one process is a group."""
        return True

    def check_fit(self, module: LightningModule, flags: Any) -> None:
        """Refuse what contradicts the configuration, and what the engine would leave out.

        Raises:
            ConfigurationError: Naming both.
        """
        check_deepspeed_fit(self.config, module, flags)

    def check_train_loader(self, loader: Any, flags: Any) -> None:
        """Refuse batches of another size than the configuration says.

        Raises:
            ConfigurationError: Naming both.
        """
        size, world_size = checks.batch_size_of(loader), self._fabric.num_nodes * self._fabric.num_processes
        accumulate = flags.accumulate_grad_batches
        checks.check_batches(self.config, batch_size=size, accumulate=accumulate, world_size=world_size)

    # Setting up and tearing down

    def setup(self, trainer: Trainer) -> None:
        """Get everything ready for a run: an engine for the module, and if it is trained, for its optimizer."""
        source = trainer.context.data.source(Stage.TRAIN)
        self._flags = trainer.gradient_clip_val, checks.batch_size_of(source and source.value)
        super().setup(trainer)

    _flags: tuple[float | int | None, int | None] = (None, None)

    def setup_model(self, *, training: bool) -> None:
        """Convert the module to the precision; if it is only evaluated, it is ready then."""
        self._forget_engine()
        model = self.precision_plugin.convert_module(self._module())
        if training and self.layer_sync is not None:
            model = self.layer_sync.apply(model)
        self.model = model if training else self._fabric.setup_module(model)
        self.setup_precision_plugin()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Ask the module for its optimizer and schedulers, if the configuration names none, and start the engine."""
        assert self.make_optimizers is not None, f"no run has told how it makes optimizers for {trainer}"
        if self.config.get("optimizer") is None:
            self.take_optimizers(*self.make_optimizers())
        else:  # `check_fit` has told whose steps
            self.known_parameters = list(self._module().parameters())
            self.take_optimizers([], [])

    def take_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> None:
        """Start the engine with the optimizer of the module, or that of the configuration.

        Raises:
            ConfigurationError: For several optimizers or none, or a scheduler that the configuration names too.
        """
        module, (clip_val, batch_size) = self._module(), self._flags
        name = f"{class_name(module)}.configure_optimizers()"
        if len(optimizers) > 1:
            raise ConfigurationError(
                f"{name} returned {len(optimizers)} optimizers. An engine of DeepSpeed steps one. Return one, which may"
                " have several groups of parameters, or use strategy='ddp'."
            )
        if not optimizers and self.config.get("optimizer") is None:
            raise ConfigurationError(
                f"{name} returned no optimizer, and the configuration of DeepSpeed names none. Its engine steps one."
                " Return an optimizer, or write a section 'optimizer' into the configuration."
            )
        if schedulers:
            checks.check_absent(self.config, "scheduler", f"A scheduler of {name}", ", or return no scheduler")
        self._forget_engine()
        config = self._fabric.engine_config(clip_val=clip_val or None, batch_size=batch_size, run_counts=True)
        self._engine, stepping = self._fabric.start(module, config, optimizers[0] if optimizers else None)
        assert stepping is not None, "there is an optimizer"
        self.model = self._engine
        super().take_optimizers([stepping], schedulers)

    def init_deepspeed(self) -> None:
        """Nothing is left to do: `setup` has started the engine."""
        if self._engine is None:
            raise ConfigurationError(
                "init_deepspeed() was called before the strategy was set up. The engine is made of module and"
                " optimizer, which a run brings. Call trainer.fit(module)."
            )

    def model_to_device(self) -> None:
        """Nothing: the engine moves the module."""

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Around `configure_model`: with stage 3, each process keeps its part of every parameter that is made there."""
        with self._fabric.module_sharded_context():
            yield

    def teardown(self) -> None:
        """Let go of the run. With stage 3, parameters stay split: the whole module may fit into no process."""
        if self._lightning_module is not None and self.layer_sync is not None:
            self.layer_sync.revert(self._lightning_module)
        self.model = self._lightning_module
        self._run_backward = self._folder = None
        self.fabric_strategy.teardown()

    def _forget_engine(self) -> None:
        # Kept until another run begins: what has been trained can be saved after the run.
        if self._engine is not None:
            stop_engine(self._engine)
            self._fabric.forget(self._engine)
            self._engine = None

    def _optimizers_to(self, device: torch.device) -> None:
        """Nothing: the engine knows where its state is."""

    # Steps

    def clip_gradients(self, optimizer: Optimizer, clip_val: float, algorithm: str = "norm") -> None:
        """Nothing, if the engine clips so in its step.

        Raises:
            ConfigurationError: If it does not.
        """
        if self._engine is None or clip_val != self._engine.gradient_clipping() or algorithm != "norm":
            raise ConfigurationError(
                f"clip_gradients({clip_val}, {algorithm!r}) was called with DeepSpeedStrategy. Its engine holds"
                " gradients in pieces and clips them in its step, as it was set up. Leave the call out, and pass"
                f" Trainer(gradient_clip_val={clip_val})."
            )

    def skip_gradient_sync(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Nothing: the engine adds up gradients until the step."""
        return _NO_CONTEXT

    def gather_gradients(self, module: nn.Module) -> list[Gradients]:
        """None: they lie in the engine, whose folder keeps them."""
        return [{} for _ in range(self.world_size)]

    def put_back_gradients(self, module: nn.Module, saved: Sequence[Gradients]) -> bool:
        """Were there none?"""
        return not any(saved)

    def _surrounded(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        wrapper, module = self.model, self._module()
        if wrapper is None or wrapper is module or not (name == "training_step" or self.zero_stage_3):
            return step
        return partial(call_through_forward, wrapper, module, step)

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state; empty with stage 3, where no process has it."""
        return {} if self.zero_stage_3 else self._module().state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Empty: the engine saves it."""
        return {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder in DeepSpeed's layout; of weights alone, one file. Every process must call it."""
        if self._engine is not None and "optimizer_states" in checkpoint:
            rest = {key: value for key, value in checkpoint.items() if key not in _OF_ENGINE}
            self._fabric.save_checkpoint(filepath, {**rest, "": self._engine}, storage_options)
            return
        whole = self._fabric.whole_weights(self._engine or self._module(), keep=self.is_global_zero)
        super().save_checkpoint({**checkpoint, "state_dict": whole}, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. Of a folder, weights and optimizer stay where they are until they are asked for."""
        path = self.broadcast(str(checkpoint_path))
        self._folder, self._trusts = None, weights_only is False
        if not is_deepspeed(path):
            return dict(self.fabric_strategy.read_checkpoint(path, weights_only))
        self._fabric.check_folder(path)
        checkpoint = DeepSpeedFolder(path, trusted=self._trusts).client_state()
        self._folder = path
        checkpoint["state_dict"] = {}
        if "lr_schedulers" in checkpoint:
            checkpoint["optimizer_states"] = [{}]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put the weights of the checkpoint into module or engine; of a folder, the optimizer's state too."""
        model = self.model or self._module()
        if self._folder is not None:
            self._fabric.load_folder(self._folder, model, strict=strict, trusted=self._trusts)
        else:
            self._fabric.load_whole_state(model, checkpoint["state_dict"], None, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put the optimizer's state of one file into the engine; that of a folder is there already."""
        states = checkpoint["optimizer_states"]
        self._check_states(states)
        if self._folder is None:
            self._fabric.load_whole_state(self._engine, checkpoint["state_dict"], states[0], strict=True)


def remove_module_hooks(model: nn.Module) -> None:
    """Take all hooks off a module and its parts: those of an engine, and all others."""
    for module in model.modules():
        for name in ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"):
            getattr(module, name).clear()


def register_deepspeed(registry: Registry[Any], kind: type[Any]) -> None:
    """Register `kind` under the names of DeepSpeed."""
    for name, description, preset in NAMES:
        registry.register(name, kind, description, **preset)
