"""Subcommands that other installed packages add, by entry points of the group `fulmen.cli.subcommands`.

A package that wants `lightning-cli sweep` writes into its pyproject.toml

```toml
[project.entry-points."fulmen.cli.subcommands"]
sweep = "my_package.sweep_command"
```

What the entry point names, a module or an object, has what `Subcommand` lists. It is imported when it is asked for, or
when the help lists it; it need not import fulmen.cli.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn

GROUP = "fulmen.cli.subcommands"


class Subcommand(Protocol):
    """What a package provides; a module with these functions will do.

    The first line of its docstring is shown in the help. Two further names may be there:
        like: The name of a built-in subcommand whose options are taken too, so that its configs can be read: "fit".
        saves_config: Is the configuration saved, as by `fit`? False unless said.
    """

    def add_arguments(self, parser: Any) -> None:
        """Add options to the parser, which has those of trainer, model and data already."""

    def run(self, cli: Any, **arguments: Any) -> None:
        """Do it.

        Args:
            cli: The LightningCLI: `cli.trainer`, `cli.model` and `cli.datamodule` are built.
            arguments: The values of what `add_arguments` added, and of the options of `like`.
        """


class InstalledSubcommands(Mapping[str, Any]):
    """Name to subcommand; each is imported when it is taken.

    Args:
        taken: Names of built-in subcommands, which nothing replaces.
    """

    def __init__(self, taken: Collection[str] = ()) -> None:
        self._found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for point in importlib.metadata.entry_points(group=GROUP):
            if point.name in taken:
                rank_zero_warn(
                    f"The subcommand {point.name!r} of {_origin(point)} is not used. A built-in one has that name."
                    f" Remove that package, or ask its authors for another name."
                )
            elif point not in self._found.setdefault(point.name, []):
                self._found[point.name].append(point)

    def __iter__(self) -> Any:
        return iter(sorted(self._found))

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, name: str) -> Any:
        points = self._found[name]
        if len(points) > 1:
            raise ConfigurationError(
                f"The subcommand {name!r} is there {len(points)} times: from {', '.join(map(_origin, points))}."
                " Nothing says which of them is meant. Uninstall all but one."
            )
        point = points[0]
        try:
            return point.load()
        except Exception as error:
            raise ConfigurationError(
                f"The subcommand {name!r} cannot be loaded. {_origin(point)} provides it as {point.value!r}, and that"
                f" ended with {type(error).__name__}: {error}. Mend or uninstall that package."
            ) from error

    def describe(self, name: str) -> str:
        """One line for the help; it says so if the subcommand is broken."""
        try:
            return first_line(self[name])
        except ConfigurationError as error:
            return f"(not usable) {str(error).partition('. ')[2]}"


def first_line(described: object) -> str:
    """The first line of a docstring."""
    return (getattr(described, "__doc__", None) or "").strip().partition("\n")[0]


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]
