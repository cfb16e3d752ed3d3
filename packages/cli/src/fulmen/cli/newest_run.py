"""What `--ckpt_path auto`, `best` and `last` mean before there is a trainer: what it will find itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.checkpoint.paths import choose, folders_of, gather_offers
from fulmen.trainer.trainer import Trainer

NAMES = ("auto", "best", "last")
# What says where runs are kept.
_DECIDING = ("logger", "callbacks", "default_root_dir", "fast_dev_run", "enable_checkpointing", "barebones")


def find(asked: str, given: Any, defaults: Mapping[str, Any], trainer_class: Callable[..., Trainer]) -> str | None:
    """The file that `asked` stands for, before there is a trainer; None if that cannot be told yet.

    Args:
        asked: "auto", "best" or "last".
        given: What the user gave for the arguments of the trainer; None if nothing.
        defaults: Other defaults for them.
        trainer_class: For its own defaults.
    """
    parameters = inspect.signature(trainer_class).parameters
    own = {name: parameters[name].default for name in _DECIDING if name in parameters}
    wanted = {name: given[name] for name in _DECIDING if given is not None and name in given}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    try:
        made = parser.instantiate(parser.parse_object({"trainer": wanted}))["trainer"]
        arguments = {
            **{name: value for name, value in own.items() if value is not inspect.Parameter.empty},
            **{name: defaults[name] for name in _DECIDING if name in defaults},
            **{name: made[name] for name in wanted},
        }
        added = [arguments.get("callbacks"), defaults.get("callbacks") if "callbacks" in wanted else None]
        callbacks = [one for part in added for one in (part if isinstance(part, (list, tuple)) else [part])]
        arguments["callbacks"] = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
        # Nothing runs on it: it need not have the devices that the run will have.
        return _chosen(Trainer(**{**arguments, "accelerator": "cpu", "devices": 1}), asked)
    except Exception:  # whatever is wrong is said when the trainer itself is built
        return None


def refuse_nothing(trainer: Trainer, asked: str, *, subcommand: str) -> None:
    """Refuse to measure weights that nothing has trained, where `last` stands for no checkpoint.

    Args:
        trainer: Built, and nothing run yet: its loggers and callbacks say where runs are kept.
        asked: "auto", "best" or "last"; the trainer itself refuses the others.
        subcommand: `fit` begins anew if there is nothing to go on from.

    Raises:
        ConfigurationError: If no run has kept any.
    """
    if subcommand == "fit" or asked != "last" or not trainer.checkpoint_callbacks or trainer.fast_dev_run:
        return
    if _chosen(trainer, asked) is None:
        raise ConfigurationError(
            f"`{subcommand} --ckpt_path {asked}` finds no checkpoint. The newest run is looked for in"
            f" {', '.join(map(repr, _looked_at(trainer)))}, and nothing there has kept one."
            " Run fit first, or pass the path of a checkpoint file."
        )


def _chosen(trainer: Trainer, asked: str) -> str | None:
    offers = gather_offers(trainer.callbacks, root_dir=trainer.default_root_dir, loggers=trainer.loggers)
    return choose(asked, offers).path


def _looked_at(trainer: Trainer) -> list[str]:
    versions = trainer.loggers[0].versions_dir if trainer.loggers else None
    if versions is not None:
        return [versions]
    return folders_of(trainer.callbacks, root_dir=trainer.default_root_dir, loggers=trainer.loggers)
