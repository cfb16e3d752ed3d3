"""What an import costs beyond `import torch`, and the way to a first step beyond imports, in fresh interpreters.

Each interpreter imports torch, and then does what its row says; both are timed inside it. The rows of first steps begin
after all imports and one step by hand (the first optimizer of a process has torch import much), and end in the first
`training_step` of a model of two layers: once in a fresh process, and once more in the same. Faces load lazily, so each
package has a second row that takes the classes one came for, held to the same target. Modules are read from bytecode,
as where a package was installed, whatever PYTHONDONTWRITEBYTECODE says here. README.md beside this file says how to
read the table.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --runs 21 --only trainer,cli
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MIN_RUNS = 7  # of fewer, the median says little

# What a fresh interpreter runs: its last line on standard error is [[wall, CPU] of torch, [wall, CPU] of the row].
PROGRAM = """
import json, sys, time
def now():
    return time.perf_counter(), time.process_time()
marks = [now()]
import torch
torch_ends = now()
space = {"__name__": "__main__"}
exec(sys.argv.pop(1), space)
begins = now()
try:
    exec(sys.argv.pop(1), space)
except SystemExit as end:
    if end.code:
        raise
marks += [torch_ends, begins, space.get("ends") or now()]
costs = [[after - before for before, after in zip(*marks[pair : pair + 2])] for pair in (0, 2)]
print("\\n" + json.dumps(costs), file=sys.stderr)
"""

# Before the clock of a first step runs; `ends` is what PROGRAM reads afterwards.
STEPPING = """
import contextlib, io, time
import torch
from torch.utils.data import DataLoader, TensorDataset
from fulmen.trainer import LightningModule, Trainer

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    def training_step(self, batch, batch_idx):
        global ends
        ends = ends or (time.perf_counter(), time.process_time())
        return self.layers(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def steps(**flags):
    global ends
    ends = None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        Trainer(max_steps=2, num_sanity_val_steps=0, **flags).fit(Net(), batches)

batches = DataLoader(TensorDataset(torch.randn(8, 32)), batch_size=4)
ends = None
by_hand = Net()
optimizer = by_hand.configure_optimizers()
by_hand.training_step(next(iter(batches)), 0).backward()
optimizer.step()
"""
OFF = "logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False"


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the table.

    Args:
        key: Its name for `--only`.
        title: Its name in the table.
        code: Run after `import torch`, and timed.
        target_s: Seconds that it may take.
        arguments: Of the command line, if the code reads it.
        before: Run between the two, and not timed.
    """

    key: str
    title: str
    code: str
    target_s: float
    arguments: tuple[str, ...] = ()
    before: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds on the clock, and seconds of CPU."""

    wall_s: float
    cpu_s: float


def importing(key: str, code: str, target_s: float) -> Subject:
    """A row that is one line of imports."""
    return Subject(key, f"`{code}`", code, target_s)


def console_command() -> str:
    """Code that does what `lightning-cli` does; without the installed script (sources on the path), its function."""
    script = Path(sys.executable).with_name("lightning-cli")
    if script.is_file():
        return f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    return "from fulmen.cli.command import main; main()"


SUBJECTS = (
    importing("fabric", "import fulmen.fabric", 0.15),
    importing("fabric.used", "from fulmen.fabric import Fabric", 0.15),
    importing("trainer", "import fulmen.trainer", 0.25),
    importing("trainer.used", "from fulmen.trainer import LightningModule, Trainer", 0.25),
    Subject("cli", "`lightning-cli --help`", console_command(), 0.6, ("--help",)),
    Subject("cli.fit", "`lightning-cli fit --help`", console_command(), 0.6, ("fit", "--help")),
    Subject("step.off", "`Trainer(...).fit(...)` to the first step, all off", f"steps({OFF})", 0.03, before=STEPPING),
    Subject("step", "`Trainer(...).fit(...)` to the first step, defaults", "steps()", 0.03, before=STEPPING),
    Subject("step.again", "the same again, in one process", "steps()", 0.03, before=f"{STEPPING}\nsteps()"),
)


def run(subject: Subject, folder: str) -> tuple[Cost, Cost]:
    """A fresh interpreter: the cost of `import torch` in it, and of the row.

    Raises:
        SystemExit: It failed.
    """
    command = (sys.executable, "-c", PROGRAM, subject.before, subject.code, *subject.arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Compiling our sources takes longer than running them: without bytecode, that would be all there is to see.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Not in the current folder, which `-c` would search first for what it imports.
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{subject.title} ended with exit code {done.returncode}. Only what works can be timed."
            f" Install the packages into this environment, or leave the row out with --only.\n{done.stderr}"
        )
    of_torch, of_subject = json.loads(done.stderr.splitlines()[-1])
    return Cost(*of_torch), Cost(*of_subject)


def measure(subjects: Sequence[Subject], num_runs: int) -> tuple[list[Cost], dict[str, list[Cost]]]:
    """The costs of `import torch` in all processes, and those of each row by its key.

    Rounds go over all rows, so that a slow minute hits them all alike. The round before the first writes bytecode and
    fills the disk cache.
    """
    of_torch: list[Cost] = []
    of_rows: dict[str, list[Cost]] = {subject.key: [] for subject in subjects}
    with tempfile.TemporaryDirectory(prefix="import_time_") as folder:
        for subject in subjects:
            run(subject, folder)
        for _ in range(num_runs):
            for subject in subjects:
                torch_cost, row_cost = run(subject, folder)
                of_torch.append(torch_cost)
                of_rows[subject.key].append(row_cost)
    return of_torch, of_rows


def row(title: str, costs: Sequence[Cost], target_s: float | None = None) -> str:
    """One line of the table: medians, and the range on the clock."""
    walls_s = [cost.wall_s for cost in costs]
    wall_s, cpu_s = statistics.median(walls_s), statistics.median(cost.cpu_s for cost in costs)
    target, verdict = "", ""
    if target_s is not None:
        target, verdict = f"{target_s:.2f} s", "pass" if wall_s <= target_s else "fail"
    spread = f"{min(walls_s):.3f} to {max(walls_s):.3f}"
    return f"| {title} | {wall_s:.3f} s | {spread} | {cpu_s:.3f} s | {target} | {verdict} |"


def parse_arguments(arguments: Sequence[str] | None) -> tuple[list[Subject], int]:
    """The rows, and the number of runs of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=MIN_RUNS, metavar="N", help=f"interpreters per row ({MIN_RUNS})")
    keys = [subject.key for subject in SUBJECTS]
    parser.add_argument("--only", default="", metavar="A,B", help=f"only these rows: {', '.join(keys)}")
    given = parser.parse_args(arguments)
    if given.runs < 1:
        parser.error(f"--runs {given.runs} is not positive. There would be nothing to measure. Pass 1 or more.")
    wanted = [key for key in given.only.split(",") if key]
    if unknown := [key for key in wanted if key not in keys]:
        parser.error(f"--only {','.join(unknown)} is not known. It names rows. Pass some of {', '.join(keys)}.")
    return [subject for subject in SUBJECTS if not wanted or subject.key in wanted], given.runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    subjects, num_runs = parse_arguments(arguments)
    of_torch, of_rows = measure(subjects, num_runs)
    said = [
        f"Fresh interpreters, after `import torch`; median of {num_runs} runs.",
        f"Python {platform.python_version()}, torch {version('torch')}.",
    ]
    if num_runs < MIN_RUNS:
        said.append(f"Fewer than {MIN_RUNS} runs: a trial, no measurement.")
    lines = [
        " ".join(said),
        "",
        "| | wall | range | CPU | target | |",
        "| --- | ---: | :---: | ---: | ---: | --- |",
        row("`import torch`, before", of_torch),
        *(row(subject.title, of_rows[subject.key], subject.target_s) for subject in subjects),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
