"""A strategy in which engines of DeepSpeed run modules: start them, derive, save and load."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, Unpack

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fulmen.fabric.arguments import check_count, check_flag
from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.base import Launcher
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.strategies.deepspeed import checks
from fulmen.fabric.strategies.deepspeed.arguments import LossScaling
from fulmen.fabric.strategies.deepspeed.config import completed
from fulmen.fabric.strategies.deepspeed.engine import (
    EngineOptimizer,
    Trained,
    check_disk,
    check_tried,
    join_deepspeed,
    load_deepspeed,
    start_engine,
    stop_engine,
    tell_rank_in_forward,
    told_ranks,
)
from fulmen.fabric.strategies.deepspeed.saving import SafeFiles
from fulmen.fabric.strategies.deepspeed.sections import SECTIONS, Config, offloads, precision_in, zero_stage
from fulmen.fabric.strategies.known_here import ModulesKnownHere
from fulmen.fabric.strategies.parallel import Parts, ProcessGroupStrategy

_PLAIN = DeepSpeedPrecision("32-true")


class EngineStrategy(ProcessGroupStrategy, ABC):
    """An engine of DeepSpeed runs each module, and steps its optimizer.

    Args:
        config: Of DeepSpeed, as far as the user says it.
        scaling: How the loss is scaled for float16.
        remote_device, logging_level, load_full_weights, exclude_frozen_parameters: See `DeepSpeedStrategy`.
        batch_size: Samples of one process in a batch; None if the user does not say.
        kwargs: See `ProcessGroupStrategy`.
    """

    def __init__(
        self,
        *,
        config: Config,
        scaling: LossScaling,
        remote_device: str | None,
        batch_size: int | None,
        logging_level: int,
        load_full_weights: bool,
        exclude_frozen_parameters: bool,
        **kwargs: Unpack[Parts],
    ) -> None:
        _checked(kwargs.get("precision"))
        super().__init__(**kwargs)
        self.config = config
        self._scaling = scaling
        self.precision = kwargs.get("precision")
        checks.check_remote_device(remote_device, config)
        check_flag("DeepSpeedStrategy", "load_full_weights", load_full_weights)
        check_flag("DeepSpeedStrategy", "exclude_frozen_parameters", exclude_frozen_parameters)
        check_count("DeepSpeedStrategy", "logging_level", logging_level, "It is a level of Python's logging.", 0)
        if batch_size is not None:
            check_count("DeepSpeedStrategy", "logging_batch_size_per_gpu", batch_size, "It counts samples.")
            said = f"DeepSpeedStrategy(logging_batch_size_per_gpu={batch_size})"
            checks.agreed(config, "train_micro_batch_size_per_gpu", batch_size, said)
        self.remote_device = remote_device
        self.load_full_weights = load_full_weights
        self.exclude_frozen_parameters = exclude_frozen_parameters
        self._batch_size = batch_size
        self._logging_level = logging_level
        self._deepspeed: Any = None
        self._makes_parts = False  # are modules made in parts now?
        self._engines = ModulesKnownHere()
        self._trained = Trained()

    def __getstate__(self) -> dict[str, Any]:
        # Modules of Python do not travel to other processes.
        return {**self.__dict__, "_deepspeed": None}

    # ---- parts

    @property
    def zero_stage_3(self) -> bool:
        """Are parameters split?"""
        return bool(zero_stage(self.config) == 3)

    @property
    def model(self) -> Any:
        """The engine of DeepSpeed; None before `setup`, and if there are several."""
        engines = list(self._engines)
        return engines[0] if len(engines) == 1 else None

    @property
    def precision(self) -> DeepSpeedPrecision:
        """How numbers are held and computed."""
        return _PLAIN if self._precision is None else self._precision  # type: ignore[return-value]  # checked when set

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        checked = _checked(precision)
        if checked is not None:
            where = f"DeepSpeedStrategy(precision=DeepSpeedPrecision({checked.precision!r}))"
            checks.check_precision(self.config, checked.precision, where)
            given = self._scaling.given() if SECTIONS[checked.precision] != "fp16" else {}
            for name, value in given.items():
                rank_zero_warn(
                    f"DeepSpeedStrategy({name}={value!r}) has no effect with precision={checked.precision!r}: only the"
                    " loss of float16 is scaled. Pass precision='16-mixed', or leave it out."
                )
        self._precision = checked

    def make_precision(self, name: str | None, where: str) -> DeepSpeedPrecision:
        """The precision of a flag, or without one, that of the configuration."""
        if name is None:
            return DeepSpeedPrecision(precision_in(self.config) or "32-true")  # type: ignore[arg-type]
        checks.check_precision(self.config, name, where)
        return DeepSpeedPrecision(name)  # type: ignore[arg-type]  # checked just now

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes files that are no checkpoint of an engine."""
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        if io is not None:
            raise ConfigurationError(
                f"The checkpoint IO {type(io).__name__} was given to DeepSpeedStrategy, whose engine writes its own"
                " files. It would not be used. Leave it out."
            )
        self._checkpoint_io = None

    # ---- set up

    def configure_launcher(self) -> Launcher:
        """Make the launcher, if the configuration fits the number of processes that it will start.

        Raises:
            ConfigurationError: If the three sizes of a batch contradict it.
        """
        checks.check_batches(
            config := self.engine_config(),
            batch_size=self._batch_size,
            accumulate=config["gradient_accumulation_steps"],
            world_size=self.num_nodes * self.num_processes,
            where=f"DeepSpeedStrategy(logging_batch_size_per_gpu={self._batch_size})",
        )
        return super().configure_launcher()

    def setup_environment(self) -> None:
        """Take the device, join the other processes, and load DeepSpeed."""
        super().setup_environment()
        self._deepspeed = load_deepspeed(self.root_device, self._logging_level)
        with self._told():
            if "nvme" in (offloads(self.config, "parameters"), offloads(self.config, "optimizer")):
                check_disk(self._deepspeed)
            join_deepspeed(self._deepspeed, self.root_device, self.process_group_backend or "gloo", self._timeout)

    def module_to_device(self, module: Module) -> None:
        """Move the module; one that is split, or will be, is moved by the engine."""
        if not self.zero_stage_3:
            module.to(self.root_device)

    @contextmanager
    def module_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside have the right type; with stage 3, each process keeps its part of every parameter.

        Args:
            empty_init: Leave out the initial values of parameters, which a checkpoint will fill in.
        """
        with self.module_sharded_context(), super().module_init_context(empty_init):
            yield

    @contextmanager
    def module_sharded_context(self) -> Iterator[None]:
        """Modules made inside are split, with stage 3: no process ever holds all of one."""
        if not self.zero_stage_3 or self._makes_parts:
            yield
            return
        config = self.engine_config()
        index = self.root_device.index
        with (
            self._told(local_rank=index if index is not None else self.local_rank),
            self._loaded().zero.Init(remote_device=self.remote_device, config_dict_or_path=config),
        ):
            self._makes_parts = True
            try:
                yield
            finally:
                self._makes_parts = False

    def engine_config(
        self, *, clip_val: float | None = None, batch_size: int | None = None, run_counts: bool = False
    ) -> Config:
        """The configuration as an engine gets it.

        Args:
            clip_val: The largest norm of all gradients together; None is that of the configuration.
            batch_size: Samples of one process in a batch.
            run_counts: See `completed`.
        """
        said = self.config.get("gradient_clipping")
        return completed(
            self.config,
            precision=self.precision.precision,
            scaling=self._scaling,
            batch_size=self._batch_size or batch_size,
            clip_val=clip_val if clip_val is not None else (said if isinstance(said, int | float) else None),
            run_counts=run_counts,
            world_size=self.num_nodes * self.num_processes,
        )

    def setup_module_and_optimizers(
        self, module: Module, optimizers: list[Optimizer], scheduler: LRScheduler | None = None
    ) -> tuple[Module, list[Optimizer], LRScheduler | None]:
        """The engine, and its optimizer; a scheduler is stepped by the engine, too.

        Raises:
            ConfigurationError: For several optimizers, or one that the configuration names too.
        """
        if len(optimizers) != 1:
            raise ConfigurationError(
                f"fabric.setup(module, ...) got {len(optimizers)} optimizers. An engine of DeepSpeed steps one. Pass"
                " one; it may have several groups of parameters."
            )
        checks.check_absent(self.config, "optimizer", f"fabric.setup(module, {type(optimizers[0]).__name__}(...))")
        if scheduler is not None:
            name = f"fabric.setup(scheduler={type(scheduler).__name__}(...))"
            checks.check_absent(self.config, "scheduler", name, ", or leave the scheduler out")
        engine, optimizer = self.start(module, self.engine_config(), optimizers[0], scheduler)
        assert optimizer is not None
        return engine, [optimizer], engine.lr_scheduler

    def setup_module(self, module: Module) -> Module:
        """The module, ready for evaluation: with stage 3 in an engine that gathers parameters as they are needed."""
        if self.zero_stage_3:
            return self.start(module, self.engine_config())[0]  # type: ignore[no-any-return]
        return module.to(self.root_device, self.precision.dtype if self.precision.converts_input else None)

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Refused.

        Raises:
            ConfigurationError: Always: an engine is made of both.
        """
        raise ConfigurationError(
            f"fabric.setup_optimizers({type(optimizer).__name__}(...)) was called with DeepSpeed, whose engine is made"
            " of module and optimizer. Call `model, optimizer = fabric.setup(model, optimizer)`."
        )

    def sets_up_together(self) -> bool:
        """Must module and optimizer be set up in one call? They must."""
        return True

    def start(
        self, module: Module, config: Config, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
    ) -> tuple[Any, EngineOptimizer | None]:
        """An engine for the module, and its optimizer; none if it cannot train. One that it had before is stopped."""
        for engine in [one for one in self._engines if one.module is module]:
            # Two would hear the same gradients.
            stop_engine(engine)
            self.forget(engine)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = optimizer.param_groups if optimizer is not None else ()
        ordered = [names.get(id(parameter), "") for group in groups for parameter in group["params"]]
        checks.check_recomputation(config)
        if optimizer is not None:
            check_tried(self._loaded(), config, optimizer)
        with self._told():
            engine = start_engine(self._loaded(), module, config, self.root_device, optimizer, scheduler)
        engine.checkpoint_engine = SafeFiles()
        if self.zero_stage_3:
            tell_rank_in_forward(engine, self.local_rank)
        self._engines.add(engine)
        if "activation_checkpointing" in config:
            self._loaded().checkpointing.configure(None, deepspeed_config=config)
        if optimizer is None and "optimizer" not in config:
            return engine, None
        stepping = EngineOptimizer(engine, optimizer)
        self._trained.add(engine, stepping, ordered or list(engine.param_names.values()))
        return engine, stepping

    def forget(self, engine: Any) -> None:
        """An engine was stopped: it does not count any more."""
        self._engines.discard(engine)
        self._trained.forget(engine)

    def _told(self, local_rank: int | None = None) -> AbstractContextManager[None]:
        return told_ranks(self.joined_environment(), local_rank)

    def _loaded(self) -> Any:
        if self._deepspeed is None:
            self._deepspeed = load_deepspeed(self.root_device, self._logging_level)
        return self._deepspeed

    # ---- step

    def backward(self, tensor: Tensor, module: Module | None, *args: Any, **kwargs: Any) -> None:
        """Backward of the loss `tensor` by the engine, which scales it and reduces gradients.

        Args:
            tensor: A loss: one number.
            module: The engine; needed if there are several.
            args, kwargs: Only `retain_graph` is known to an engine.
        """
        engine = self.engine_of(module)
        if args or kwargs.keys() - {"retain_graph"}:
            unknown = sorted(kwargs.keys() - {"retain_graph"}) + [repr(argument) for argument in args]
            raise ArgumentTypeError(
                f"fabric.backward(loss, {', '.join(unknown)}) cannot be done with DeepSpeed. Its engine derives a loss"
                " of one number, and takes retain_graph only. Reduce the loss before, as by loss.mean()."
            )
        super().backward(tensor, engine, **kwargs)
        self._trained[engine][0].note_backward()

    def engine_of(self, module: Module | None) -> Any:
        """The engine that trains `module`, or the only one.

        Raises:
            ConfigurationError: If there is none, or several.
        """
        if module is not None and module in self._trained:
            return module
        training = [engine for engine in self._engines if engine in self._trained]
        known = [engine for engine in training if module is None or module in (engine, engine.module)]
        if len(known) > 1:
            known = [engine for engine in known if self._trained.can_step(engine)]
        if len(known) == 1:
            return known[0]
        if not training:
            raise ConfigurationError(
                "backward was called, and DeepSpeed has no engine that trains. An engine is made of module and"
                " optimizer. Call `model, optimizer = fabric.setup(model, optimizer)` before."
            )
        raise ConfigurationError(
            f"backward was called, and DeepSpeed has {len(known)} engines that train. Each scales and reduces its"
            " own gradients. Say which: `fabric.backward(loss, model=model)`, with what setup returned."
        )

    def no_backward_sync(self, module: Module, enabled: bool) -> AbstractContextManager[Any]:
        """Nothing: the engine adds up gradients until the step. With stages 2 and 3 it reduces each, to keep parts."""
        return nullcontext()

    def clip_gradients_norm(
        self,
        module: Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> NoReturn:
        """Refused.

        Raises:
            ConfigurationError: Always: the engine clips in its step.
        """
        raise ConfigurationError(
            f"fabric.clip_gradients(max_norm={max_norm}) was called with DeepSpeed. Its engine holds gradients in"
            " pieces, and clips them in its step."
            f" Leave the call out, and pass DeepSpeedStrategy(config={{..., 'gradient_clipping': {max_norm}}})."
        )

    def clip_gradients_value(self, module: Module, optimizer: Optimizer, clip_val: float | int) -> NoReturn:
        """Refused.

        Raises:
            ConfigurationError: Always: an engine clips by the norm only.
        """
        raise ConfigurationError(
            f"fabric.clip_gradients(clip_val={clip_val}) was called with DeepSpeed, which clips gradients by their norm"
            " only, in its step. Pass DeepSpeedStrategy(config={..., 'gradient_clipping': 1.0}), or use"
            " strategy='fsdp'."
        )

    def users_module_in(self, module: Any) -> Module:
        """The user's own module in an engine; a module as it is."""
        inner: Module = module.module if module in self._engines else module
        return inner


def _checked(precision: Precision | None) -> DeepSpeedPrecision | None:
    if precision is not None and not isinstance(precision, DeepSpeedPrecision):
        shown = f"{type(precision).__name__}(...)" if isinstance(precision, Precision) else repr(precision)
        raise ArgumentTypeError(
            f"DeepSpeedStrategy(precision={shown}) cannot be used: the engine itself casts parameters, keeps master"
            " weights and scales the loss. Pass DeepSpeedPrecision('bf16-mixed'), or precision='bf16-mixed' to Fabric"
            " or Trainer."
        )
    return precision
