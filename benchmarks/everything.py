"""All that compares speed, in one go; and the page that shows it.

Each part is a program beside this one and runs by itself, too. What it prints goes to the screen, and with `--write`
into a file of JSON beside the page, from which the page's tables and its picture are made anew.

    python benchmarks/everything.py
    python benchmarks/everything.py --parts training,epoch_gap --write docs/performance.md
    python benchmarks/everything.py --minutes 20 --write docs/performance.md    # what is begun until then
    python benchmarks/everything.py --parts none --write docs/performance.md    # the page again, from what is there
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """A program beside this one, what it is told, and what for a trial, which sees that it runs."""

    program: str
    arguments: tuple[str, ...]
    trial: tuple[str, ...]
    is_shown: bool = True  # on the page; the others are for who changes something


def of_peers(what: str, pairs: int) -> Part:
    """A part of peers.py."""
    chosen = ("--parts", what, "--pairs")
    return Part("peers", (*chosen, str(pairs)), (*chosen, "1", "--steps", "20", "--works", "linear", "--only", "off"))


# In this order: where the time runs out, the first ones are there.
PARTS = {
    "training": of_peers("train", 5),
    "epoch_gap": Part("epoch_gap", ("--rounds", "5"), ("--rounds", "1", "--only", "plain,off")),
    "ddp_overhead": Part(
        "ddp_overhead",
        ("--works", "mlp,gpt", "--rounds", "9"),
        ("--works", "mlp", "--rounds", "1", "--blocks", "2", "--steps", "3"),
    ),
    "evaluation": of_peers("evaluate", 5),
    "evaluation_overhead": Part("evaluation_overhead", ("--pairs", "11"), ("--pairs", "1", "--batches", "20")),
    "starts": of_peers("start", 3),
    "import_time": Part("import_time", (), ("--runs", "1")),
    "slopes": Part("slopes", ("--pairs", "3"), ("--pairs", "1", "--only", "idle")),
    "step_overhead": Part("step_overhead", (), ("--pairs", "1", "--steps", "20"), is_shown=False),
    "logged_keys": Part("logged_keys", (), ("--pairs", "1", "--steps", "20", "--only", "silent,ten"), is_shown=False),
    "fsdp_overhead": Part("fsdp_overhead", (), ("--rounds", "1", "--blocks", "1", "--steps", "1"), is_shown=False),
    "callbacks_and_loggers": Part("callbacks_and_loggers", (), ("--quick",), is_shown=False),
    "memory_growth": Part("memory_growth", (), ("--steps", "400", "--epochs", "2"), is_shown=False),
}


class PartError(RuntimeError):
    """A program failed; the others are run all the same."""


def run_part(name: str, *, trial: bool) -> dict[str, Any]:
    """One program: what it printed, how long it took, and its numbers where it gives them.

    Raises:
        PartError: If it failed.
    """
    part = PARTS[name]
    print(f"\n## {name}\n", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everything_") as folder:
        numbers = Path(folder) / "numbers.json"
        command = [sys.executable, str(HERE / f"{part.program}.py"), *(part.trial if trial else part.arguments)]
        command += ["--json", str(numbers)] if part.program == "peers" else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            raise PartError(f"{part.program}.py failed with exit code {done.returncode}; what it said stands above.")
        found = {"printed": done.stdout.strip(), "seconds": round(time.monotonic() - began), "machine": machine()}
        if numbers.exists():
            found["numbers"] = json.loads(numbers.read_text())
        return found


def machine() -> str:
    """Where this was measured, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release().partition('-')[0]},"
        f" Python {platform.python_version()}; {date}"
    )


def write_page(page: Path, data: dict[str, Any]) -> None:
    """Put what was printed between the marks of the page, and draw its picture; a part that was not run says so."""
    text = page.read_text()
    blocks = {
        name: found["printed"]
        if (found := data["parts"].get(name)) is not None
        else f"Not measured yet: `nox -s bench -- --parts {name} --write docs/performance.md`."
        for name, part in PARTS.items()
        if part.is_shown
    }
    machines: dict[str, list[str]] = {}
    for name in [name for name in blocks if name in data["parts"]]:
        machines.setdefault(data["parts"][name]["machine"], []).append(name.replace("_", " "))
    blocks["machine"] = "\n".join(f"- {each}: {', '.join(parts)}." for each, parts in machines.items())
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by benchmarks/everything.py -->", f"<!-- end of {name} -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{block}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text)
    if "numbers" in data["parts"].get("training", {}):
        from pictures import draw_training

        draw_training(data["parts"]["training"]["numbers"], page.with_suffix(".png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", metavar="A,B", help=f"some of {', '.join(PARTS)}; or none")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="renew the tables and the picture of this page")
    parser.add_argument("--trial", action="store_true", help="see that all run; the numbers say nothing")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no part after so many minutes")
    given = parser.parse_args(arguments)
    # Without --write everything; for the page what it shows.
    shown = [name for name, part in PARTS.items() if part.is_shown]
    parts = [name for name in given.parts.split(",") if name] or (list(PARTS) if given.write is None else shown)
    parts = [] if parts == ["none"] else parts
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--parts {','.join(unknown)} is not known. Each has one name. Pass some of {', '.join(PARTS)}.")
    if given.write is not None and not given.write.exists():
        parser.error(f"--write {given.write} is not there. Tables are put between the marks of a page. Name the page.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data: dict[str, Any] = {"parts": {}}
    if given.write is not None and given.write.with_suffix(".json").exists():
        data = json.loads(given.write.with_suffix(".json").read_text())
    began, failures = time.monotonic(), []
    for name in parts:
        if given.minutes is not None and time.monotonic() - began > given.minutes * 60:
            print(f"{name} was left out: {given.minutes:g} minutes are over.", flush=True)
            continue
        try:
            data["parts"][name] = run_part(name, trial=given.trial)
        except PartError as error:
            failures.append(str(error))
            continue
        if given.write is not None:  # after each: what took minutes is not lost when the next one fails
            given.write.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
            write_page(given.write, data)
    if given.write is not None:
        write_page(given.write, data)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
