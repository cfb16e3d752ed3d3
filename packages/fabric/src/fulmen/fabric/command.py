"""The command `fulmen-fabric`: run a script on several devices, make one file of a sharded checkpoint, plan a run.

    fulmen-fabric run train.py --devices 2 --precision bf16-mixed
    fulmen-fabric consolidate checkpoints/step-1000.ckpt
    fulmen-fabric plan train.py:make_module --devices 8 --num-nodes 128 --strategy fsdp

Reading the command line loads no torch: a mistake in it is answered at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fulmen.fabric.forecast.command_line import add_plan, print_plan
from fulmen.fabric.run_flags import VARIABLE, to_variable

# Not read from the registries: they load torch. A test compares.
ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "tpu", "auto")
STRATEGIES = (
    "ddp",
    "ddp_find_unused_parameters_true",
    "dp",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_3",
    "fsdp",
)
PRECISIONS = (
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
    "32",
    "16",
    "bf16",
    "64",
    "transformer-engine",
    "transformer-engine-float16",
)
MAIN_ADDRESS, MAIN_PORT = "127.0.0.1", 29400
_FLAGS = ("accelerator", "strategy", "devices", "num_nodes", "precision")

_RUN = """\
Run a script that uses Fabric, in one process per device. The script needs no
change: what its Fabric leaves open is taken from these options, and one that
says something else is an error. `fabric.launch()` may be left out.

Options may stand before or after the script. What is not listed here goes to
the script, and so does everything after `--`.
"""
_RUN_EXAMPLES = """\
examples:
  fulmen-fabric run train.py --devices 2 --lr 0.1
  fulmen-fabric run --strategy fsdp --precision bf16-mixed train.py
  fulmen-fabric run train.py --devices 2 -- --devices mine

  on two machines, the first of which is called node0:
  fulmen-fabric run train.py --num-nodes 2 --node-rank 0 --main-address node0
  fulmen-fabric run train.py --num-nodes 2 --node-rank 1 --main-address node0

The exit code is that of the script.
"""
_CONSOLIDATE = """\
Make one file of a checkpoint that several processes wrote into a folder. The
file loads like any other checkpoint: `fabric.load`, `torch.load`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ends the process with 0, 1 (it failed) or 2 (it was called wrongly)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="fulmen-fabric",
        description="Your own PyTorch training loop, on any hardware.",
        epilog="`fulmen-fabric COMMAND --help` says more about a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands")
    run_parser, options_of_run = _add_run(commands)
    _add_consolidate(commands)
    add_plan(commands, tuple(name for name in STRATEGIES if name.startswith(("ddp", "fsdp"))), PRECISIONS, _integer)
    script_arguments: list[str] = []
    if words[:1] == ["run"]:
        ours, script_arguments = _split(words[1:], options_of_run, run_parser)
        words = ["run", *ours]
    given = parser.parse_args(words)
    if given.command == "consolidate":
        _consolidate(given.folder, given.output)
    if given.command == "plan":
        sys.exit(print_plan(given))
    _check_places(given, run_parser)
    _run(given, script_arguments)


def _add_run(commands: Any) -> tuple[argparse.ArgumentParser, frozenset[str]]:
    """The parser of `run`, and its options, each of which takes one value."""
    run: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run a script on several devices or machines",
        usage="fulmen-fabric run [options] SCRIPT [arguments of the script]",
        description=_RUN,
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("script", metavar="SCRIPT", help="a Python file, or a folder with a __main__.py")
    hardware = run.add_argument_group("on what")
    machines = run.add_argument_group("on several machines", "Run the same command on each, with its own --node-rank.")
    options = [
        _add_choice(hardware, "--accelerator", ACCELERATORS),
        hardware.add_argument(
            "--devices", type=_devices, metavar="N", help="how many per machine (2), which (0,3), or auto; default 1"
        ),
        _add_choice(hardware, "--strategy", STRATEGIES),
        _add_choice(hardware, "--precision", PRECISIONS),
        machines.add_argument("--num-nodes", type=_integer(1), metavar="N", help="how many machines; default 1"),
        machines.add_argument(
            "--node-rank", type=_integer(0), metavar="N", help="which one this is, from 0; default 0"
        ),
        machines.add_argument("--main-address", metavar="HOST", help=f"the machine of rank 0; default {MAIN_ADDRESS}"),
        machines.add_argument(
            "--main-port",
            type=_integer(1, 65535),
            metavar="PORT",
            help=f"a free port there; default {MAIN_PORT}, and on one machine any free one",
        ),
    ]
    return run, frozenset(word for option in options for word in option.option_strings)


