"""Which parts of a module are split over a mesh, and how: patterns of names to styles (pure).

A style is one word, or how the input comes > the word > how the output leaves: "sequence > column", "row > sequence".

| word | parameters | input comes | output leaves |
| --- | --- | --- | --- |
| column | split by output features | whole | features |
| row | split by input features; an embedding, by its rows | features; whole | whole |
| sequence | whole; the module works on its part of the sequence | sequence | sequence |
| replicate | whole | whole | whole |
| shard | a unit: gathered over the data axes right before it runs | | |
| ring, ulysses | whole; attention inside is over the sequence of all processes of a context | | |

"features" is the last axis of a tensor, and "sequence" its second, (batch, sequence, ...).
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch.nn import Module

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError

COLUMN, ROW, SEQUENCE, REPLICATE, SHARD = "column", "row", "sequence", "replicate", "shard"
WHOLE, FEATURES = "whole", "features"
# For each word, how the input comes and the output leaves, unless the style says.
_FLOWS = {
    COLUMN: (WHOLE, FEATURES),
    ROW: (FEATURES, WHOLE),
    SEQUENCE: (SEQUENCE, SEQUENCE),
    REPLICATE: (WHOLE, WHOLE),
}
_LAYOUTS = (WHOLE, SEQUENCE, FEATURES)
_ATTENTIONS = ("ring", "ulysses")
_ALONE = (SHARD, SEQUENCE, *_ATTENTIONS)  # words that say all


@dataclass(frozen=True)
class Style:
    """How a part of a module is split over the tensor axis.

    Attributes:
        text: As the user wrote it.
        kind: The word; "own" for a style of torch.
        source, target: How the input comes and the output leaves; None where the kind decides.
        own: A `ParallelStyle` of torch.
    """

    text: str
    kind: str
    source: str | None = None
    target: str | None = None
    own: Any = None


@dataclass(frozen=True)
class Matched:
    """What a plan means for one module; names of its parts, the module itself under "".

    Attributes:
        tensors: Parts that are split over the tensor axis, and how.
        units: Parts whose parameters are gathered together over the data axes.
        attentions: Parts in which attention is over the sequence of several processes, and in which way.
    """

    tensors: dict[str, Style]
    units: tuple[str, ...]
    attentions: dict[str, str]


class Plan:
    """Patterns of names of modules or parameters, and the style of each.

    In a pattern, `*` stands for any letters but a dot, and `**` for any number of names with dots between them. A
    pattern that names a parameter stands for the module that has it.

    Args:
        styles: Patterns to styles: texts as above, or a `ParallelStyle` of torch.

    Raises:
        ArgumentTypeError: If it is no dictionary of these.
        ConfigurationError: If a style is unknown, or there is none.
    """

    def __init__(self, styles: Mapping[str, Any]) -> None:
        if not isinstance(styles, Mapping):
            raise ArgumentTypeError(
                f"ModelParallelStrategy(plan={styles!r}) is a {type(styles).__name__}. A plan says for patterns of"
                " names how these parts of the module are split. Pass a dictionary, such as {'blocks.*.up': 'column'}."
            )
        if not styles:
            raise ConfigurationError(
                "ModelParallelStrategy(plan={}) is empty. A plan says for patterns of names how these parts of the"
                " module are split. Pass for instance plan={'**': 'shard'}, or {'blocks.*.up': 'column'}."
            )
        self._styles = {_checked(pattern): parse_style(pattern, style) for pattern, style in styles.items()}

    @property
    def splits_tensors(self) -> bool:
        """Is anything split over the tensor axis?"""
        return any(style.kind not in (SHARD, REPLICATE, *_ATTENTIONS) for style in self._styles.values())

    @property
    def splits_sequences(self) -> bool:
        """Does any attention go over the sequence of several processes?"""
        return any(style.kind in _ATTENTIONS for style in self._styles.values())

    def match(self, module: Module) -> Matched:
        """The parts of the module that the plan names.

        Raises:
            ConfigurationError: If a pattern names nothing, or two name the same part and say different things.
        """
        modules = [name for name, _ in module.named_modules()]
        parameters = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        chosen: dict[bool, dict[str, tuple[str, Style]]] = {False: {}, True: {}}
        units: dict[str, None] = {}
        for pattern, style in self._styles.items():
            names = _matching(pattern, modules, parameters)
            if not names:
                raise ConfigurationError(_nothing(pattern, style, class_name(module), modules, parameters))
            if style.kind == SHARD:
                # A list of modules has no forward before which its parameters could be gathered.
                units |= dict.fromkeys(name for name in names if _has_forward(module.get_submodule(name)))
                continue
            for name in names:
                other, before = chosen[style.kind in _ATTENTIONS].setdefault(name, (pattern, style))
                if before != style:
                    raise ConfigurationError(
                        f"ModelParallelStrategy(plan={{{other!r}: {before.text!r}, {pattern!r}: {style.text!r}}})"
                        f" says two ways to split {name!r} of {class_name(module)}. A part is split in one way."
                        " Make one of the patterns narrower."
                    )
        tensors, attentions = chosen[False], chosen[True]
        return Matched(
            {name: style for name, (_, style) in tensors.items()},
            tuple(units),
            {name: style.kind for name, (_, style) in attentions.items()},
        )


def parse_style(pattern: str, style: object) -> Style:
    """A style as the user wrote it.

    >>> parse_style("up", "sequence > column")
    Style(text='sequence > column', kind='column', source='sequence', target='features', own=None)
    """
    parallel = sys.modules.get("torch.distributed.tensor.parallel")  # whoever has such an object has imported it
    if parallel is not None and isinstance(style, parallel.ParallelStyle):
        return Style(repr(style), "own", own=style)
    if not isinstance(style, str):
        raise ArgumentTypeError(
            f"ModelParallelStrategy(plan={{{pattern!r}: {style!r}}}) got a {type(style).__name__} for a style."
            f" It says how what the pattern names is split. Pass {_words()}, or a ParallelStyle of torch."
        )
    parts = [part.strip() for part in style.split(">")]
    places = [place for place, part in enumerate(parts) if part in (COLUMN, ROW, REPLICATE)]
    if len(parts) == 1 and parts[0] in _ALONE:
        return Style(style, parts[0], *_FLOWS.get(parts[0], ()))
    flows = [part for place, part in enumerate(parts) if place not in places]
    is_flow = len(places) == 1 and places[0] <= 1 and len(parts) <= places[0] + 2 and all(f in _LAYOUTS for f in flows)
    if not is_flow:
        raise ConfigurationError(
            f"ModelParallelStrategy(plan={{{pattern!r}: {style!r}}}) has a style that is unknown{_nearest(parts)}."
            " It says how what the pattern names is split, and before and after it, how its input comes and its output"
            f" leaves. Pass {_words()}, or for instance 'sequence > column' or 'row > sequence', of"
            f" {', '.join(map(repr, _LAYOUTS))}."
        )
    kind = parts[places[0]]
    # An embedding gets whole numbers of tokens also where it is split by rows.
    source = parts[0] if places[0] else None if kind == ROW else _FLOWS[kind][0]
    target = parts[-1] if places[0] < len(parts) - 1 else _FLOWS[kind][1]
    return Style(style, kind, source, target)


def _checked(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise ArgumentTypeError(
            f"ModelParallelStrategy(plan={{{pattern!r}: ...}}) has a {type(pattern).__name__} for a pattern. It names"
            " parts of the module. Pass a text, such as 'blocks.*.up'."
        )
    return pattern


def _words() -> str:
    return ", ".join(map(repr, (*_FLOWS, SHARD, *_ATTENTIONS)))


def _nearest(parts: list[str]) -> str:
    known = (*_FLOWS, SHARD, *_ATTENTIONS, *_LAYOUTS)
    wrong = [part for part in parts if part not in known]
    close = [word for part in wrong for word in difflib.get_close_matches(part, known, 1)]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _matching(pattern: str, modules: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """The modules that a pattern names, itself or by one of their parameters."""
    wanted = pattern.split(".") if pattern else []
    found = dict.fromkeys(name for name in modules if _fits(wanted, name.split(".") if name else []))
    if not found:
        found = dict.fromkeys(name.rpartition(".")[0] for name in parameters if _fits(wanted, name.split(".")))
    return list(found)


def _fits(pattern: list[str], names: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(pattern[1:], names) or (bool(names) and _fits(pattern, names[1:]))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(pattern[1:], names[1:])


def _nothing(pattern: str, style: Style, kind: str, modules: list[str], parameters: list[str]) -> str:
    # Layers of a list differ in their number only: one line for all of them.
    names = dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in [*modules, *parameters] if name)
    close = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or list(names)[:4]
    return (
        f"ModelParallelStrategy(plan={{{pattern!r}: {style.text!r}}}) names nothing in {kind}. A pattern fits the whole"
        " name of a module or of a parameter, and `*` stands for no dot."
        f" The nearest names are {', '.join(map(repr, close))}: write one of these, or leave the pattern out."
    )


def _has_forward(module: Module) -> bool:
    return type(module).forward is not Module.forward
