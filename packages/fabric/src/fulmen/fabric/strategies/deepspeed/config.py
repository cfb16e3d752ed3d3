"""Our arguments to a configuration of DeepSpeed, and back. Knows no tensor, no process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.deepspeed.arguments import DEFAULTS, DeepSpeedArguments, LossScaling, check_types
from fulmen.fabric.strategies.deepspeed.checks import check_arguments, check_config, check_sections
from fulmen.fabric.strategies.deepspeed.sections import (
    ABSENT,
    OPEN,
    PLACES,
    SECTIONS,
    SWITCHES,
    ZERO,
    Config,
    closed_switch,
    contradiction,
    get,
    offloads,
    put,
    zero_stage,
)

_SIZES = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")


def config_from(arguments: DeepSpeedArguments) -> Config:
    """The configuration that says what the arguments say."""
    config: Config = {}
    for name, places in PLACES.items():
        for place in places:
            if closed_switch(arguments, place) is None:
                value = getattr(arguments, name)
                put(config, place, int(value) if name == "stage" else value)
    return config


def arguments_from(config: Mapping[str, Any]) -> DeepSpeedArguments:
    """The arguments that say what a configuration says, as far as they can."""
    values: dict[str, Any] = {switch: get(config, place) is not ABSENT for switch, place in SWITCHES.items()}
    for name, places in PLACES.items():
        found = [value for value in (get(config, place) for place in places) if value is not ABSENT]
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
        if name in SWITCHES:
            section = get(result, SWITCHES[name])
            if value is False and section is not ABSENT:
                raise contradiction(f"DeepSpeedStrategy({name}=False", ".".join(SWITCHES[name]), section)
            if value is True and section is ABSENT:
                put(result, SWITCHES[name], {})
    for name, value in arguments.given().items():
        has_place = name in SWITCHES
        for place in PLACES.get(name, ()):
            found = get(result, place)
            if found is not ABSENT and found != value:
                raise contradiction(f"DeepSpeedStrategy({name}={value!r}", ".".join(place), found)
            section = place[:-1]
            value = int(value) if name == "stage" else value
            if name == "stage" or not section or section[0] != ZERO or get(result, section) is not ABSENT:
                put(result, place, value)
                has_place = True
        if not has_place:
            sections = " or ".join(".".join(place[:-1]) for place in PLACES[name])
            raise ConfigurationError(
                f"DeepSpeedStrategy({name}={value!r}) has no effect, for the configuration of DeepSpeed has no section"
                f" {sections}. It says how that is done. Write the section, or leave {name} out."
            )
    if ZERO in result and ZERO not in config:  # only the arguments ask for it
        result[ZERO].setdefault("stage", arguments.stage)
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
    if source is None:
        result = config_from(arguments)
    else:
        read = read_config(source)
        check_sections(read)
        result = merged(_renamed(read), arguments)
    check_config(result)
    return result


def _renamed(config: Config) -> Config:
    """The configuration under the names of today: DeepSpeed 0.19 does not read those of before."""
    disk = config.get("aio")
    if isinstance(disk, Mapping) and "thread_count" in disk:
        rest = {key: value for key, value in disk.items() if key != "thread_count"}
        config["aio"] = {"intra_op_parallelism": disk["thread_count"], **rest}
    return config


def completed(
    config: Mapping[str, Any],
    *,
    precision: str,
    scaling: LossScaling,
    batch_size: int | None,
    clip_val: float | None,
    run_counts: bool = False,
    world_size: int = 1,
) -> Config:
    """The configuration as the engine gets it: what it leaves open is filled in.

    Args:
        config: The user's, or that of the arguments.
        precision: One of `SECTIONS`.
        scaling: For float16.
        batch_size: Samples of one process in one batch; DeepSpeed uses it for its reports only.
        clip_val: The largest norm of all gradients together; None does not clip.
        run_counts: Does the run say when gradients are complete, whatever the configuration says?
        world_size: The number of processes.
    """
    result = deepcopy(dict(config))
    for name in ("optimizer", "scheduler"):
        if result.get(name, 0) is None:
            del result[name]  # DeepSpeed looks into what is there
    if run_counts:
        for key in ("gradient_accumulation_steps", "train_batch_size", "managed_gradient_accumulation"):
            result.pop(key, None)
    section = SECTIONS[precision]
    if section is not None:
        said = result.get(section)
        filled = {"enabled": True, **(vars(scaling) if section == "fp16" else {})}
        result[section] = {**filled, **(said if isinstance(said, Mapping) else {})}
    _fill_sizes(result, batch_size, world_size)
    result["gradient_clipping"] = clip_val or 0.0
    # By default whoever calls `step` says when gradients are complete. If a configuration of its own counts batches,
    # the engine does.
    counts = counts_batches(result)
    result["managed_gradient_accumulation"] = counts
    if not counts and zero_stage(result) in (0, 1) and get(result, (ZERO,)) is not ABSENT:
        put(result, (ZERO, "overlap_comm"), False)  # the engine refuses it: there is no backward left to overlap
    if offloads(result, "optimizer") is not None:
        # Torch's own optimizers can step there, too.
        result.setdefault("zero_force_ds_cpu_optimizer", False)
    result.setdefault("zero_allow_untested_optimizer", DEFAULTS["zero_allow_untested_optimizer"])
    return result


def _fill_sizes(config: Config, batch_size: int | None, world_size: int) -> None:
    """Write what is known of the three sizes of a batch: two of them, and the number of processes, say the third."""
    micro, steps, whole = (None if config.get(key) in OPEN else config[key] for key in _SIZES)
    for key in _SIZES:
        config.pop(key, None)
    if whole is None:
        micro = micro or batch_size or 1
    elif steps is None:
        micro = micro or batch_size
    if whole is not None and steps is None and micro is not None and whole % (micro * world_size) == 0:
        steps = whole // (micro * world_size)
    found = zip(_SIZES, (micro, steps or 1, whole), strict=True)
    config.update({key: value for key, value in found if value is not None})


def counts_batches(config: Mapping[str, Any]) -> bool:
    """Does the engine count batches until it steps? Then `step` is called after each of them."""
    return config.get("managed_gradient_accumulation") is True or config.get("gradient_accumulation_steps", 1) not in (
        1,
        *OPEN,
    )
