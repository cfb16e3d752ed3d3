"""The help of a command, for a terminal: what belongs together stands together, and every line fits."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
import types
import warnings
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_MAX_WIDTH = 110
_MIN_WIDTH = 40
_INDENT = 2
# Bases that others stand on, and what strategies make for themselves.
_NOT_TO_CHOOSE = re.compile(
    r"\.(?:base|core)\.|^torch\.(?!optim)|\.strategies\.(?:parallel|sharded|on_xla|deepspeed\.engine)\.|\.ParallelStrategy$"
)
_HELP_AT = 30  # the column in which explanations begin
_MIN_HELP_WIDTH = 24

_TITLES = {"model": "Model", "data": "Data", "optimizer": "Optimizer", "lr_scheduler": "Learning rate scheduler"}
# The arguments of a Trainer, by what one has in mind when one looks for them.
_OF_TRAINER = {
    "Trainer: where it runs": (
        "accelerator devices strategy num_nodes precision plugins sync_batchnorm use_distributed_sampler"
    ),
    "Trainer: how long, and on how much data": (
        "max_epochs min_epochs max_steps min_steps max_time limit_train_batches limit_val_batches limit_test_batches"
        " limit_predict_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps"
        " reload_dataloaders_every_n_epochs"
    ),
    "Trainer: each step": "accumulate_grad_batches gradient_clip_val gradient_clip_algorithm inference_mode",
    "Trainer: what is kept and shown": (
        "callbacks logger log_every_n_steps enable_checkpointing enable_progress_bar enable_model_summary"
        " default_root_dir enable_autolog_hparams model_registry"
    ),
    "Trainer: trying out and finding faults": (
        "fast_dev_run overfit_batches deterministic benchmark detect_anomaly profiler barebones"
    ),
}
_KINDS: dict[Any, str] = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT", type(None): "", Any: "VALUE"}


def help_text(parser: Any) -> str:
    """What `--help` prints."""
    width = max(_MIN_WIDTH, min(shutil.get_terminal_size().columns, _MAX_WIDTH))
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    sections = [
        (title, [entry for action in members for entry in _entries(parser, action)])
        for title, members in _sections(parser, actions)
    ]
    longest = max((len(left) for _, entries in sections for left, _ in entries), default=0)
    at = min(_HELP_AT, longest + 2 * _INDENT) if width - _HELP_AT >= _MIN_HELP_WIDTH else 2 * _INDENT
    usage = textwrap.wrap(f"usage: {_usage(parser)}", width, subsequent_indent=" " * 7, break_on_hyphens=False)
    blocks = ["\n".join(usage), *_paragraphs(parser.description, width, at)]
    for title, entries in sections:
        if entries:
            lines = [line for left, right in entries for line in _columns(left, right, width, at)]
            blocks.append("\n".join([*textwrap.wrap(f"{title}:", width), *lines]))
    blocks += _paragraphs(getattr(parser, "epilogue", None) or parser.epilog, width, at)
    return "\n\n".join(blocks) + "\n"


def _usage(parser: Any) -> str:
    program = " ".join(word for word in str(parser.prog).split() if word != "[options]")
    if parser._subcommands_action is not None:
        return f"{program} [options] SUBCOMMAND [options of the subcommand]"
    positionals = [_flag(action) for action in parser._actions if not action.option_strings]
    return " ".join([program, *positionals, "[options]"])


def _paragraphs(text: str | None, width: int, at: int) -> list[str]:
    """A text whose lines are wrapped each for itself, and columns kept: `  word   what it means`."""
    lines: list[str] = []
    for line in (text or "").strip("\n").split("\n"):
        column = re.fullmatch(r" {2}(\S.*?) {2,}(\S.*)", line)
        lines += _columns(column[1], column[2], width, at) if column else textwrap.wrap(line, width) or [""]
    return ["\n".join(lines)] if text else []


def _sections(parser: Any, actions: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Titles and what stands below them."""
    if parser._subcommands_action is not None:
        yield "Subcommands", [parser._subcommands_action]
        actions = [action for action in actions if action is not parser._subcommands_action]
    groups = {group: list(group._group_actions) for group in parser._action_groups if group._group_actions}
    place = {id(action): group for group, members in groups.items() for action in members}
    plain: list[Any] = []
    keyed: dict[Any, list[Any]] = {}
    for action in actions:
        group = place.get(id(action))
        is_own = group in (parser._positionals, parser._optionals) or group is None
        key = action.dest.partition(".")[0]
        if is_own:
            plain.append(action)
        elif key in _TITLES or key == "trainer":
            keyed.setdefault(key, []).append(action)
        else:
            keyed.setdefault(group, []).append(action)
    yield "Options", plain
    trainer = keyed.pop("trainer", [])
    for key in [*(key for key in _TITLES if key in keyed), *(key for key in keyed if not isinstance(key, str))]:
        group = place.get(id(keyed[key][0])) if isinstance(key, str) else key
        yield _title(key if isinstance(key, str) else "", group, keyed[key]), keyed[key]
    yield from _sections_of_trainer(trainer)


