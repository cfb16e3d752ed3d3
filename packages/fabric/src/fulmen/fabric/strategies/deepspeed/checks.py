"""What is refused of the arguments of `DeepSpeedStrategy` and of its configuration, before a process starts.

Knows no tensor, no process.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DeepSpeedArguments, LossScaling, check_types
from fulmen.fabric.strategies.deepspeed.sections import (
    ABSENT,
    OPEN,
    OPTIMIZER,
    PARAMETERS,
    PLACES,
    SECTIONS,
    SWITCHES,
    ZERO,
    closed_switch,
    contradiction,
    get,
    is_enabled,
    offloads,
    precision_in,
    zero_stage,
)

# Which arguments are about a disk, and for what is offloaded to one.
_OF_DISKS: dict[str, tuple[Literal["parameters", "optimizer"], ...]] = {
    "params_buffer_count": ("parameters",),
    "params_buffer_size": ("parameters",),
    "max_in_cpu": ("parameters",),
    "optimizer_buffer_count": ("optimizer",),
    **dict.fromkeys(
        ("nvme_path", "block_size", "queue_depth", "single_submit", "overlap_events", "thread_count"),
        ("parameters", "optimizer"),
    ),
}
_DEVICES = {"parameters": "offload_params_device='nvme'", "optimizer": "offload_optimizer_device='nvme'"}
# Which stages of ZeRO read an argument.
_STAGES: dict[str, tuple[int, ...]] = {
    "sub_group_size": (3,),
    "allgather_bucket_size": (1, 2),
    "reduce_bucket_size": (1, 2, 3),
    "contiguous_gradients": (1, 2, 3),
    "reduce_scatter": (1, 2, 3),
    "overlap_comm": (1, 2, 3),
}
_SECTIONS: tuple[tuple[str, ...], ...] = (
    (ZERO,),
    (ZERO, PARAMETERS),
    (ZERO, OPTIMIZER),
    ("fp16",),
    ("bf16",),
    ("aio",),
    ("activation_checkpointing",),
    ("optimizer",),
    ("scheduler",),
    ("checkpoint",),
)
_EXAMPLES = {
    ZERO: "{'stage': 2}",
    "fp16": "{'enabled': True}",
    "bf16": "{'enabled': True}",
    "optimizer": "{'type': 'Adam', 'params': {'lr': 0.001}}",
}
_NUMBERS: dict[str, tuple[Any, int]] = {
    "gradient_clipping": ((int, float), 0),
    "gradient_accumulation_steps": (int, 1),
    "train_batch_size": (int, 1),
    "train_micro_batch_size_per_gpu": (int, 1),
}
# Names that are easily mistyped; what is far from all of them is left to DeepSpeed.
_KNOWN = (
    *_NUMBERS,
    *(place[0] for place in _SECTIONS if len(place) == 1),
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "gradient_predivide_factor",
    "prescale_gradients",
    "communication_data_type",
    "managed_gradient_accumulation",
    "steps_per_print",
    "wall_clock_breakdown",
)


def check_arguments(arguments: DeepSpeedArguments) -> None:
    """Refuse what `check_types` does, and what has no effect beside the others.

    Raises:
        ArgumentTypeError, ConfigurationError: Naming the argument.
    """
    check_types(arguments)
    if arguments.offload_parameters and (arguments.stage != 3 or not arguments.zero_optimization):
        raise ConfigurationError(
            f"DeepSpeedStrategy(stage={arguments.stage}, offload_parameters=True) cannot be done. Only parameters that"
            " are split can wait elsewhere. Pass stage=3, or offload_optimizer=True alone."
        )
    for name in arguments.given():
        places = PLACES.get(name, (SWITCHES.get(name, ()),))
        sections = [section for section in (closed_switch(arguments, place) for place in places) if section is not None]
        if len(sections) == len(places) and name != "zero_optimization":
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={getattr(arguments, name)!r}) has no effect, for {sections[0]} is off. It"
                f" says how that is done. Pass {sections[0]}=True, or leave {name} out."
            )


def without_effect(arguments: DeepSpeedArguments, config: Mapping[str, Any]) -> list[str]:
    """Sentences about arguments that were given and change nothing, as the rest of the configuration is."""
    stage, found = zero_stage(config), []
    disks = {"parameters": offloads(config, "parameters"), "optimizer": offloads(config, "optimizer")}
    for name, value in arguments.given().items():
        shown = f"DeepSpeedStrategy({name}={value!r}) has no effect"
        if name in _OF_DISKS and "nvme" not in [disks[what] for what in _OF_DISKS[name]]:
            found.append(
                f"{shown}: nothing is offloaded to a disk. It says how that is done."
                f" Pass {' or '.join(_DEVICES[what] for what in _OF_DISKS[name])}, or leave it out."
            )
        elif name in _STAGES and stage not in _STAGES[name]:
            found.append(
                f"{shown} with stage={stage}: DeepSpeed reads it with {_STAGES[name]} only. Pass such a stage, or leave"
                " it out."
            )
        elif name == "allgather_partitions":
            found.append(
                f"{shown}: since its version 0.19 DeepSpeed does not read it. Parameters are gathered in one way."
                " Leave it out."
            )
    return found


def check_scaling(config: Mapping[str, Any], scaling: LossScaling) -> None:
    """Does the configuration say the same about the scale of the loss?

    Raises:
        ConfigurationError: If not; names both.
    """
    for name, value in scaling.given().items():
        said = get(config, ("fp16", name))
        if said is not ABSENT and said != value and said not in OPEN:
            raise contradiction(f"DeepSpeedStrategy({name}={value!r}", f"fp16.{name}", said)


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose parts are of other types than DeepSpeed's, or nearly have the name of one.

    Raises:
        ArgumentTypeError, ConfigurationError: Naming the key.
    """
    for key in config:
        close = [] if key in _KNOWN else get_close_matches(str(key), _KNOWN, 1, 0.85)
        if close:
            raise ConfigurationError(
                f"DeepSpeedStrategy(config=...) has a key {key!r}, which DeepSpeed would pass over. It reads"
                f" {close[0]!r}. Mend the name, or remove the key."
            )
    for place in _SECTIONS:
        found = get(config, place)
        if found is not ABSENT and found is not None and not isinstance(found, Mapping):
            raise ArgumentTypeError(
                f"DeepSpeedStrategy(config=...) says {'.'.join(place)}={found!r}. DeepSpeed"
                " reads a section there, with keys of its own. Write a dictionary, as in"
                f" {{{place[-1]!r}: {_EXAMPLES.get(place[-1], '{}')}}}."
            )
    for name, (kinds, lowest) in _NUMBERS.items():
        found = config.get(name)
        if found in OPEN:
            continue
        if isinstance(found, bool) or not isinstance(found, kinds) or not found >= lowest:
            what = "a whole number" if kinds is int else "a number"
            raise ConfigurationError(
                f"DeepSpeedStrategy(config=...) says {name}={found!r}. DeepSpeed reads {what} of {lowest} or more"
                " there. Write one, or remove the key."
            )


