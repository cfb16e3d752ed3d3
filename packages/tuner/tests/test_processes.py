"""A sweep in two processes."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader
import fulmen.trainer as L
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.tuner import Tuner

class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.lr = 1e-3

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

if __name__ == "__main__":
    torch.manual_seed(0)
    model = Model()
    before = model.layer.weight.tolist()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=sys.argv[1], logger=False, enable_progress_bar=False,
                        enable_checkpointing=False, enable_model_summary=False, max_epochs=1)
    finder = Tuner(trainer).lr_find(model, DataLoader(RandomDataset(32, 64), 4), num_training=30, max_lr=3.0)
    assert model.layer.weight.tolist() == before
    assert finder.suggestion() == model.lr, (finder.suggestion(), model.lr)
    assert trainer.global_step == 0 and trainer.lightning_module is None
    # One write: two processes share the pipe.
    sys.stdout.write(f"found {model.lr} in {len(finder.results['lr'])} steps of {finder.results['raw_loss']}\\n")
    trainer.fit(model, DataLoader(RandomDataset(32, 64), 4))
    assert trainer.global_step == 8, trainer.global_step
"""


@pytest.mark.parametrize(("strategy", "num_reports"), [("ddp", 2), ("ddp_spawn", 1)])
def test_all_processes_find_the_same(tmp_path, strategy, num_reports):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), strategy], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    reports = [line for line in done.stdout.splitlines() if line.startswith("found")]
    assert len(reports) == num_reports
    assert len(set(reports)) == 1
