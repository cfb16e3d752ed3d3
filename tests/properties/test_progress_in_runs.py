"""Any interleaving of batches, skips, validations and stops keeps the counters legal, and saves a state that loads."""

import tempfile
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts

TRACKERS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")
HOOKS = [name for name in dir(Callback) if name.startswith("on_") and "checkpoint" not in name]


class Looks(Callback):
    """At every hook: are the counters legal, and does what would be saved load to itself?"""

    def __init__(self) -> None:
        self.totals: list[tuple[int, int, int]] = []
        for name in HOOKS:
            setattr(self, name, self._look)

    def _look(self, trainer: Any, *_: Any) -> None:
        counts = trainer.fit_loop.counts
        saved, again = legacy.write_fit(counts), FitCounts()
        legacy.read_fit(again, saved)
        assert legacy.write_fit(again) == saved
        assert again.global_step == counts.global_step
        for tracker in TRACKERS:
            for group in ("total", "current"):
                four = saved[tracker][group]
                assert four["ready"] >= four["started"] >= four["processed"] >= four["completed"] >= four["ready"] - 1
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            state, evaluation = legacy.write_evaluation(loop.counts), EvaluationCounts()
            legacy.read_evaluation(evaluation, state)
            assert legacy.write_evaluation(evaluation) == state
        self.totals.append((counts.epoch.total, counts.batch.total, counts.global_step))


class Random(LightningModule):
    """Skips, steps and stops where it is told; by batches that it is given, or that it takes itself."""

    def __init__(self, skips: set[int], stop_at: int | None, manual: bool) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.weight = nn.Parameter(torch.zeros(()))
        self.skips, self.stop_at = skips, stop_at
        self.begun = 0
        self.visited: list[float] = []

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        self.begun += 1
        return -1 if self.begun in self.skips else None

    def _step(self, *batches: Tensor) -> Tensor:
        self.visited += [value for batch in batches for value in batch.flatten().tolist()]
        if self.begun == self.stop_at:
            self.trainer.should_stop = True
        loss = self.weight * sum(batch.sum() for batch in batches)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self._step(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class TakesItself(Random):
    """Takes `at_once` batches in a step."""

    at_once = 2

    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        return self._step(*[next(dataloader_iter)[0] for _ in range(self.at_once)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    batches=st.integers(1, 6),
    skips=st.sets(st.integers(1, 12), max_size=2),
    stop_at=st.none() | st.integers(1, 12),
    manual=st.booleans(),
    at_once=st.integers(0, 3),
    flags=st.fixed_dictionaries(
        {
            "max_epochs": st.integers(1, 3),
            "val_check_interval": st.sampled_from([0.5, 1.0]),
            "num_sanity_val_steps": st.integers(0, 1),
        }
    ),
)
def test_counters_are_legal_at_every_hook(
    batches: int, skips: set[int], stop_at: int | None, manual: bool, at_once: int, flags: dict[str, Any]
) -> None:
    looks = Looks()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[looks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
        **flags,
    )
    module = (TakesItself if at_once else Random)(skips, stop_at, manual)
    module.at_once = at_once  # type: ignore[attr-defined]
    loader = DataLoader(torch.arange(batches).float()[:, None])
    trainer.fit(module, loader, DataLoader(torch.ones(2, 1)))
    assert looks.totals == sorted(looks.totals)  # nothing that was done is undone
    if not skips and stop_at is None:
        # Of a step that takes several, those that were taken before it ran out of batches count too.
        whole = batches if not at_once else batches // at_once * at_once
        assert module.visited == [float(batch) for batch in range(whole)] * flags["max_epochs"]
        assert trainer.fit_loop.counts.batch.total == whole * flags["max_epochs"]
    for entry in (trainer.validate, trainer.test):
        module.test_step = module.validation_step  # type: ignore[method-assign]
        entry(module, DataLoader(torch.ones(2, 1)), verbose=False)
