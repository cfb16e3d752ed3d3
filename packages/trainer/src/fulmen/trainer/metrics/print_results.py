"""Results of an evaluation as a printed table: one row per metric, one column per dataloader."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from fulmen.trainer.metrics.log_call import LOADER_SUFFIX

_BOX = "─│┌┬┐├┼┤└┴┘"
_PLAIN_BOX = "-|+++++++++"  # for terminals that have no box characters
_HEADINGS = {"validate": "Validation metric", "test": "Test metric"}
_NARROWEST = 8  # of a column


def print_results(results: Sequence[Mapping[str, float]], stage: str, *, file: TextIO | None = None) -> None:
    """Print what `validate` or `test` returned, no wider than the terminal.

    Args:
        results: One mapping of names to values per dataloader.
        stage: The word over the names: "validate" or "test".
        file: Where to; None: the standard output.
    """
    file = file or sys.stdout
    width = shutil.get_terminal_size().columns
    text = render_results(results, stage, width)
    if not text:
        return
    try:
        text.encode(getattr(file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(str.maketrans(_BOX, _PLAIN_BOX))
    print(text, file=file)


def render_results(results: Sequence[Mapping[str, float]], stage: str, width: int) -> str:
    """The table as text of at most `width` columns; "" if there is nothing to show.

    Dataloaders that do not fit beside each other go into further tables below; names that do not fit are wrapped.
    """
    columns = [_without_loader(result) for result in results]
    names = sorted({name for column in columns for name in column})
    if not names:
        return ""
    heading = _HEADINGS.get(stage, f"{stage.capitalize()} metric")
    titles = ["Value"] if len(columns) == 1 else [f"DataLoader {index}" for index in range(len(columns))]
    cells = [[_number(column[name]) if name in column else "" for name in names] for column in columns]
    widths = [max(len(title), *map(len, cell)) for title, cell in zip(titles, cells, strict=True)]
    # A border and two spaces for each column, and the last border.
    name_width = max(len(heading), *map(len, names))
    name_width = max(_NARROWEST, min(name_width, width - 4 - (max(widths) + 3)))
    tables = []
    first = 0
    while first < len(columns):
        last, used = first + 1, 4 + name_width + widths[first] + 3
        while last < len(columns) and used + widths[last] + 3 <= width:
            used += widths[last] + 3
            last += 1
        chosen = slice(first, last)
        tables.append(_table(heading, titles[chosen], names, cells[chosen], [name_width, *widths[chosen]]))
        first = last
    return "\n".join(tables)


def _without_loader(result: Mapping[str, float]) -> dict[str, float]:
    # The column says which loader it is.
    return {name.split(LOADER_SUFFIX)[0]: value for name, value in result.items()}


def _number(value: float) -> str:
    text = f"{value:.6g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text


def _table(heading: str, titles: list[str], names: list[str], cells: list[list[str]], widths: list[int]) -> str:
    line, bar, *corners = list(_BOX)

    def rule(left: str, middle: str, right: str) -> str:
        return left + middle.join(line * (width + 2) for width in widths) + right

    def row(name: str, values: list[str]) -> list[str]:
        pieces = [name[start : start + widths[0]] for start in range(0, len(name), widths[0])]
        rows = [[piece, *([""] * len(values))] for piece in pieces]
        rows[0][1:] = values
        return [
            f"{bar} "
            + f" {bar} ".join(
                [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
            )
            + f" {bar}"
            for first, *rest in rows
        ]

    lines = [rule(*corners[:3]), *row(heading, titles), rule(*corners[3:6])]
    for index, name in enumerate(names):
        lines += row(name, [column[index] for column in cells])
    return "\n".join([*lines, rule(*corners[6:])])
