"""What a batch of validation, test or prediction costs beyond the same batch in a plain `inference_mode` loop.

Linear(32, 2), batches of 4 from a DataLoader, on one CPU thread, nothing logged: the model is so small that what is
left is what the loops add. Each is timed in pairs with the plain loop, one right after the other; the median of the
ratios is what counts.

    python benchmarks/evaluation_overhead.py
    python benchmarks/evaluation_overhead.py --only validate --pairs 21
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from step_overhead import MIN_PAIRS, NUM_WARM_UP_STEPS, Outcome, Pair, Stopwatch, make_linear, make_loader, quartiles
from torch import Tensor

TARGET = 1.15


def run_plain(num_batches: int) -> Outcome:
    """The reference: the loop that one would write by hand."""
    linear, watch = make_linear().eval(), Stopwatch()
    loader = make_loader(num_batches)
    watch.start()
    with torch.inference_mode():
        for batch in loader:
            linear(batch).sum()
    watch.stop()
    return watch.outcome(linear)


def run_plain_predict(num_batches: int) -> Outcome:
    """The same, with all answers kept."""
    linear, watch = make_linear().eval(), Stopwatch()
    loader = make_loader(num_batches)
    answers: list[Tensor] = []
    watch.start()
    with torch.inference_mode():
        for batch in loader:
            answers.append(linear(batch))  # a comprehension would not be the loop that is compared
    watch.stop()
    return watch.outcome(linear)


@functools.cache
def watched_module() -> type[Any]:
    """A module with all evaluation steps; the clock runs from the start of an epoch to its end."""
    from fulmen.trainer import LightningModule

    class Watched(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = make_linear()
            self.watch = Stopwatch()

        def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.linear(batch).sum()  # type: ignore[no-any-return]

        def test_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.linear(batch).sum()  # type: ignore[no-any-return]

        def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.linear(batch)  # type: ignore[no-any-return]

        def on_validation_epoch_start(self) -> None:
            self.watch.start()

        def on_validation_epoch_end(self) -> None:
            self.watch.stop()

        on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
        on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    return Watched


def run_entry_point(name: str, num_batches: int) -> Outcome:
    """One pass of `Trainer.validate`, `test` or `predict`."""
    from fulmen.trainer import Trainer

    module = watched_module()()
    with tempfile.TemporaryDirectory(prefix="evaluation_overhead_") as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        options = {} if name == "predict" else {"verbose": False}
        getattr(trainer, name)(module, make_loader(num_batches), **options)
    outcome: Outcome = module.watch.outcome(module.linear)
    return outcome


Run = Callable[[int], Outcome]
ROWS: dict[str, tuple[str, Run, Run]] = {  # the key for `--only`: the title, the plain loop, ours
    "plain": ("the plain loop again", run_plain, run_plain),
    "validate": ("Trainer.validate", run_plain, functools.partial(run_entry_point, "validate")),
    "test": ("Trainer.test", run_plain, functools.partial(run_entry_point, "test")),
    "predict": ("Trainer.predict, answers kept", run_plain_predict, functools.partial(run_entry_point, "predict")),
}


def measure(keys: Sequence[str], num_batches: int, num_pairs: int) -> dict[str, list[Pair]]:
    """Costs of the plain loop and of ours, pair by pair; rounds go over all rows."""
    pairs: dict[str, list[Pair]] = {key: [] for key in keys}
    for round_idx in range(-1, num_pairs):  # the first round is for imports and caches
        for place, key in enumerate(keys):
            _, plain, ours = ROWS[key]
            count = num_batches if round_idx >= 0 else min(num_batches, NUM_WARM_UP_STEPS)
            plain_first = (round_idx + place) % 2 == 0
            first, second = [run(count)[0] for run in ((plain, ours) if plain_first else (ours, plain))]
            if round_idx >= 0:
                pairs[key].append((first, second) if plain_first else (second, first))
    return pairs


def table(pairs: dict[str, list[Pair]], num_batches: int) -> str:
    """A Markdown table: ratios to the plain loop of the same pair."""
    lines = [
        "| | wall, ratio | quartiles | CPU, ratio | added per batch | target | |",
        "| --- | ---: | :---: | ---: | ---: | ---: | --- |",
    ]
    for key, measured in pairs.items():
        low, ratio, high = quartiles([ours.wall_s / plain.wall_s for plain, ours in measured])
        _, cpu, _ = quartiles([ours.cpu_s / plain.cpu_s for plain, ours in measured])
        added_us = statistics.median(ours.cpu_s - plain.cpu_s for plain, ours in measured) / num_batches * 1e6
        judged = ("", "") if key == "plain" else (f"{TARGET:.2f}", "pass" if ratio <= TARGET else "fail")
        lines.append(
            f"| {ROWS[key][0]} | {ratio:.3f} | {low:.3f} to {high:.3f} | {cpu:.3f} | {added_us:+.1f} µs"
            f" | {judged[0]} | {judged[1]} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=5000, metavar="N", help="batches of one run (5000)")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, metavar="N", help=f"pairs per row ({MIN_PAIRS})")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only some of {', '.join(ROWS)}")
    given = parser.parse_args(arguments)
    keys = [key for key in given.only.split(",") if key] or list(ROWS)
    if unknown := [key for key in keys if key not in ROWS]:
        parser.error(f"--only {','.join(unknown)} is not known. Each row has one name. Pass some of {', '.join(ROWS)}.")
    if given.batches < 1 or given.pairs < 1:
        parser.error(
            f"--batches {given.batches} --pairs {given.pairs} measures nothing. Both count runs. Pass 1 or more."
        )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # advice on workers, which were chosen on purpose
    pairs = measure(keys, given.batches, given.pairs)
    plain_s = statistics.median(plain.wall_s for measured in pairs.values() for plain, _ in measured)
    plain_us = plain_s / given.batches * 1e6
    print(
        f"Linear(32, 2), batch 4, {given.batches} batches, one CPU thread; median of {given.pairs} pairs."
        f" A plain batch takes {plain_us:.1f} µs. Python {platform.python_version()}, torch {torch.__version__}."
    )
    print(f"\n{table(pairs, given.batches)}")


if __name__ == "__main__":
    main()
