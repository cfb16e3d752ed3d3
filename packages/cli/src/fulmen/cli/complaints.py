"""What jsonargparse complains about, taken out of its messages (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto


class Kind(Enum):
    """What is wrong."""

    UNKNOWN_FLAG = auto()  # an option that no parser has
    UNKNOWN_KEY = auto()  # a key that no group, or no class, takes
    UNKNOWN_COMMAND = auto()  # a subcommand that there is not
    NO_COMMAND = auto()
    MISSING = auto()  # a required value
    NO_VALUE = auto()  # an option at the end, without its value
    NO_FILE = auto()
    NO_YAML = auto()
    NO_KEYS = auto()  # a file of something else than keys with values
    NO_NAME = auto()  # a key that YAML reads as a number, a date, a bool or null
    NO_CLASS = auto()  # a class path that leads nowhere
    WRONG_CLASS = auto()  # a class that is not derived from the one it must be
    UNTYPED = auto()  # a class for an argument whose type asks for none
    INTERPOLATION = auto()  # ${...} that leads nowhere
    LINKED = auto()  # a value for what is taken from elsewhere
    WRONG_TYPE = auto()
    SET_TWICE = auto()  # a key that stands in a file once more
    OTHER = auto()


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong with the arguments.

    Attributes:
        kind: What.
        text: The part of the message that says it.
        keys: Where: the way down the config; after each class path comes "init_args".
        name: The unknown or missing name, or the file.
        value: The value that was given, as text.
        class_path: The class whose arguments are wrong, or that cannot be had.
        wanted: What a right value is: types, or a base class. Of a key that is set twice: the lines.
    """

    kind: Kind
    text: str
    keys: tuple[str, ...] = ()
    name: str = ""
    value: str | None = None
    class_path: str | None = None
    wanted: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The place in a config: `model.init_args.width`."""
        return ".".join(filter(None, [*self.keys, self.name if self.kind is Kind.UNKNOWN_KEY else ""]))


class RefusedValueError(Exception):
    """A value must not stand where it stands; `complaint` tells which, and where."""

    def __init__(self, complaint: Complaint) -> None:
        super().__init__(complaint.text)
        self.complaint = complaint


_KEY = re.compile(r'\s*Parser key "([^"]+)"[^:\n]*:\s*(.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '([^']+)':$")
_NESTED = re.compile(r"NestedArg\(key='([^']+)'")
_SUBTYPES = re.compile(r"Subtypes: \[(.*)\]\n")
_VALUE = re.compile(r"(?:Given value:|Got value:) (.*)", re.DOTALL)
_IN_FILE = re.compile(r"Unable to load config '[^']*'\n\s*- (Parser key \".*)", re.DOTALL)
_DATA = ("int", "float", "bool", "str", "Literal")
_RULES = (
    (Kind.UNKNOWN_FLAG, re.compile(r"unrecognized arguments: (?P<name>.*)", re.DOTALL)),
    (Kind.UNKNOWN_COMMAND, re.compile(r"argument subcommand: invalid choice: '?(?P<name>[^' ]*)'?")),
    (Kind.NO_COMMAND, re.compile(r'expected "subcommand" to be one of')),
    (Kind.NO_VALUE, re.compile(r"argument (?P<name>\S+): expected (?:one|at least one) argument")),
    (Kind.UNKNOWN_KEY, re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'")),
    (Kind.UNKNOWN_KEY, re.compile(r"Subcommand '[^']+' does not accept option '(?P<name>[^']+)'")),
    (Kind.UNKNOWN_KEY, re.compile(r"Option '(?P<name>[^']+)' is not accepted")),
    (Kind.MISSING, re.compile(r"the following arguments are required: (?P<name>[^\n]*)")),
    (Kind.NO_KEYS, re.compile(r"Unexpected config: ?(?P<name>.*)", re.DOTALL)),
    (Kind.NO_NAME, re.compile(r"Key must be a string, got: (?P<name>[^\n]*)")),
    (Kind.NO_YAML, re.compile(r"Problems parsing config: (?P<name>.*)", re.DOTALL)),
    (Kind.NO_FILE, re.compile(r"(?:File|Path) (?:does not exist|is not readable)[^']*'(?P<name>[^']+)'")),
    (Kind.NO_CLASS, re.compile(r"No module named '(?P<name>[^']+)'")),
    (Kind.NO_CLASS, re.compile(r"module '[^']+' has no attribute '(?P<name>[^']+)'")),
    (Kind.NO_CLASS, re.compile(r"Expected a dot import path string: (?P<name>[^\n]+)")),
    (Kind.INTERPOLATION, re.compile(r"^Interpolation: (?P<name>.*)", re.DOTALL)),
    (Kind.LINKED, re.compile(r"Linked \"(?P<name>[^\"]+)\" must be given via \"(?P<wanted>[^\"]+)\"")),
    (Kind.WRONG_CLASS, re.compile(r"does not correspond to a subclass of (?P<wanted>[^\n]+)")),
)


def read_complaint(message: str) -> Complaint:
    """What `message` complains about."""
    return _read(message, Complaint(Kind.OTHER, message))


def _read(text: str, so_far: Complaint) -> Complaint:
    so_far = replace(so_far, text=text.strip())
    if match := _IN_FILE.search(text):  # of one group: its keys are named from the top
        return _read(match[1], replace(so_far, keys=()))
    if match := _KEY.match(text):
        so_far = replace(so_far, keys=(*so_far.keys, *match[1].split(".")))
        text = match[2]
    if given := _VALUE.search(text):
        so_far = replace(so_far, value=given[1].strip())
    inside = _inside_class(text)
    if inside is not None:
        class_path, block = inside
        found = _read(block, replace(so_far, keys=(*so_far.keys, "init_args"), class_path=class_path))
        if found.kind in (Kind.NO_CLASS, Kind.WRONG_CLASS):
            return replace(found, keys=so_far.keys)  # such a class has no arguments
        if found.kind is not Kind.OTHER:
            return found
    elif match := _NESTED.search(so_far.value or ""):
        # --trainer.max_epochs.foo: there is nothing below max_epochs.
        return replace(so_far, kind=Kind.UNKNOWN_KEY, name=match[1])
    for kind, pattern in _RULES:
        if match := pattern.search(text):
            if kind is Kind.NO_CLASS and _may_be_data(text, so_far.value or ""):
                break
            named = match.groupdict()
            keys = (*so_far.keys, *(named.get("group") or "").split(".")) if named.get("group") else so_far.keys
            wanted = (named["wanted"].strip(),) if "wanted" in named else ()
            return replace(so_far, kind=kind, keys=keys, name=named.get("name") or "", wanted=wanted)
    types = _wanted(text)
    if types:
        return replace(so_far, kind=Kind.WRONG_TYPE, wanted=types)
    return replace(so_far, text=text.strip())


def _may_be_data(text: str, value: str) -> bool:
    """Is a class only one of the things that are asked for, and is the value no name of a class?"""
    subtypes = _SUBTYPES.search(text)
    asks = subtypes is not None and any(f"'{name}'" in subtypes[1] or f".{name}[" in subtypes[1] for name in _DATA)
    return asks and "." not in value and not value[:1].isupper()


def _wanted(text: str) -> tuple[str, ...]:
    """The types of which the value should be one, in words."""
    if match := _SUBTYPES.search(text):
        parts = _split(match[1])
    elif match := re.search(r"Expected a (.*?)(?:\.? Got value|\n|$)", text):
        parts = [match[1]]
    else:
        return ()
    # The checks of one Literal after another name them all.
    return tuple(dict.fromkeys(word for part in parts for word in _words(part)))


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _words(annotation: str) -> list[str]:
    annotation = re.sub(r"<class '([^']+)'>", r"\1", annotation)
    if match := re.match(r"typing\.Literal\[(.*)\]$", annotation):
        return _split(match[1])
    plain = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", annotation)
    return ["null" if plain == "NoneType" else plain]


def _inside_class(text: str) -> tuple[str, str] | None:
    """The first class whose arguments are wrong, and the lines that say what is wrong with them."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if match := _CLASS.search(line):
            block = []
            for inner in lines[index + 1 :]:
                if inner.strip() and len(inner) - len(inner.lstrip()) <= match.start():
                    break
                block.append(inner[match.start() + 2 :])
            return match[1], "\n".join(block)
    return None
