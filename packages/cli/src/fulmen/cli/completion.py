"""`lightning-cli completion bash`: a script that completes options and their values without starting Python."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh")
# Subcommands need no such mark: they have options of their own.
_WORDS = ("init", "examples", "completion")


# What an option whose type is plain text can be.
_TEXTS = {
    "--ckpt_path": ("best", "last"),
    "--trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "--trainer.devices": ("auto",),
    "--trainer.gradient_clip_algorithm": ("norm", "value"),
    "--trainer.profiler": ("simple", "advanced", "pytorch"),
}


@dataclass(frozen=True)
class Completions:
    """What can follow.

    Attributes:
        options: For each subcommand; "" has those before it.
        values: For an option, what it can be; an option without them takes anything, files too.
        files: Options with values that may be files besides.
    """

    options: Mapping[str, Sequence[str]]
    values: Mapping[str, Sequence[str]]
    files: Sequence[str] = ()


def completions_of(parser: Any) -> Completions:
    """What the parser of a LightningCLI knows."""
    from fulmen.cli.help import choices_of, kind_of, known_classes

    subparsers = dict(parser._subcommands_action.choices)
    options: dict[str, list[str]] = {"": _options(parser)}
    values: dict[str, list[str]] = {}
    for name, subparser in subparsers.items():
        options[name] = _options(subparser)
        for action in subparser._actions:
            hint = getattr(action, "_typehint", None)
            kinds = kind_of(hint).split("|")
            found = [str(choice) for choice in action.choices or choices_of(hint)]
            found += ["true", "false"] if "BOOL" in kinds else []
            found += known_classes(action, hint)
            for option in action.option_strings:
                if f"{option}.help" in options[name]:
                    values.setdefault(f"{option}.help", known_classes(action, hint))
                if found or option in _TEXTS:
                    values.setdefault(option, [*_TEXTS.get(option, ()), *found])
    return Completions(options, {option: words for option, words in values.items() if words}, ["--ckpt_path"])


def script(shell: str, completions: Completions, program: str = "lightning-cli") -> str:
    """The script for `shell`, one of `SHELLS`."""
    function = "_" + re.sub(r"\W", "_", program)
    words = _all_words(completions)
    cases = [f"        {_pattern(option)}) found=({' '.join(one)}) ;;" for option, one in completions.values.items()]
    options = [f"            {name}) found=({' '.join(one)}) ;;" for name, one in completions.options.items() if name]
    shape = {
        "%PROGRAM": program,
        "%FUNCTION": function,
        "%WORDS": "|".join(words),
        "%FILES": "|".join(completions.files) or "-",
        "%VALUES": "\n".join(cases),
        "%OPTIONS": "\n".join(options),
        "%SHELLS": " ".join(SHELLS),
        "%FIRST": " ".join([*words, *completions.options[""]]),
    }
    text = (_BASH if shell == "bash" else _ZSH).replace("%MIDDLE", _MIDDLE)
    for mark, value in shape.items():
        text = text.replace(mark, value)
    return text


# From the words before to what can be said: alike in both shells.
_MIDDLE = """\
    case "$previous" in
%VALUES
    esac
    if [[ ${#found[@]} -eq 0 ]]; then
        case "$command" in
%OPTIONS
            completion) found=(%SHELLS) ;;
            "") found=(%FIRST) ;;
        esac
        # After a subcommand a word that is no option is the value of one.
        if [[ -n "$command" && "$command" != completion && "$current" != -* ]]; then found=(); fi
    fi
"""
_BASH = """\
# Completion of %PROGRAM; written by `%PROGRAM completion bash`.
%FUNCTION() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" word command=""
    local -a found=()
    # bash makes a word of its own of each =
    if [[ "$current" == "=" ]]; then current=""
    elif [[ "$previous" == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD - 2]}"; fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD - 1}"; do
        case "$word" in %WORDS) command="$word"; break ;; esac
    done
%MIDDLE
    COMPREPLY=()
    case "$previous" in %FILES) COMPREPLY=($(compgen -f -- "$current")) ;; esac
    if [[ ${#found[@]} -gt 0 ]]; then COMPREPLY+=($(compgen -W "${found[*]}" -- "$current")); fi
}
complete -o bashdefault -o default -F %FUNCTION %PROGRAM
"""
_ZSH = """\
#compdef %PROGRAM
# Completion of %PROGRAM; written by `%PROGRAM completion zsh`.
%FUNCTION() {
    local current="${words[CURRENT]}" previous="${words[CURRENT - 1]}" word command=""
    local -a found=()
    if [[ "$current" == --*=* ]]; then
        previous="${current%%=*}"
        current="${current#*=}"
        compset -P "*="
    fi
    for word in "${(@)words[2,CURRENT - 1]}"; do
        case "$word" in %WORDS) command="$word"; break ;; esac
    done
%MIDDLE
    if [[ ${#found[@]} -gt 0 ]]; then compadd -a found; fi
    case "$previous" in %FILES) _files ;; esac
    if [[ ${#found[@]} -eq 0 ]]; then _files; fi
}
if [[ -z "$functions[compdef]" ]]; then autoload -Uz compinit && compinit; fi
compdef %FUNCTION %PROGRAM
"""


def main(arguments: Sequence[str]) -> None:
    """Print the script.

    Raises:
        SystemExit: 2, for a shell that is not known.
    """
    parser = argparse.ArgumentParser(
        "lightning-cli completion",
        description='Write a script that completes words and options: eval "$(lightning-cli completion bash)", or'
        " lightning-cli completion bash > ~/.local/share/bash-completion/completions/lightning-cli",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    shell = parser.parse_args(arguments).shell
    from fulmen.cli.run import parser_of_command

    sys.stdout.write(script(shell, completions_of(parser_of_command())))


def _options(parser: Any) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if " " not in option]


def _all_words(completions: Completions) -> list[str]:
    return [*(name for name in completions.options if name), *_WORDS]


def _pattern(option: str) -> str:
    return option.replace("+", r"\+")
