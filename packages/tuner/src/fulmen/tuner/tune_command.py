"""Look for a learning rate or a batch size by short trials, before a fit.

The subcommand `tune` of `lightning-cli`, which finds this module by its entry point.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import is_installed, require
from fulmen.tuner.batch_size import BatchSizeTrials
from fulmen.tuner.config_snippet import options_of, snippet
from fulmen.tuner.lr_sweep import NAMES, LRFinder
from fulmen.tuner.tuner import Tuner

# So that the configuration of a fit can be tuned as it is.
like = "fit"

_CALLS = {"lr": "lr_find", "batch-size": "scale_batch_size"}
# What the command line says by other options, or decides itself.
_NO_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "update_attr"}
_FOLDER = "tune"


def add_arguments(parser: Any) -> None:
    """Add what is looked for, and how.

    Args:
        parser: Has the options of trainer, model and data already.
    """
    parser.add_argument("what", choices=list(_CALLS), help="What to look for: lr or batch-size.")
    parser.add_argument(
        "--output",
        type=str,
        default=None,
        help=f"The folder for the picture and the config; by default {_FOLDER!r} below trainer.default_root_dir.",
    )
    parser.add_method_arguments(Tuner, "lr_find", "lr_find", skip={*_NO_OPTIONS, "method"})
    parser.add_method_arguments(Tuner, "scale_batch_size", "scale_batch_size", skip=_NO_OPTIONS)


def run(cli: Any, what: str, output: str | None = None, **arguments: Any) -> None:
    """Look for it; print what was found, draw it, and write a config with it.

    Args:
        cli: The LightningCLI.
        what: "lr" or "batch-size".
        output: The folder for what is written; None is the default.
        arguments: The options of the calls, by "lr_find.max_lr"; and those of a fit, which change nothing.

    Raises:
        ConfigurationError: If nothing can be suggested, or an option goes with the other search.
    """
    if arguments.get("ckpt_path") is not None:
        raise ConfigurationError(
            f"tune {what} was given --ckpt_path {arguments['ckpt_path']!r}. Trials begin where a new fit begins."
            " Leave it out."
        )
    call = _CALLS[what]
    options = _options(arguments, call)
    for other in _CALLS.values():
        changed = _changed(other, _options(arguments, other)) if other != call else []
        if changed:
            raise ConfigurationError(
                f"tune {what} was given --{other}.{changed[0]}. That is an option of another search, and would have no"
                f" effect. Leave it out, or see the options --{call}.* in the help."
            )
    folder = Path(output if output is not None else Path(cli.trainer.default_root_dir) / _FOLDER)
    (_tune_lr if what == "lr" else _tune_batch_size)(cli, folder, options)


def _tune_lr(cli: Any, folder: Path, options: dict[str, Any]) -> None:
    # An optimizer of the command line has the learning rate; else an attribute of the module has it.
    by_optimizer = cli.config_dump.get("optimizer") is not None and not options["attr_name"]
    finder = Tuner(cli.trainer).lr_find(cli.model, datamodule=cli.datamodule, update_attr=not by_optimizer, **options)
    if finder is None:
        return
    found = finder.suggestion()
    lines = []
    if cli.trainer.is_global_zero:
        lines += _draw(finder, folder / "lr.png", suggest=found is not None)
    if found is None:
        seen = f" The curve is in {_shown(folder / 'lr.png')}." if lines else ""
        raise ConfigurationError(
            f"tune lr suggests nothing: the loss falls nowhere between {finder.lr_min:g} and {finder.lr_max:g}.{seen}"
            " Sweep a wider range (--lr_find.min_lr, --lr_find.max_lr), with more steps (--lr_find.num_training), or"
            " on larger batches."
        )
    if by_optimizer:
        part = snippet(cli.config_dump, ["optimizer"], "lr", found)
    else:
        names = [options["attr_name"]] if options["attr_name"] else NAMES
        parts = (snippet(cli.config_dump, ["model", "data"], name, found) for name in names)
        part = next(filter(None, parts), {})
    _report(cli, "learning rate", f"{found:.3g}", part, folder / "lr.yaml", lines)


def _tune_batch_size(cli: Any, folder: Path, options: dict[str, Any]) -> None:
    tuner = Tuner(cli.trainer)
    found = tuner.scale_batch_size(cli.model, datamodule=cli.datamodule, **options)
    trials = tuner.batch_size_trials
    if found is None or trials is None:
        return
    lines = _draw(trials, folder / "batch_size.png", suggest=True) if cli.trainer.is_global_zero else []
    part = snippet(cli.config_dump, ["model", "data"], options["batch_arg_name"], found)
    _report(cli, "batch size", str(found), part, folder / "batch_size.yaml", lines)


def _draw(found: LRFinder | BatchSizeTrials, path: Path, *, suggest: bool) -> list[str]:
    """Write the picture. Returns what to say about it."""
    if not is_installed("matplotlib"):
        return ["  picture        none: pip install 'fulmen-tuner[plots]' for one"]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = found.plot(suggest=suggest)
    figure.savefig(path)
    require("matplotlib.pyplot", purpose="tune").close(figure)
    return [f"  picture        {_shown(path)}"]


def _shown(path: Path) -> str:
    """As seen from the current folder, if it is in there."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _report(cli: Any, what: str, value: str, part: dict[str, Any], path: Path, lines: list[str]) -> None:
    """Write the config, and say where everything is."""
    if not cli.trainer.is_global_zero:
        return
    if part:
        import yaml

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
        lines = [*lines, f"  config         {_shown(path)}: {', '.join(options_of(part))}"]
        lines.append(f"Train with it: the same arguments after fit, and --config {_shown(path)} behind them.")
    else:
        lines = [*lines, "  config         none: no option of the model or the data carries it"]
    print("\n".join([f"Suggested {what}: {value}", *lines]))


def _options(arguments: dict[str, Any], call: str) -> dict[str, Any]:
    """The arguments of one call."""
    prefix = f"{call}."
    return {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}


def _changed(call: str, options: dict[str, Any]) -> list[str]:
    """Which of these have another value than the call has by default?"""
    parameters = inspect.signature(getattr(Tuner, call)).parameters
    return [name for name, value in options.items() if parameters[name].default != value]
