"""The arguments of `DeepSpeedStrategy`, and the names that preset them. Knows no tensor and no process."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fulmen.fabric.arguments import check_count, check_flag, check_text
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError


class StageOfName(int):
    """The stage that the name of a strategy says: "deepspeed_stage_2" means it, though 2 is what is usual, too."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedArguments:
    """The arguments of `DeepSpeedStrategy` that a configuration can say, too."""

    zero_optimization: bool = True
    stage: int = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    offload_params_device: str = "cpu"
    nvme_path: str = "/local_nvme"
    params_buffer_count: int = 5
    params_buffer_size: int = 100_000_000
    max_in_cpu: int = 1_000_000_000
    offload_optimizer_device: str = "cpu"
    optimizer_buffer_count: int = 4
    block_size: int = 1_048_576
    queue_depth: int = 8
    single_submit: bool = False
    overlap_events: bool = True
    thread_count: int = 1
    pin_memory: bool = False
    sub_group_size: int = 1_000_000_000_000
    contiguous_gradients: bool = True
    overlap_comm: bool = True
    allgather_partitions: bool = True
    reduce_scatter: bool = True
    allgather_bucket_size: int = 200_000_000
    reduce_bucket_size: int = 200_000_000
    zero_allow_untested_optimizer: bool = True
    partition_activations: bool = False
    cpu_checkpointing: bool = False
    contiguous_memory_optimization: bool = False
    synchronize_checkpoint_boundary: bool = False

    def given(self) -> dict[str, Any]:
        """Those that differ from their defaults, and a stage that is in the name."""
        return {
            name: value
            for name, value in vars(self).items()
            if value != DEFAULTS[name] or isinstance(value, StageOfName)
        }


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(DeepSpeedArguments)}
_ALL = {"offload_optimizer": True, "offload_parameters": True}
# Names of strategies, what they are, and their arguments.
NAMES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("deepspeed", "DeepSpeed; optimizer state and gradients are split over processes.", {}),
    ("deepspeed_stage_1", "DeepSpeed; the state of optimizers is split over processes.", {"stage": StageOfName(1)}),
    (
        "deepspeed_stage_1_offload",
        "As deepspeed_stage_1, on the CPU.",
        {"stage": StageOfName(1), "offload_optimizer": True},
    ),
    (
        "deepspeed_stage_2",
        "DeepSpeed; optimizer state and gradients are split over processes.",
        {"stage": StageOfName(2)},
    ),
    (
        "deepspeed_stage_2_offload",
        "As deepspeed_stage_2, on the CPU.",
        {"stage": StageOfName(2), "offload_optimizer": True},
    ),
    ("deepspeed_stage_3", "DeepSpeed; parameters are split over processes, too.", {"stage": StageOfName(3)}),
    ("deepspeed_stage_3_offload", "As deepspeed_stage_3, on the CPU.", {"stage": StageOfName(3), **_ALL}),
    (
        "deepspeed_stage_3_offload_nvme",
        "As deepspeed_stage_3, on a fast disk.",
        {
            "stage": StageOfName(3),
            **_ALL,
            "remote_device": "nvme",
            "offload_params_device": "nvme",
            "offload_optimizer_device": "nvme",
        },
    ),
)


def check_types(arguments: DeepSpeedArguments) -> None:
    """Refuse arguments of the wrong type or out of range.

    Raises:
        ArgumentTypeError, ConfigurationError: Naming the argument.
    """
    for name, value in vars(arguments).items():
        default = DEFAULTS[name]
        if isinstance(default, bool):
            check_flag("DeepSpeedStrategy", name, value)
        elif isinstance(default, int):
            lowest = 0 if name == "stage" else 1
            check_count("DeepSpeedStrategy", name, value, "It is a whole number.", lowest)
        else:
            check_text("DeepSpeedStrategy", name, value, "It is the name of a device or a path.", may_be_none=False)
    if arguments.stage > 3:
        raise ConfigurationError(
            f"DeepSpeedStrategy(stage={arguments.stage}) is unknown. ZeRO splits the state of optimizers (1), gradients"
            " too (2), and parameters too (3). Pass one of these."
        )
    for name in ("offload_params_device", "offload_optimizer_device"):
        if getattr(arguments, name) not in ("cpu", "nvme"):
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={getattr(arguments, name)!r}) is unknown. Offloaded tensors wait in the"
                " memory of the machine or on a disk. Pass 'cpu' or 'nvme'."
            )


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How the loss is scaled for float16 gradients. 0 as `loss_scale`: as large as they allow."""

    loss_scale: float = 0
    initial_scale_power: int = 16
    loss_scale_window: int = 1000
    hysteresis: int = 2
    min_loss_scale: int = 1

    def given(self) -> dict[str, float]:
        """Those that differ from their defaults."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}


def check_loss_scaling(scaling: LossScaling) -> None:
    """Refuse numbers that scale nothing.

    Raises:
        ArgumentTypeError, ConfigurationError: Naming the argument.
    """
    for name, value in vars(scaling).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ArgumentTypeError(
                f"DeepSpeedStrategy({name}={value!r}) is a {type(value).__name__}. It says how the loss is scaled."
                " Pass a number."
            )
        if value < 0 or (value == 0 and name in ("loss_scale_window", "min_loss_scale")):
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={value!r}) scales no loss. It is a positive number; only loss_scale=0 has a"
                " meaning: as large as gradients allow. Pass such a number."
            )
