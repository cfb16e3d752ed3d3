"""Tell a person what is wrong with the arguments: what happened, why, and what to do."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from fulmen.cli.class_sources import classes_in, has_module
from fulmen.cli.complaints import Complaint, Kind, RefusedValueError, read_complaint
from fulmen.cli.config_files import config_files, locate, saved_in, yaml_problem
from fulmen.cli.faults import fault_in_module, fault_of
from fulmen.cli.help import known_classes
from fulmen.fabric.filesystem import is_local
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.rank_zero import rank_zero_only

# Values that make sense to show in full.
_MAX_NUM_CHARACTERS = 80
_MAX_NUM_NAMES = 12
_EXAMPLES = {"--model": "my_module.MyModel", "--data": "my_module.MyData"}


def explain(parser: Any, message: str, error: Exception | None) -> NoReturn:
    """Write the error to the standard error, and end.

    Args:
        parser: Found something wrong.
        message: What jsonargparse says about it.
        error: Its exception.

    Raises:
        SystemExit: With code 2; 1 if a module of the user cannot be imported, whose traceback is shown.
    """
    parser = getattr(error, "subcommand_parser", None) or parser
    complaint = error.complaint if isinstance(error, RefusedValueError) else read_complaint(message)
    fault = fault_in_module(error)
    if fault is None and complaint.kind is Kind.NO_CLASS and not isinstance(error, RefusedValueError):
        fault = fault_of(complaint.class_path or "")
    if rank_zero_only.rank == 0:
        if fault is not None:
            traceback.print_exception(fault)
        else:
            print(f"{_program(parser)}: error: {_Words(parser, complaint).say()}", file=sys.stderr)
    sys.exit(2 if fault is None else 1)


class _Words:
    """Finds the words for one complaint.

    Args:
        parser: For what there is to choose from, and for what was given.
        complaint: What is wrong.
    """

    def __init__(self, parser: Any, complaint: Complaint) -> None:
        self.parser = parser
        self.complaint = complaint
        self.program = _program(parser)
        self.arguments: list[str] = list(getattr(parser, "args", None) or [])
        above = getattr(parser, "parent_parser", None)
        self.all_arguments = [*(getattr(above, "args", None) or []), *self.arguments]

    def say(self) -> str:
        """Three sentences."""
        match self.complaint.kind:
            case Kind.UNKNOWN_FLAG:
                return self._unknown_flag()
            case Kind.UNKNOWN_KEY:
                return self._unknown_key()
            case Kind.UNKNOWN_COMMAND | Kind.NO_COMMAND:
                return self._no_command()
            case Kind.MISSING:
                return self._missing()
            case Kind.NO_VALUE:
                return self._no_value()
            case Kind.NO_FILE:
                return self._no_file()
            case Kind.NO_YAML:
                return self._no_yaml()
            case Kind.NO_KEYS:
                return self._no_keys()
            case Kind.NO_NAME:
                return self._no_name()
            case Kind.NO_CLASS:
                return self._no_class()
            case Kind.WRONG_CLASS:
                return self._wrong_class()
            case Kind.UNTYPED:
                return self._untyped()
            case Kind.LINKED:
                return self._linked()
            case Kind.INTERPOLATION:
                return self._interpolation()
            case Kind.WRONG_TYPE:
                return self._wrong_type()
            case Kind.SET_TWICE:
                return self._set_twice()
        what = _one_line(self.complaint.text).rstrip(".")
        return f"{what}. The arguments were not accepted, and nothing was started. {self._help()}"

    def _unknown_flag(self) -> str:
        first = (self.complaint.name.split() or [""])[0].partition("=")[0]  # an argument may be blank
        variable = next((one.variable for one in self.parser.settings if f"--{one.option}" == first), None)
        if variable is not None:
            near = _nearest(first.lstrip("-"), self._option_names())
            return (
                f"The environment variable {variable} sets {first}, which is unknown. `{self.program}` has no option of"
                f" this name. {f'Did you mean that of --{near}?' if near else self._help()}"
            )
        if not first.startswith("-"):
            return (
                f"{first!r} was not expected here. Every argument has a name, and this one stands where no value is"
                f" due. {self._help()}"
            )
        near = _nearest(first.lstrip("-"), self._option_names())
        if near:
            advice = f"Did you mean --{near}?"
        elif self._is_root():
            advice = f"Options of a subcommand stand after it. {self._help()}"
        else:
            advice = self._help()
        return f"{first} is unknown. `{self.program}` has no option of this name. {advice}"

    def _unknown_key(self) -> str:
        where = self._where(self.complaint.keys + tuple(self.complaint.name.split(".")))
        name = self.complaint.name
        if self.complaint.class_path:
            cls = self.complaint.class_path
            names = _argument_names(cls)
            why = f"{cls} takes {_listed(names)}" if names else f"{cls} takes no arguments"
            near = _nearest(name, names)
            if cls.endswith(".LightningModule"):
                return (
                    f"{where} came before a class was chosen. {why}. Name the class first: --model my_module.MyModel."
                )
            return f"{where} is unknown. {why}. {f'Did you mean {near}?' if near else self._help()}"
        path = self.complaint.path
        if "is abstract" in self.complaint.text:
            group = ".".join(self.complaint.keys)
            known = self._known_classes()
            return (
                f"{where} came before a class was chosen. It is an argument of the class that --{group} names."
                f" Name that first: --{group} {known[0] if known else 'CLASS'}."
            )
        near = _nearest(path, self._option_names())
        group = path.rpartition(".")[0] or "The config"
        return (
            f"{where} is unknown. {group} has no such key, and nothing is skipped silently."
            f" {f'Did you mean {near}?' if near else self._help()}"
        )

    def _no_command(self) -> str:
        commands = self._commands()
        if self.complaint.kind is Kind.NO_COMMAND:
            return (
                f"No subcommand was given. It says what is to be done: {_listed(commands)}."
                f" Write for example `{self.program} fit --config config.yaml`."
            )
        near = _nearest(self.complaint.name, commands)
        advice = f"Did you mean {near}?" if near else self._help()
        return f"{self.complaint.name!r} is no subcommand. There are {_listed(commands)}. {advice}"

    def _missing(self) -> str:
        names = [name.strip() for name in self.complaint.name.split(",")]
        if self.complaint.class_path:
            there = ".".join(self.complaint.keys)
            one = names[0]
            return (
                f"{there.removesuffix('.init_args')} lacks {_listed(names)}. {self.complaint.class_path} needs it, and"
                f" it has no default. Pass --{self._flag(there)}.{one} VALUE, or set {there}.{one} in a config file."
            )
        command = self.program
        flags = []
        for name in names:
            head, _, rest = name.partition(".")
            if rest and head in self._commands():  # the root parser says it for the subcommand
                command, name = f"{self.program.split()[0]} {head}", rest
            flags.append(f"--{name}")
        example = _EXAMPLES.get(flags[0], "VALUE")
        why = "There is no default that would make sense"
        of_checkpoint = next((one.model_of_checkpoint for one in self._parsers() if one.model_of_checkpoint), None)
        if flags[0] == "--model" and of_checkpoint is not None:
            example = of_checkpoint
            why = f"The checkpoint is of {example}, and what a file names is not imported by itself"
        return (
            f"`{command}` lacks {_listed(flags)}. {why}."
            f" Pass {flags[0]} {example}, or a file that sets it: --config config.yaml."
        )

    def _no_value(self) -> str:
        name = self.complaint.name.split("/")[-1]
        return (
            f"{name} has no value. What follows it is another option, or nothing. Write {name} VALUE, or leave it out."
        )

    def _no_file(self) -> str:
        path = self.complaint.name
        if not is_local(path):
            missing = not is_installed("fsspec")
            why = "fsspec, which reads remote files, is not installed" if missing else "fsspec found no file there"
            advice = "Install it with `python -m pip install fsspec`" if missing else "Check the address"
            return f"The file {path!r} cannot be read. {why}. {advice}."
        folder = os.path.dirname(path) or "."
        try:
            there = sorted(name for name in os.listdir(folder) if name.endswith((".yaml", ".yml")))
        except OSError:
            return f"The file {path!r} does not exist. There is no folder {folder!r} either. Check the path."
        near = _nearest(os.path.basename(path), there)
        known = f"In {folder!r} there are {_listed(there)}" if there else f"In {folder!r} there is no YAML file"
        return f"The file {path!r} does not exist. {known}. {f'Did you mean {near}?' if near else 'Check the path.'}"

    def _no_yaml(self) -> str:
        found = yaml_problem(self.all_arguments)
        if found is None:
            return (
                f"A config is no YAML: {_one_line(self.complaint.name).rstrip('.')}. It could not be read. Correct it."
            )
        path, problem = found
        if "tag" in problem:
            return (
                f"The config file {path!r} has a tag that is not read: {problem}. Tags build objects, and a config"
                " builds only what types ask for. Write plain values, or a class_path with init_args."
            )
        return (
            f"The config file {str(path)!r} is no YAML. In {problem}."
            " Correct it; often a colon lacks its space, or a bracket its end."
        )

    def _no_keys(self) -> str:
        files = config_files(self.all_arguments)
        holds = "is empty" if not self.complaint.name.strip() else "has no keys"
        return (
            f"The config file {files[-1] if files else 'that was given'!r} {holds}. A config is a mapping of keys to"
            " values, as `trainer: {max_epochs: 3}`. Write one, or leave the file out."
        )

    def _no_name(self) -> str:
        files = list(dict.fromkeys(config_files(self.all_arguments)))
        where = f"The config file {files[0]!r}" if len(files) == 1 else "A config"
        return (
            f"{where} has the key {self.complaint.name.rstrip('.')}, which is no text. A key is the name of an"
            " argument, and none has such a name. Remove it, or write the name that was meant."
        )

    def _no_class(self) -> str:
        given = self.complaint.class_path or self.complaint.name
        where = f"{self._where(self.complaint.keys)} names {given!r}, which cannot be found"
        module, _, name = given.rpartition(".")
        if not module:
            near = _nearest(given, self._known_classes())
            return (
                f"{where}. No class of that name is known here: a short name works for those of Fulmen and torch."
                f" {f'Did you mean {near}?' if near else f'Write the whole path, as my_module.{given}.'}"
            )
        if has_module(module):
            own = classes_in(module)
            near = _nearest(name, own)
            advice = f"Did you mean {module}.{near}?" if near else f"Its classes are: {_listed(own) or 'none'}."
            return f"{where}. The module {module} has no class {name}. {advice}"
        folder = saved_in(self.all_arguments)
        if folder is not None and os.path.realpath(folder) != os.path.realpath(os.getcwd()):
            return (
                f"{where}. There is no module {module!r} here, and the config was saved by a run in {folder!r}."
                " Start the command there, or install the module."
            )
        return (
            f"{where}. There is no module {module!r} among the installed ones, in the current folder, or beside the"
            " config file. Check the spelling, or start the command in the folder that the module lies in."
        )

    def _wrong_class(self) -> str:
        given = self.complaint.class_path or self.complaint.value or "the class"
        short = given.rpartition(".")[2]
        base = self.complaint.wanted[0].rpartition(".")[2]
        return (
            f"{self._where(self.complaint.keys)} names {given!r}, which is no {base}. Only {base} and classes derived"
            f" from it can be used there. Write `class {short}({base})`, or name another class."
        )

    def _untyped(self) -> str:
        keys = self.complaint.keys
        return (
            f"{self._where(keys)} names the class {self.complaint.class_path!r}. The argument {keys[-1]} has no type"
            " that asks for an object, and only a type says what a config may build. Annotate it, as"
            f" `{keys[-1]}: torch.nn.Module`; or as `dict` to be given the description itself, for instantiate_class."
        )

    def _linked(self) -> str:
        flag = f"--{self._flag(self.complaint.name)}"
        return (
            f"{flag} cannot be given. Its value is taken from {self.complaint.wanted[0]}, to which it is linked."
            f" Give that, and leave {flag} out."
        )

    def _interpolation(self) -> str:
        return (
            f"A ${{...}} in the configuration leads nowhere: {self._reference()}. It must be the"
            " path of another key, from the level of the subcommand: ${trainer.max_epochs}, ${model.init_args.width}."
            " Correct it."
        )

    def _reference(self) -> str:
        lines = self.complaint.name.splitlines()
        keys = [line.partition(":")[2].strip() for line in lines if line.strip().startswith("full_key:")]
        said = lines[0].partition(" (resolved")[0].rstrip(".")
        return f"{said}, at {keys[0]}" if keys else said

    def _wrong_type(self) -> str:
        value = _shortened(self.complaint.value or "")
        wanted = self.complaint.wanted
        if "${" in value and not is_installed("omegaconf"):
            return (
                f"{self._where(self.complaint.keys)} is {value}. Such references are read by omegaconf, which is not"
                " installed. Install it with `python -m pip install omegaconf`, or write the value itself."
            )
        choice = " or ".join(wanted) if len(wanted) <= 3 else f"one of {', '.join(wanted)}"
        where = self._where(self.complaint.keys)
        place = "it" if where.startswith("--") else "the file"
        return (
            f"{where} is {value}. It must be {choice}, and nothing else is converted to that."
            f" Correct {place}, or run `{self.program} --help` for what it means."
        )

    def _set_twice(self) -> str:
        lines = list(dict.fromkeys(self.complaint.wanted))
        where = f"line {lines[0]}" if len(lines) == 1 else f"lines {' and '.join(lines)}"
        return (
            f"The key {self.complaint.path} stands twice in {self.complaint.name}, in {where}. YAML keeps the last one,"
            " and the other would be lost. Remove one of them."
        )

    # ---- what there is

    def _where(self, keys: Sequence[str]) -> str:
        """The flag, or the key with its file and line."""
        flag = f"--{self._flag('.'.join(keys))}"
        spelled = {flag, f"--{'.'.join(keys)}"}
        for setting in reversed(self.parser.settings):
            if f"--{setting.option}" in spelled:
                return f"{flag}, set by {setting.variable} in the environment,"
        if any(argument.partition("=")[0].rstrip("+") in spelled for argument in self.all_arguments):
            return flag
        keys = list(keys)
        place = locate(keys, self.all_arguments) or locate([*self.program.split()[-1:], *keys], self.all_arguments)
        path = ".".join(keys)
        return f"The key {path} ({place})" if place else f"The key {path}"

    @staticmethod
    def _flag(path: str) -> str:
        return path.replace(".init_args", "")

    def _option_names(self) -> list[str]:
        names = {action.dest for action in self.parser._actions if action.option_strings}
        groups = {name.split(".")[0] for name in names if "." in name}
        return sorted(name for name in names | groups if name.split(".")[-1] not in ("help", "print_config"))

    def _known_classes(self) -> list[str]:
        option = self._flag(".".join(self.complaint.keys))
        actions = [action for action in self.parser._actions if action.dest == option]
        return [name for action in actions for name in known_classes(action, getattr(action, "_typehint", None))]

    def _commands(self) -> list[str]:
        root = getattr(self.parser, "parent_parser", None) or self.parser
        action = root._subcommands_action
        return [*(action.choices if action is not None else ()), *root.further_commands]

    def _parsers(self) -> list[Any]:
        action = self.parser._subcommands_action
        return [self.parser, *(action.choices.values() if action is not None else ())]

    def _is_root(self) -> bool:
        return self.parser._subcommands_action is not None

    def _help(self) -> str:
        return f"Run `{self.program} --help` to see what there is."


def _program(parser: Any) -> str:
    return " ".join(word for word in str(parser.prog).split() if word != "[options]")


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """The one that is meant: of those that begin so, if any do."""
    known = list(names)
    begun = [one for one in known if name and one.startswith(name)]
    found = difflib.get_close_matches(name, begun or known, n=1, cutoff=0.0 if begun else 0.6)
    return found[0] if found else None


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = ["..."] if len(shown) > _MAX_NUM_NAMES else []
    return ", ".join([*shown[:_MAX_NUM_NAMES], *more])


def _shortened(text: str) -> str:
    line = _one_line(text)
    if line == "None":
        return "null"
    return repr(line) if len(line) <= _MAX_NUM_CHARACTERS else repr(line[:_MAX_NUM_CHARACTERS] + "...")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _argument_names(class_path: str) -> list[str]:
    """The arguments of the class, with those of its bases that it passes on."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(sys.modules[module], name)
        added: list[str] = ArgumentParser().add_class_arguments(cls, fail_untyped=False)
    except Exception:  # it is only for the advice
        return []
    return [argument for argument in added if "." not in argument]
