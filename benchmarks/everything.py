"""All that compares speed, in one go; and the page that shows it.

Each part is a program beside this one and runs by itself, too. What it prints goes to the screen, and with `--write`
into a file of JSON beside the page, from which the page's tables and its picture are made anew.

    python benchmarks/everything.py
    python benchmarks/everything.py --parts peers,epoch_gap --write docs/performance.md
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# What each program is told; a trial sees that all of them run.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "peers": (("--pairs", "7"), ("--pairs", "1", "--steps", "20", "--works", "linear", "--only", "off")),
    "evaluation_overhead": (("--pairs", "11"), ("--pairs", "1", "--batches", "20")),
    "epoch_gap": (("--rounds", "7"), ("--rounds", "1", "--only", "plain,off")),
    "ddp_overhead": ((), ("--rounds", "1", "--blocks", "2", "--steps", "3")),
    "slopes": ((), ("--pairs", "1", "--only", "idle")),
    "import_time": ((), ("--runs", "1")),
    "step_overhead": ((), ("--pairs", "1", "--steps", "20")),
    "logged_keys": ((), ("--pairs", "1", "--steps", "20", "--only", "silent,ten")),
    "fsdp_overhead": ((), ("--rounds", "1", "--blocks", "1", "--steps", "1")),
    "callbacks_and_loggers": ((), ("--quick",)),
    "memory_growth": ((), ("--steps", "400", "--epochs", "2")),
}
# Those that the page shows; the others are for who changes something.
SHOWN = ("peers", "evaluation_overhead", "epoch_gap", "ddp_overhead", "slopes", "import_time")


def run_part(name: str, *, trial: bool) -> dict[str, Any]:
    """One program: what it printed, how long it took, and its numbers where it gives them.

    Raises:
        SystemExit: If it failed.
    """
    print(f"\n## {name}.py\n", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="everything_") as folder:
        numbers = Path(folder) / "numbers.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *PARTS[name][trial]]
        command += ["--json", str(numbers)] if name == "peers" else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            raise SystemExit(f"{name}.py failed with exit code {done.returncode}; what it said stands above.")
        found: dict[str, Any] = {"printed": done.stdout.strip(), "seconds": round(time.monotonic() - began)}
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
    busy = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release().partition('-')[0]},"
        f" Python {platform.python_version()}; {date}; load {busy} when it began"
    )


def write_page(page: Path, data: dict[str, Any]) -> None:
    """Put what was printed between the marks of the page, and draw its picture."""
    text = page.read_text()
    blocks = {name: found["printed"] for name, found in data["parts"].items()}
    blocks["machine"] = f"{data['machine']}."
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by benchmarks/everything.py -->", f"<!-- end of {name} -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{block}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text)
    if "numbers" in data["parts"].get("peers", {}):
        from pictures import draw_training

        draw_training(data["parts"]["peers"]["numbers"], page.with_suffix(".png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", metavar="A,B", help=f"some of {', '.join(PARTS)}; or none")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="renew the tables and the picture of this page")
    parser.add_argument("--trial", action="store_true", help="see that all run; the numbers say nothing")
    given = parser.parse_args(arguments)
    # Without --write everything; for the page what it shows.
    parts = [name for name in given.parts.split(",") if name] or list(PARTS if given.write is None else SHOWN)
    parts = [] if parts == ["none"] else parts
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--parts {','.join(unknown)} is not known. Each is a program. Pass some of {', '.join(PARTS)}.")
    if given.write is not None and not given.write.exists():
        parser.error(f"--write {given.write} is not there. Tables are put between the marks of a page. Name the page.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    store = None if given.write is None else given.write.with_suffix(".json")
    data: dict[str, Any] = {"machine": "", "parts": {}}
    if store is not None and store.exists():
        data = json.loads(store.read_text())
    if parts:
        data["machine"] = machine()
    for name in parts:
        data["parts"][name] = run_part(name, trial=given.trial)
        if store is not None:  # after each: what took minutes is not lost when the next one fails
            store.write_text(json.dumps(data, indent=1) + "\n")
    if given.write is not None:
        write_page(given.write, data)


if __name__ == "__main__":
    main()
