"""A logger of your own: one line of JSON for each row, which any program can read while the run goes on.

python examples/trainer/custom_logger.py
"""

import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from small_digits import DigitsData, DigitsNet

from fulmen.fabric.rank_zero import rank_zero_only
from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.loggers import Logger


class JSONLinesLogger(Logger):
    """Writes `FOLDER/rows.jsonl`; only the first of several processes does."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "rows.jsonl"

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._write({"hyperparameters": dict(params) if isinstance(params, dict) else vars(params)})

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._write({"step": step, **metrics})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write({"status": status})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    seed_everything(1)
    logger = JSONLinesLogger(tempfile.mkdtemp())
    trainer = Trainer(accelerator="cpu", max_epochs=3, log_every_n_steps=10, logger=logger, enable_checkpointing=False)
    trainer.fit(DigitsNet(), datamodule=DigitsData())

    rows = [json.loads(line) for line in logger.path.read_text().splitlines()]
    accuracies = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
    print(f"{len(rows)} rows, from {rows[0]} to {rows[-1]}")
    print(f"accuracy {accuracies[-1]:.3f}")


if __name__ == "__main__":
    main()
