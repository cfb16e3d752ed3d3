"""DeepSpeed's engine runs and steps the module: the state of optimizers, gradients and parameters split by ZeRO."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch

from fulmen.fabric.accelerators.base import Accelerator
from fulmen.fabric.collectives.process_group import default_pg_timeout
from fulmen.fabric.environments.base import ClusterEnvironment
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.deepspeed.arguments import NAMES, DeepSpeedArguments, LossScaling, check_loss_scaling
from fulmen.fabric.strategies.deepspeed.checks import check_scaling, without_effect
from fulmen.fabric.strategies.deepspeed.config import chosen
from fulmen.fabric.strategies.deepspeed.engine import check_installed
from fulmen.fabric.strategies.deepspeed.state import SavedEngineStrategy


class DeepSpeedStrategy(SavedEngineStrategy):
    """ZeRO: every process trains on its part of the data, and keeps its part of what training needs.

    | `stage` | split over processes |
    | --- | --- |
    | 1 | the state of optimizers, and 32-bit master weights |
    | 2 | gradients, too |
    | 3 | parameters, too |

    Gradients are accumulated, clipped, and set to zero by DeepSpeed's engine. It runs on GPUs and on CPUs.

    Args:
        accelerator: The kind of hardware.
        zero_optimization: False leaves ZeRO out: the engine trains replicas.
        stage: See above.
        remote_device: Where the parts of parameters lie when modules are made in parts: "cpu", "nvme", or None for the
            device. For stage 3.
        offload_optimizer: The state of optimizers waits on `offload_optimizer_device`, "cpu" or "nvme".
        offload_parameters: Parameters wait on `offload_params_device`, "cpu" or "nvme". For stage 3.
        nvme_path: A folder on a fast disk, for "nvme".
        params_buffer_count, params_buffer_size, max_in_cpu, optimizer_buffer_count: Buffers for what was offloaded.
        block_size, queue_depth, single_submit, overlap_events, thread_count: How the disk is read, for "nvme".
        pin_memory: Offload to memory that the GPU reads faster, and that cannot be swapped out.
        sub_group_size: How many numbers of parameters are stepped at a time, with stage 3.
        contiguous_gradients: Copy gradients into one buffer as they come.
        overlap_comm: Reduce gradients while backward runs. For stages 2 and 3: with 1, they are reduced by the step.
        allgather_partitions, reduce_scatter: Which collectives gather parameters and reduce gradients.
        allgather_bucket_size, reduce_bucket_size: How many numbers at a time.
        zero_allow_untested_optimizer: Step with optimizers that DeepSpeed's authors have not tried.
        logging_batch_size_per_gpu: Samples of one process in a batch, for DeepSpeed's own reports.
        config: A configuration of DeepSpeed, or the path of a JSON file with one, in the place of the arguments;
            those that are given beside it must not contradict it. By default the file that the environment variable
            `PL_DEEPSPEED_CONFIG_PATH` names, if it is set.
        logging_level: Of DeepSpeed's logger.
        parallel_devices, cluster_environment: See `ParallelStrategy`.
        loss_scale, initial_scale_power, loss_scale_window, hysteresis, min_loss_scale: How the loss is scaled for
            float16; with `loss_scale=0`, as large as gradients allow, from 2 ** `initial_scale_power`.
        partition_activations, cpu_checkpointing, contiguous_memory_optimization, synchronize_checkpoint_boundary: For
            what a module computes through `deepspeed.checkpointing.checkpoint`.
        load_full_weights: What is loaded is one file with the whole module, never a folder.
        precision: A `DeepSpeedPrecision`.
        process_group_backend, timeout: See `ProcessGroupStrategy`.
        exclude_frozen_parameters: Leave parameters that need no gradient out of checkpoints.
    """

    DEEPSPEED_ENV_VAR: ClassVar[str] = "PL_DEEPSPEED_CONFIG_PATH"

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
        logging_batch_size_per_gpu: int | None = None,
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
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        exclude_frozen_parameters: bool = False,
    ) -> None:
        check_installed()
        arguments = DeepSpeedArguments(
            zero_optimization=zero_optimization,
            stage=stage,
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
            partition_activations=partition_activations,
            cpu_checkpointing=cpu_checkpointing,
            contiguous_memory_optimization=contiguous_memory_optimization,
            synchronize_checkpoint_boundary=synchronize_checkpoint_boundary,
        )
        scaling = LossScaling(
            loss_scale=loss_scale,
            initial_scale_power=initial_scale_power,
            loss_scale_window=loss_scale_window,
            hysteresis=hysteresis,
            min_loss_scale=min_loss_scale,
        )
        check_loss_scaling(scaling)
        complete = chosen(arguments, config, os.environ.get(self.DEEPSPEED_ENV_VAR))
        check_scaling(complete, scaling)
        for sentence in without_effect(arguments, complete):
            rank_zero_warn(sentence)
        if zero_optimization and "zero_optimization" not in complete:
            rank_zero_warn(
                "The configuration of DeepSpeed has no section 'zero_optimization', so nothing is split, and every"
                " process trains a replica. Write the section with the stage that you want, or with stage 0 if replicas"
                " are meant; or pass zero_optimization=False."
            )
        super().__init__(
            config=complete,
            scaling=scaling,
            remote_device=remote_device,
            batch_size=logging_batch_size_per_gpu,
            logging_level=logging_level,
            load_full_weights=load_full_weights,
            exclude_frozen_parameters=exclude_frozen_parameters,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[type[Strategy]]) -> None:
        """Register "deepspeed" and its variants."""
        for name, description, preset in NAMES:
            strategy_registry.register(name, cls, description=description, **preset)

    @property
    def loss_scale(self) -> float:
        """The scale of the loss for float16; 0 for one that follows the gradients."""
        return self._scaling.loss_scale

    @property
    def initial_scale_power(self) -> int:
        """The exponent of the first scale, to the base of 2."""
        return self._scaling.initial_scale_power

    @property
    def loss_scale_window(self) -> int:
        """After how many good steps the scale grows."""
        return self._scaling.loss_scale_window

    @property
    def hysteresis(self) -> int:
        """How many overflows are waited for until the scale shrinks."""
        return self._scaling.hysteresis

    @property
    def min_loss_scale(self) -> int:
        """The smallest scale."""
        return self._scaling.min_loss_scale
