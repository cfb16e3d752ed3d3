"""Any sequence of run, stop and resume visits every batch of every epoch exactly once, in order.

It validates where the run that never stopped validates, and there only.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything

# Epoch, batch_idx, and the samples of each loader; or epoch, VALIDATION and nothing.
Visit = tuple[int, int, tuple[tuple[int, ...], ...]]
VALIDATION = -1

MOMENTS = ("on_train_batch_start", "on_train_batch_end", "on_validation_end", "on_train_epoch_end")


class Numbers(Dataset[int]):
    """The samples 0, 1, 2, ..."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """The same, without a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class Visitor(LightningModule):
    """Writes down what it sees; a visit counts when its batch is done."""

    def __init__(self, visits: list[Visit]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.visits = visits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else [batch]
        self.visits.append((self.current_epoch, batch_idx, tuple(tuple(part.tolist()) for part in parts)))
        return self.weight * sum(part.sum() for part in parts)

    def on_validation_start(self) -> None:
        self.visits.append((self.current_epoch, VALIDATION, ()))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Crash(Exception):
    """The power fails."""


class SaveAndCrash(Callback):
    """Saves the n-th time that it hears `moment`, and fails there, or a little later."""

    def __init__(self, path: Path, moment: str, nth: int, later: int) -> None:
        self.path, self.moment, self.nth, self.later = path, moment, nth, later
        self.heard = 0
        self.visits_saved = 0
        for name in MOMENTS:
            setattr(self, name, self._listener(name))

    def _listener(self, name: str) -> Any:
        def listen(trainer: Any, module: Any, *_: Any) -> None:
            if trainer.sanity_checking:
                return
            if name == self.moment:
                self.heard += 1
                if self.heard == self.nth:
                    trainer.save_checkpoint(self.path)
                    self.visits_saved = len(module.visits)
            if self.visits_saved or self.heard >= self.nth:
                self.later -= 1
                if self.later < 0:
                    raise Crash

        return listen


@st.composite
def runs(draw: Any) -> dict[str, Any]:
    samples, batch_size = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    drop_last = draw(st.booleans()) and samples >= batch_size
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    across = draw(st.booleans())
    parts = st.nothing() if across else st.sampled_from([0.5, 1.0])
    interval = draw(st.integers(1, batches + (3 if across else 0)) | parts)
    fewest = interval if isinstance(interval, int) and not across else 1
    streamed = draw(st.booleans()) and isinstance(interval, int)
    return {
        "samples": samples,
        "loader": {"batch_size": batch_size, "drop_last": drop_last},
        "streamed": streamed,
        "beside": draw(st.sampled_from([0, 0 if streamed else 2, 0 if streamed else 5])),  # samples of a second loader
        "flags": {
            "accumulate_grad_batches": draw(st.integers(1, 3)),
            "val_check_interval": interval,
            "check_val_every_n_epoch": None if across else draw(st.integers(1, 2)),
            "limit_train_batches": draw(st.integers(fewest, 9) | st.just(1.0)),
            "max_epochs": draw(st.integers(1, 3)),
        },
    }


stops = st.lists(st.tuples(st.sampled_from(MOMENTS), st.integers(1, 6), st.integers(0, 3)), max_size=3)


def fit(run: dict[str, Any], visits: list[Visit], callbacks: list[Callback], ckpt_path: Path | None) -> Trainer:
    seed_everything(3, verbose=False)
    data: Any = (Stream if run["streamed"] else Numbers)(run["samples"])
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tempfile.gettempdir(),
        **run["flags"],
    )
    loader: Any = DataLoader(data, shuffle=not run["streamed"], **run["loader"])
    if run["beside"]:
        loader = {"one": loader, "other": DataLoader(Numbers(run["beside"]), shuffle=True)}
    trainer.fit(Visitor(visits), loader, DataLoader(Numbers(2)), ckpt_path=ckpt_path)
    return trainer


def short(samples: int, batch_size: int, beside: int, **flags: Any) -> dict[str, Any]:
    loader = {"batch_size": batch_size, "drop_last": False}
    flags = {"check_val_every_n_epoch": 1, "val_check_interval": 1.0, "max_epochs": 2, **flags}
    return {"samples": samples, "loader": loader, "streamed": False, "beside": beside, "flags": flags}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs(), stops)
# In the first batch; at the end of a round of the shorter loader; in a round of one batch; at the end of an epoch whose
# last round is cut off.
@example(short(2, 1, 0), [("on_train_batch_start", 1, 0)])
@example(short(2, 2, 2), [("on_train_batch_end", 1, 0)])
@example(short(1, 1, 5, limit_train_batches=2), [("on_train_batch_start", 2, 0)])
@example(short(2, 1, 5, limit_train_batches=3), [("on_validation_end", 1, 0)])
def test_every_batch_is_visited_once_and_in_order(run: dict[str, Any], stops: list[tuple[str, int, int]]) -> None:
    whole: list[Visit] = []
    finished = fit(run, whole, [], None)
    visits: list[Visit] = []
    ckpt_path: Path | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, stop in enumerate(stops):
            saver = SaveAndCrash(Path(folder) / f"{number}.ckpt", *stop)
            try:
                fit(run, visits, [saver], ckpt_path)
            except Crash:
                ckpt_path = saver.path
                # What was done after the save is lost, and so is the batch that was in work.
                del visits[saver.visits_saved :]
            else:
                assert visits == whole
                del visits[:]
                ckpt_path = None
        resumed = fit(run, visits, [], ckpt_path)
    assert visits == whole
    assert (resumed.current_epoch, resumed.global_step) == (finished.current_epoch, finished.global_step)
    epochs = run["flags"]["max_epochs"]
    trained = [visit[:2] for visit in whole if visit[1] != VALIDATION]
    per_epoch = len(trained) // epochs
    assert trained == [(epoch, index) for epoch in range(epochs) for index in range(per_epoch)]