def _title(key: str, group: Any, members: list[Any]) -> str:
    """The key in words, and for one class what it says of itself."""
    said = " ".join(str(getattr(group, "title", "") or "").split()).rstrip(".:")
    # jsonargparse names a class without a docstring, or several classes, as Python prints them.
    said = re.sub(r"<class '(?:[\w<>]+\.)*(\w+)'>", r"\1", said)
    if not key:
        return said
    is_open = any(action.dest == key and "CLASS" in kind_of(getattr(action, "_typehint", None)) for action in members)
    return _TITLES[key] if is_open or not said else f"{_TITLES[key]}: {said}"


def _sections_of_trainer(actions: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    by_name = {action.dest.partition(".")[2]: action for action in actions if not action.dest.endswith(".help")}
    first = [by_name.pop("")] if "" in by_name else []  # a file with all of them
    for title, names in _OF_TRAINER.items():
        yield title, [*first, *(by_name.pop(name) for name in names.split() if name in by_name)]
        first = []
    yield "Trainer: further arguments", list(by_name.values())


def _entries(parser: Any, action: Any) -> list[tuple[str, str]]:
    """How an argument is written, and what it means."""
    if isinstance(action, argparse._SubParsersAction):
        return [(choice.dest, choice.help or "") for choice in action._choices_actions]
    if action.dest.endswith(".help") and action.option_strings:
        return []  # said with the option itself
    return [(_invocation(action), _explanation(parser, action))]


def _columns(left: str, right: str, width: int, at: int) -> list[str]:
    lines = textwrap.wrap(right, width - at, break_on_hyphens=False) or [""]
    head = " " * _INDENT + left
    if len(head) + 2 <= at:
        first, *more = lines
        return [f"{head:<{at}}{first}".rstrip(), *(" " * at + line for line in more)]
    parts = textwrap.wrap(left, width - _INDENT, subsequent_indent=" " * _INDENT, break_on_hyphens=False)
    return [*(" " * _INDENT + part for part in parts), *(" " * at + line for line in lines if line)]


def _flag(action: Any) -> str:
    flags = [option for option in action.option_strings if not option.endswith("+")]
    text = ", ".join(flags) or str(action.dest)
    return f"{text}[+]" if any(option.endswith("+") for option in action.option_strings) else text


def _invocation(action: Any) -> str:
    if " --> " in "".join(action.option_strings):
        return f"--{action.dest}"
    if isinstance(action, argparse._HelpAction):
        return _flag(action)
    if type(action).__name__ == "_ActionPrintConfig":
        return f"{_flag(action)}[=FLAGS]"
    if type(action).__name__ in ("ActionConfigFile", "_ActionConfigLoad"):
        return f"{_flag(action)} FILE"
    hint = getattr(action, "_typehint", action.type)
    kind = "VALUE" if hint is None else kind_of(hint)
    return f"{_flag(action)} {kind}" if action.option_strings else _flag(action)


def _explanation(parser: Any, action: Any) -> str:
    if " --> " in "".join(action.option_strings):
        return f"Taken from {', '.join(key for key, _ in action.source)}."
    if isinstance(action, argparse._HelpAction):
        return "Show this and exit."
    if type(action).__name__ == "_ActionPrintConfig":
        return "Print the configuration that all other arguments make, and exit. Flags: skip_default, skip_unset."
    if type(action).__name__ == "_ActionConfigLoad":
        return "A YAML file with these arguments."
    hint = getattr(action, "_typehint", None)
    said = _sentence(re.sub(r"\s*\(default: [^()]*\)", "", " ".join((action.help or "").split())))
    if said.startswith('One or more arguments specifying "class_path"'):
        said = f"A class, as my_module.Net or by its short name; its arguments are {_flag(action)}.NAME."
    more = []
    choices = [str(choice) for choice in action.choices or choices_of(hint)]
    if len(choices) > 1:
        more.append(f"One of {', '.join(choices)}.")
    known = known_classes(action, hint)
    if known:
        more.append(f"Known: {', '.join(known)}.")
    if "CLASS" in kind_of(hint) and f"{action.dest}.help" in {other.dest for other in parser._actions}:
        more.append(f"See {_flag(action).removesuffix('[+]')}.help NAME.")
    if action.required:
        more.append("Required.")
    elif action.default not in (None, argparse.SUPPRESS, ""):
        more.append(f"Default: {_shown(action.default)}.")
    return " ".join(filter(None, [said, *more]))


def kind_of(hint: Any) -> str:
    """One word for what is to be given where `hint` is the type.

    >>> kind_of(int | float | None), kind_of(list[int] | str), kind_of(Literal["a", "b"])
    ('INT|FLOAT', 'LIST|TEXT', 'CHOICE')
    """
    return "|".join(dict.fromkeys(filter(None, _kinds(hint)))) or "VALUE"


def choices_of(hint: Any) -> Iterable[Any]:
    """The values that `hint` lists.

    >>> list(choices_of(Literal["a", 1] | None))
    ['a', 1]
    """
    origin = get_origin(hint)
    if origin is Literal:
        yield from get_args(hint)
    elif origin in (Union, types.UnionType):
        seen: set[str] = set()
        for part in get_args(hint):
            for choice in choices_of(part):
                if str(choice) not in seen:  # 16 and "16"
                    seen.add(str(choice))
                    yield choice
    elif inspect.isclass(hint) and issubclass(hint, Enum):
        yield from hint.__members__


def _kinds(hint: Any) -> Iterator[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _kinds(part)
    elif origin is Annotated:
        yield from _kinds(get_args(hint)[0])
    elif origin is Literal or (inspect.isclass(hint) and issubclass(hint, Enum)):
        yield "CHOICE"
    elif hint in _KINDS:
        yield _KINDS[hint]
    else:
        kind = origin or hint
        if not inspect.isclass(kind):
            yield "VALUE"
        elif issubclass(kind, PurePath):
            yield "PATH"
        elif issubclass(kind, dict):
            yield "DICT"
        elif kind.__module__ == "collections.abc" and kind.__name__ == "Callable":
            yield "CLASS" if get_args(hint) else "FUNCTION"
        elif issubclass(kind, (list, tuple, set)) or kind.__module__ == "collections.abc":
            inner = {kind_of(part) for part in get_args(hint) if part is not Ellipsis}
            yield "CLASS" if inner == {"CLASS"} else "LIST"
        elif kind.__module__ in ("datetime", "uuid", "decimal"):
            yield kind.__name__.upper()
        elif kind.__module__ == "torch" and kind.__name__ == "Tensor":
            yield ""
        else:
            yield "CLASS"


def known_classes(action: Any, hint: Any) -> list[str]:
    """The short names of the classes that are there for the argument."""
    if hint is None or "CLASS" not in kind_of(hint) or not hasattr(action, "extra_help"):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are gone by now
        listed = action.extra_help().partition("known subclasses: ")[2]
    paths = [path for path in listed.split(", ") if path and not _NOT_TO_CHOOSE.search(path)]
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    return [name for name in names if name.isidentifier() and name not in _base_names(hint)]


def _base_names(hint: Any) -> set[str]:
    parts = get_args(hint)
    if inspect.isclass(hint) and not parts:
        return {hint.__name__}
    return {name for part in parts for name in _base_names(part)}


def _sentence(text: str) -> str:
    return f"{text}." if text and text[-1] not in ".?!:" else text


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