def batch_size_of(loader: Any) -> int | None:
    """Samples in a batch of this loader; None if it does not say."""
    found = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return found if isinstance(found, int) else None


def check_batches(
    config: Mapping[str, Any], *, batch_size: int | None, accumulate: int, world_size: int, where: str | None = None
) -> None:
    """Do the sizes of a batch in the configuration agree with each other and with the run?

    Args:
        config: The user's.
        batch_size: Samples of one process in one batch; None where nobody knows them.
        accumulate: Batches to a step.
        world_size: The number of processes.
        where: How the user said the size of a batch, for the error; by default "DataLoader(batch_size=4)".

    Raises:
        ConfigurationError: If not; names both.
    """
    said = where or f"DataLoader(batch_size={batch_size})"
    micro = agreed(config, "train_micro_batch_size_per_gpu", batch_size, said)
    whole, factors = config.get("train_batch_size"), f"{accumulate} batches to a step, in {world_size} processes"
    if whole in OPEN:
        return
    if micro is None and whole % (accumulate * world_size):
        raise ConfigurationError(
            f"The configuration of DeepSpeed says train_batch_size={whole}, which cannot be divided: there are"
            f" {factors}. Each batch has as many samples. Write a multiple of {accumulate * world_size}, or remove"
            " train_batch_size from the configuration."
        )
    if micro is not None and whole != micro * accumulate * world_size:
        raise ConfigurationError(
            f"The configuration of DeepSpeed says train_batch_size={whole}, and a step takes"
            f" {micro * accumulate * world_size} samples: {micro} in a batch, {factors}. Both say the same thing."
            " Change one of them, or remove train_batch_size from the configuration."
        )


