"""Our arguments to a configuration of DeepSpeed, and back; what contradicts each other. Knows no tensor, no process.

A configuration is a nested dictionary, as https://www.deepspeed.ai/docs/config-json describes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DEFAULTS, DeepSpeedArguments, LossScaling, check_types

Config: TypeAlias = dict[str, Any]
# Names of precisions, and the section of the configuration that stands for them. DeepSpeed keeps 32-bit master weights
# beside 16-bit ones, so that "true" and "mixed" are the same to it.
SECTIONS: dict[str, str | None] = {
    "32-true": None,
    "16-true": "fp16",
    "16-mixed": "fp16",
    "bf16-true": "bf16",
    "bf16-mixed": "bf16",
}
# What users may leave to the run.
_OPEN = (None, "auto")
_ABSENT: Any = object()


_ZERO, _PARAMETERS, _OPTIMIZER = "zero_optimization", "offload_param", "offload_optimizer"
# Where each argument stands in a configuration. The three switches are the presence of a section.
_PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "stage": ((_ZERO, "stage"),),
    "contiguous_gradients": ((_ZERO, "contiguous_gradients"),),
    "overlap_comm": ((_ZERO, "overlap_comm"),),
    "allgather_partitions": ((_ZERO, "allgather_partitions"),),
    "reduce_scatter": ((_ZERO, "reduce_scatter"),),
    "allgather_bucket_size": ((_ZERO, "allgather_bucket_size"),),
    "reduce_bucket_size": ((_ZERO, "reduce_bucket_size"),),
    "sub_group_size": ((_ZERO, "sub_group_size"),),
    "offload_params_device": ((_ZERO, _PARAMETERS, "device"),),
    "params_buffer_count": ((_ZERO, _PARAMETERS, "buffer_count"),),
    "params_buffer_size": ((_ZERO, _PARAMETERS, "buffer_size"),),
    "max_in_cpu": ((_ZERO, _PARAMETERS, "max_in_cpu"),),
    "offload_optimizer_device": ((_ZERO, _OPTIMIZER, "device"),),
    "optimizer_buffer_count": ((_ZERO, _OPTIMIZER, "buffer_count"),),
    "nvme_path": ((_ZERO, _PARAMETERS, "nvme_path"), (_ZERO, _OPTIMIZER, "nvme_path")),
    "pin_memory": ((_ZERO, _PARAMETERS, "pin_memory"), (_ZERO, _OPTIMIZER, "pin_memory")),
    "block_size": (("aio", "block_size"),),
    "queue_depth": (("aio", "queue_depth"),),
    "single_submit": (("aio", "single_submit"),),
    "overlap_events": (("aio", "overlap_events"),),
    "thread_count": (("aio", "thread_count"),),
    "partition_activations": (("activation_checkpointing", "partition_activations"),),
    "cpu_checkpointing": (("activation_checkpointing", "cpu_checkpointing"),),
    "contiguous_memory_optimization": (("activation_checkpointing", "contiguous_memory_optimization"),),
    "synchronize_checkpoint_boundary": (("activation_checkpointing", "synchronize_checkpoint_boundary"),),
    "zero_allow_untested_optimizer": (("zero_allow_untested_optimizer",),),
}
_SWITCHES = {
    "zero_optimization": (_ZERO,),
    "offload_parameters": (_ZERO, _PARAMETERS),
    "offload_optimizer": (_ZERO, _OPTIMIZER),
}


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
        places = _PLACES.get(name, (_SWITCHES.get(name, ()),))
        sections = [section for section in (_closed(arguments, place) for place in places) if section is not None]
        if len(sections) == len(places) and name != "zero_optimization":
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={getattr(arguments, name)!r}) has no effect, for {sections[0]} is off. It"
                f" says how that is done. Pass {sections[0]}=True, or leave {name} out."
            )


def _closed(arguments: DeepSpeedArguments, place: tuple[str, ...]) -> str | None:
    """The switch that is off for the section of `place`; None if all are on."""
    for switch, section in _SWITCHES.items():
        if place[: len(section)] == section and not getattr(arguments, switch) and place != section:
            return switch
    return None


def config_from(arguments: DeepSpeedArguments) -> Config:
    """The configuration that says what the arguments say."""
    config: Config = {}
    for name, places in _PLACES.items():
        for place in places:
            if _closed(arguments, place) is None:
                value = getattr(arguments, name)
                _put(config, place, int(value) if name == "stage" else value)
    return config


def arguments_from(config: Mapping[str, Any]) -> DeepSpeedArguments:
    """The arguments that say what a configuration says, as far as they can."""
    values: dict[str, Any] = {switch: _get(config, place) is not _ABSENT for switch, place in _SWITCHES.items()}
    for name, places in _PLACES.items():
        found = [value for value in (_get(config, place) for place in places) if value is not _ABSENT]
        if found:
            values[name] = found[0]
    return replace(DeepSpeedArguments(), **values)


def merged(config: Mapping[str, Any], arguments: DeepSpeedArguments) -> Config:
    """A user's configuration, with the arguments that were given beside it.

    Raises:
        ConfigurationError: If one of these says something else than the configuration, naming both, or is about what
            the configuration leaves out.
    """
    result = deepcopy(dict(config))
    for name, value in arguments.given().items():
        if name in _SWITCHES:
            section = _get(result, _SWITCHES[name])
            if value is False and section is not _ABSENT:
                raise _contradiction(f"DeepSpeedStrategy({name}=False", ".".join(_SWITCHES[name]), section)
            if value is True and section is _ABSENT:
                _put(result, _SWITCHES[name], {})
    for name, value in arguments.given().items():
        has_place = name in _SWITCHES
        for place in _PLACES.get(name, ()):
            found = _get(result, place)
            if found is not _ABSENT and found != value:
                raise _contradiction(f"DeepSpeedStrategy({name}={value!r}", ".".join(place), found)
            section = place[:-1]
            value = int(value) if name == "stage" else value
            if name == "stage" or not section or section[0] != _ZERO or _get(result, section) is not _ABSENT:
                _put(result, place, value)
                has_place = True
        if not has_place:
            sections = " or ".join(".".join(place[:-1]) for place in _PLACES[name])
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={value!r}) has no effect, for the configuration of DeepSpeed has no section"
                f" {sections}. It says how that is done. Write the section, or leave {name} out."
            )
    if _ZERO in result and _ZERO not in config:  # only the arguments ask for it
        result[_ZERO].setdefault("stage", arguments.stage)
    return result


def read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    """The configuration in a dictionary or a JSON file.

    Raises:
        ArgumentTypeError: If it is neither.
        ConfigurationError: If there is no such file, or no dictionary in it.
    """
    if isinstance(source, Mapping):
        return deepcopy(dict(source))
    if not isinstance(source, str | os.PathLike):
        raise ArgumentTypeError(
            f"DeepSpeedStrategy(config={source!r}) is a {type(source).__name__}. A configuration is a dictionary, or a"
            " JSON file. Pass one of them, or the arguments of the strategy."
        )
    path = Path(source)
    shown = f"DeepSpeedStrategy(config={str(source)!r})"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{shown} cannot be read: {error.strerror or error}. The path was looked up from {os.getcwd()!r}, if it is"
            " not absolute. Check the path, or pass the configuration as a dictionary."
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{shown} is no JSON: {error}. DeepSpeed is configured by a JSON object. Mend the file, or pass the"
            " configuration as a dictionary."
        ) from error
    if not isinstance(read, dict):
        raise ConfigurationError(
            f"{shown} holds a {type(read).__name__}. DeepSpeed is configured by a JSON object. Write one into the file."
        )
    return read


def chosen(arguments: DeepSpeedArguments, config: Any, from_environment: str | None) -> Config:
    """The configuration of the arguments, or a user's with those that were given beside it; checked.

    Args:
        arguments: With their defaults.
        config: A dictionary or a path; None if there is none.
        from_environment: The path in the environment variable; None if it is not set.
    """
    check_arguments(arguments) if config is None and from_environment is None else check_types(arguments)
    source = config if config is not None else from_environment
    result = config_from(arguments) if source is None else merged(read_config(source), arguments)
    check_config(result)
    return result


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
    enabled = [name for name in ("fp16", "bf16") if _is_enabled(config, name)]
    if len(enabled) > 1:
        raise ConfigurationError(
            "DeepSpeedStrategy(config=...) enables fp16 and bf16. Parameters have one 16-bit type. Remove one of the"
            " two sections, or leave both out and pass precision='16-mixed' or 'bf16-mixed'."
        )
    if stage < 3 and _get(config, (_ZERO, _PARAMETERS)) not in (_ABSENT, None):
        raise ConfigurationError(
            f"DeepSpeedStrategy(config=...) says zero_optimization.stage={stage} and has"
            " zero_optimization.offload_param. Only parameters that are split can wait elsewhere. Write stage 3, or"
            " remove offload_param."
        )
    if _get(config, ("checkpoint", "load_universal")) is True:
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
    if zero_stage(config) != 3:
        raise ConfigurationError(
            f"DeepSpeedStrategy(remote_device={remote_device!r}) has no effect with stage={zero_stage(config)}. It says"
            " where the parts of parameters lie that stage 3 makes. Pass stage=3, or leave it out."
        )


def check_absent(config: Mapping[str, Any], section: str, where: str) -> None:
    """Refuse what the configuration names, too.

    Raises:
        ConfigurationError: Naming both.
    """
    if config.get(section) is not None:
        raise ConfigurationError(
            f"{where} contradicts the configuration of DeepSpeed, which has a section {section!r}. Only one of the two"
            f" can be used. Remove the section, or leave the {section} out."
        )


def zero_stage(config: Mapping[str, Any]) -> Any:
    """The stage of ZeRO that a configuration asks for; 0 without one."""
    stage = _get(config, (_ZERO, "stage"))
    return 0 if stage is _ABSENT else stage


def offloads(config: Mapping[str, Any], what: Literal["parameters", "optimizer"]) -> str | None:
    """Where parameters or the state of optimizers wait: "cpu", "nvme", or None where they do not."""
    place = (_ZERO, _PARAMETERS if what == "parameters" else _OPTIMIZER)
    section = _get(config, place)
    if not isinstance(section, Mapping):
        return None
    device = str(section.get("device", "none"))
    return None if device == "none" else device


def precision_in(config: Mapping[str, Any]) -> str | None:
    """The precision that a configuration names: "16-mixed", "bf16-mixed", or None."""
    names = {"fp16": "16-mixed", "bf16": "bf16-mixed"}
    return next((name for section, name in names.items() if _is_enabled(config, section)), None)


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
        raise _contradiction(where.removesuffix(")"), f"{SECTIONS[said]}.enabled", True)
    wanted = SECTIONS[precision]
    if wanted is not None and _get(config, (wanted, "enabled")) is False:
        raise _contradiction(where.removesuffix(")"), f"{wanted}.enabled", False)


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
    if said in _OPEN:
        return value
    if value is not None and said != value:
        raise _contradiction(where.removesuffix(")"), key, said)
    return said


def completed(
    config: Mapping[str, Any],
    *,
    precision: str,
    scaling: LossScaling,
    batch_size: int | None,
    clip_val: float | None,
    run_counts: bool = False,
) -> Config:
    """The configuration as the engine gets it: what it leaves open is filled in.

    Args:
        config: The user's, or that of the arguments.
        precision: One of `SECTIONS`.
        scaling: For float16.
        batch_size: Samples of one process in one batch; DeepSpeed uses it for its reports only.
        clip_val: The largest norm of all gradients together; None does not clip.
        run_counts: Does the run say when gradients are complete, whatever the configuration says?
    """
    result = deepcopy(dict(config))
    if run_counts:
        for key in ("gradient_accumulation_steps", "train_batch_size", "managed_gradient_accumulation"):
            result.pop(key, None)
    section = SECTIONS[precision]
    if section is not None:
        said = result.get(section)
        filled = {"enabled": True, **(vars(scaling) if section == "fp16" else {})}
        result[section] = {**filled, **(said if isinstance(said, Mapping) else {})}
    if result.get("train_micro_batch_size_per_gpu") in _OPEN:
        # Two of the three sizes of a batch say the third.
        result.pop("train_micro_batch_size_per_gpu", None)
        if result.get("train_batch_size") in _OPEN or result.get("gradient_accumulation_steps") in _OPEN:
            result["train_micro_batch_size_per_gpu"] = batch_size or 1
    if result.get("gradient_accumulation_steps") in _OPEN:
        result["gradient_accumulation_steps"] = 1
    if result.get("train_batch_size", 0) in _OPEN:
        del result["train_batch_size"]
    result["gradient_clipping"] = clip_val or 0.0
    # By default whoever calls `step` says when gradients are complete. If a configuration of its own counts batches,
    # the engine does.
    counts = counts_batches(result)
    result["managed_gradient_accumulation"] = counts
    if not counts and zero_stage(result) in (0, 1) and _get(result, (_ZERO,)) is not _ABSENT:
        _put(result, (_ZERO, "overlap_comm"), False)  # the engine refuses it: there is no backward left to overlap
    if offloads(result, "optimizer") is not None:
        # Torch's own optimizers can step there, too.
        result.setdefault("zero_force_ds_cpu_optimizer", False)
    result.setdefault("zero_allow_untested_optimizer", DEFAULTS["zero_allow_untested_optimizer"])
    return result


def counts_batches(config: Mapping[str, Any]) -> bool:
    """Does the engine count batches until it steps? Then `step` is called after each of them."""
    return config.get("managed_gradient_accumulation") is True or config.get("gradient_accumulation_steps", 1) not in (
        1,
        *_OPEN,
    )


def _is_enabled(config: Mapping[str, Any], section: str) -> bool:
    return _get(config, (section, "enabled")) is True


def _get(config: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = config
    for key in place:
        if not isinstance(found, Mapping) or key not in found:
            return _ABSENT
        found = found[key]
    return found


def _put(config: Config, place: tuple[str, ...], value: Any) -> None:
    *sections, key = place
    for section in sections:
        config = config.setdefault(section, {})
    config[key] = value


def _contradiction(said: str, key: str, value: Any) -> ConfigurationError:
    shown = repr(value) if not isinstance(value, Mapping) else "{...}"
    return ConfigurationError(
        f"{said}) contradicts the configuration of DeepSpeed, in which {key} is {shown}. Both say the same thing, and"
        f" none of the two is the obvious one. Change one of them, or remove {key} from the configuration."
    )
