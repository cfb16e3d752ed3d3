"""The command `lightning-cli`. What trains is imported only when something is to be trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence


def main(args: list[str] | None = None) -> None:
    """Do what the first word says.

    Args:
        args: The arguments; None: those of the program.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    words = _words()
    if arguments and arguments[0] in words:
        try:
            words[arguments[0]](arguments[1:])
        except BrokenPipeError:  # lightning-cli examples | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    from fulmen.cli.run import run

    run(args, tuple(words), _EPILOGUE)


# Lines that begin alike stand below each other in the help.
_EPILOGUE = """\
Further commands:
  init NAME           Write a small project that trains and passes its test.
  examples            List examples that can be run at once.
  completion SHELL    Write a script that completes these words and options: bash, zsh.

The current folder is searched for modules: `lightning-cli fit --model my_module.Net --data my_module.Data`."""


def _words() -> dict[str, Callable[[Sequence[str]], None]]:
    def init(arguments: Sequence[str]) -> None:
        from fulmen.cli.new_project import main as write_project

        write_project(arguments)

    def examples(arguments: Sequence[str]) -> None:
        from fulmen.cli.example_list import main as list_examples

        list_examples(arguments)

    def completion(arguments: Sequence[str]) -> None:
        from fulmen.cli.completion import main as write_script

        write_script(arguments)

    return {"init": init, "examples": examples, "completion": completion}