def check_recomputation(config: Mapping[str, Any]) -> None:
    """Refuse a memory for activations of which nobody says the size.

    Raises:
        ConfigurationError: Naming what is missing.
    """
    section = config.get("activation_checkpointing")
    if not isinstance(section, Mapping) or section.get("contiguous_memory_optimization") is not True:
        return
    if section.get("partition_activations") is not True or section.get("number_checkpoints") in OPEN:
        raise ConfigurationError(
            "DeepSpeedStrategy(contiguous_memory_optimization=True) cannot be done like this. DeepSpeed lays parts of"
            " activations behind each other, and must know for how many layers. Pass partition_activations=True too,"
            " and config={'activation_checkpointing': {'number_checkpoints': 24}, ...} with that number."
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what no run of ours can do.

    Raises:
        ConfigurationError: Naming the key.
    """
    stage = zero_stage(config)
    if not isinstance(stage, int) or isinstance(stage, bool) or not 0 <= stage <= 3:
        raise ConfigurationError(
            f"DeepSpeedStrategy(config=...) says zero_optimization.stage={stage!r}. ZeRO splits the state of optimizers"
            " (1), gradients too (2), and parameters too (3). Write one of these, or 0 for none."
        )
    enabled = [name for name in ("fp16", "bf16") if is_enabled(config, name)]
    if len(enabled) > 1:
        raise ConfigurationError(
            "DeepSpeedStrategy(config=...) enables fp16 and bf16. Parameters have one 16-bit type. Remove one of the"
            " two sections, or leave both out and pass precision='16-mixed' or 'bf16-mixed'."
        )
    if stage < 3 and get(config, (ZERO, PARAMETERS)) not in (ABSENT, None):
        raise ConfigurationError(
            f"DeepSpeedStrategy(config=...) says zero_optimization.stage={stage} and has"
            " zero_optimization.offload_param. Only parameters that are split can wait elsewhere. Write stage 3, or"
            " remove offload_param."
        )
    if get(config, ("checkpoint", "load_universal")) is True:
        raise ConfigurationError(
            "DeepSpeedStrategy(config=...) says checkpoint.load_universal=true, which is for folders that were"
            " converted for another number of processes. Every checkpoint is read by any number of processes here,"
            " without a conversion. Remove the key, and load the checkpoint itself."
        )


def check_remote_device(remote_device: object, config: Mapping[str, Any]) -> None:
    """Refuse a place for the parts of parameters that is unknown, or where nothing is split.

    Raises:
        ConfigurationError: Quoting it.
    """
    if remote_device is None:
        return
    if remote_device not in ("cpu", "nvme"):
        raise ConfigurationError(
            f"DeepSpeedStrategy(remote_device={remote_device!r}) is unknown. The parts of parameters lie on the device,"
            " in the memory of the machine or on a disk. Pass None, 'cpu' or 'nvme'."
        )
    if remote_device == "nvme" and zero_stage(config) == 3 and offloads(config, "parameters") != "nvme":
        raise ConfigurationError(
            "DeepSpeedStrategy(remote_device='nvme') cannot be done without a disk for parameters. Their parts are made"
            " where they will wait. Pass offload_parameters=True and offload_params_device='nvme' too, or"
            " remote_device='cpu'."
        )
    if zero_stage(config) != 3:
        raise ConfigurationError(
            f"DeepSpeedStrategy(remote_device={remote_device!r}) has no effect with stage={zero_stage(config)}. It says"
            " where the parts of parameters lie that stage 3 makes. Pass stage=3, or leave it out."
        )


def check_absent(config: Mapping[str, Any], section: str, where: str, instead: str = "") -> None:
    """Refuse what the configuration names, too.

    Args:
        config: The user's.
        section: "optimizer" or "scheduler".
        where: What says the same, for the error.
        instead: What else the user may do than remove the section.

    Raises:
        ConfigurationError: Naming both.
    """
    if config.get(section) is not None:
        raise ConfigurationError(
            f"{where} contradicts the configuration of DeepSpeed, which has a section {section!r}. Only one of the two"
            f" can be used. Remove the section{instead}."
        )


def optimizer_of_configuration(config: Mapping[str, Any], where: str) -> str:
    """The sentences that say whose optimizer steps, where the configuration has one; `where` makes the other."""
    section = config["optimizer"]
    kind = section.get("type") if isinstance(section, Mapping) else section
    return (
        f"{where} is not called: the configuration of DeepSpeed has a section 'optimizer', whose {kind} steps."
        " An engine has one optimizer. Remove the section to step with that of the module."
    )


def check_precision(config: Mapping[str, Any], precision: str, where: str) -> None:
    """Does the configuration say the same as the run?

    Args:
        config: The user's.
        precision: One of `SECTIONS`.
        where: How the user said it, for the error: "Trainer(precision='32-true')".

    Raises:
        ConfigurationError: If not; names both.
    """
    if precision not in SECTIONS:
        raise ConfigurationError(
            f"{where} cannot be used with DeepSpeed. It holds numbers in 32, 16 or bf16 bits."
            f" Pass one of {', '.join(map(repr, SECTIONS))}."
        )
    said = precision_in(config)
    if said is not None and SECTIONS[said] != SECTIONS[precision]:
        raise contradiction(where.removesuffix(")"), f"{SECTIONS[said]}.enabled", True)
    wanted = SECTIONS[precision]
    if wanted is not None and get(config, (wanted, "enabled")) is False:
        raise contradiction(where.removesuffix(")"), f"{wanted}.enabled", False)


def agreed(config: Mapping[str, Any], key: str, value: Any, where: str) -> Any:
    """What a run and the configuration say together about a top-level key; None if neither says anything.

    Args:
        config: The user's.
        key: Such as "gradient_clipping".
        value: What the run says; None if nothing.
        where: How the user said it, for the error: "Trainer(gradient_clip_val=0.5)".

    Raises:
        ConfigurationError: If both say something, and not the same; names both.
    """
    said = config.get(key)
    if said in OPEN:
        return value
    if value is not None and said != value:
        raise contradiction(where.removesuffix(")"), key, said)
    return said
