"""Run the Python blocks of Markdown files, in order, all blocks of one file in one namespace.

A block that follows the line `<!-- not run -->` is left out. A failure ends with the traceback of the block, whose
lines are numbered as in the Markdown file.

    python tools/run_examples.py README.md docs/tour.md
"""

from __future__ import annotations

import argparse
import linecache
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

NOT_RUN = "<!-- not run -->"


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """The 0-based line at which each Python block begins, and its code."""
    begin: int | None = None
    is_python = is_left_out = False
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if begin is None:
                begin, is_python = number + 1, line.removeprefix("```").strip() == "python"
                continue
            if is_python and not is_left_out:
                yield begin, "\n".join(lines[begin:number]) + "\n"
            begin, is_left_out = None, False
        elif begin is None and line.strip():
            is_left_out = line.strip() == NOT_RUN


def run_file(path: Path) -> int:
    """Run the blocks of one file; returns their number."""
    # Pickle and spawned processes look classes up in a module of that name.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    blocks = list(python_blocks(path.read_text(encoding="utf-8")))
    for line, code in blocks:
        padded = "\n" * line + code
        linecache.cache[str(path)] = (len(padded), None, padded.splitlines(keepends=True), str(path))
        exec(compile(padded, str(path), "exec"), module.__dict__)
    return len(blocks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.md")
    for path in parser.parse_args(arguments).files:
        print(f"{path}: {run_file(path)} blocks ran")


if __name__ == "__main__":
    main()