def _add_choice(group: Any, option: str, names: Sequence[str]) -> argparse.Action:
    action: argparse.Action = group.add_argument(option, choices=names, metavar="NAME", help=", ".join(names))
    return action


def _add_consolidate(commands: Any) -> None:
    parser = commands.add_parser(
        "consolidate",
        help="make one file of a checkpoint that is a folder",
        description=_CONSOLIDATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint")
    parser.add_argument("--output", metavar="FILE", help="where to; default FOLDER.consolidated, beside the folder")
    parser.add_argument("--output_file", "--output-file", dest="output", help=argparse.SUPPRESS)


def _split(
    words: Sequence[str], options: frozenset[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """The words for `fulmen-fabric run`, the script among them, and those for the script.

    `--num_nodes` is `--num-nodes`.
    """
    ours: list[str] = []
    theirs: list[str] = []
    has_script = False
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            if not has_script and rest:
                ours.append(rest.popleft())
            return ours, [*theirs, *rest]
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option in options:
            ours.append(f"{option}{equals}{value}")
            if not equals and rest:
                ours.append(rest.popleft())
        elif not has_script and word in ("-h", "--help"):
            ours.append(word)
        elif has_script:
            theirs.append(word)
        elif word.startswith("-"):
            parser.error(f"there is no option {word}; options of the script come after it")
        else:
            ours.append(word)
            has_script = True
    return ours, theirs


def _check_places(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not os.path.exists(options.script):
        parser.error(f"the script {options.script} was not found in {os.getcwd()}")
    num_nodes = options.num_nodes or 1
    if (options.node_rank or 0) >= num_nodes:
        parser.error(f"--node-rank {options.node_rank} is none of --num-nodes {num_nodes}; ranks count from 0")


def _run(options: argparse.Namespace, script_arguments: list[str]) -> NoReturn:
    """This process becomes the script: its output, its errors and its exit code are its own."""
    given = {name: getattr(options, name) for name in _FLAGS if getattr(options, name) is not None}
    variables = {VARIABLE: to_variable(given)}
    if (options.num_nodes or 1) > 1:
        variables |= {
            "NODE_RANK": str(options.node_rank or 0),
            "MASTER_ADDR": options.main_address or MAIN_ADDRESS,
            "MASTER_PORT": str(options.main_port or MAIN_PORT),
        }
    else:
        # On one machine a free port is found, unless one is asked for: a fixed one would be taken by the next run.
        variables |= {"MASTER_ADDR": options.main_address} if options.main_address else {}
        variables |= {"MASTER_PORT": str(options.main_port)} if options.main_port else {}
    command = [sys.executable, options.script, *script_arguments]
    sys.stdout.flush()
    if sys.platform == "win32":
        import subprocess

        sys.exit(subprocess.call(command, env={**os.environ, **variables}))
    os.execve(sys.executable, command, {**os.environ, **variables})


def _consolidate(folder: str, output: str | None) -> NoReturn:
    from fulmen.fabric.checkpoint_io.consolidate import consolidate
    from fulmen.fabric.errors import CheckpointError, MisconfigurationException

    target = Path(output) if output else Path(f"{folder.rstrip('/')}.consolidated")
    try:
        consolidate(folder, target)
    except (CheckpointError, MisconfigurationException, OSError) as error:
        print(f"fulmen-fabric consolidate: {error}", file=sys.stderr)
        sys.exit(1)
    print(target)
    sys.exit(0)


def _devices(text: str) -> str:
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)*,?", text) or text == "0":
        raise argparse.ArgumentTypeError(
            f"{text!r} names no devices; pass how many (2), which (0,3), or auto for all that are there"
        )
    return text


def _integer(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest or (highest is not None and int(text) > highest):
            end = "" if highest is None else f" to {highest}"
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {lowest}{end}")
        return int(text)

    return integer


if __name__ == "__main__":
    main()
