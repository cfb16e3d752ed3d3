"""Checkpoints of Lightning go on here, and ours there: `nox -s lightning`.

Each side trains two epochs and saves; the other goes on for two more. That has to be what one of them makes of four.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

theirs = pytest.importorskip("lightning.pytorch", reason="`nox -s lightning` installs it")
import fulmen.trainer as ours  # noqa: E402 (below what may skip)
from tests.lightning.nets import CASES, NUM_BATCHES, train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
DIRECTIONS: dict[str, tuple[ModuleType, ModuleType]] = {"ours there": (ours, theirs), "theirs here": (theirs, ours)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four epochs in one go, of either side."""
    return {
        case: {side.__name__: train(side, tmp_path_factory.mktemp("whole"), case, epochs=4) for side in (ours, theirs)}
        for case in CASES
    }


def numbers(optimizer: Any) -> Any:
    state = optimizer.state_dict()["state"]
    return [
        torch.as_tensor(value).double()
        for one in state.values()
        for _, value in sorted(one.items())
        if value is not None
    ]


def assert_same(one: Any, other: Any) -> None:
    for name, value in other.net.state_dict().items():
        assert torch.equal(one.net.state_dict()[name], value), name
    assert (one.trainer.global_step, one.trainer.current_epoch) == (
        other.trainer.global_step,
        other.trainer.current_epoch,
    )
    for mine, its in zip(one.trainer.optimizers, other.trainer.optimizers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(numbers(mine), numbers(its), strict=True))
        assert [group["lr"] for group in mine.param_groups] == [group["lr"] for group in its.param_groups]
    for mine, its in zip(one.trainer.lr_scheduler_configs, other.trainer.lr_scheduler_configs, strict=True):
        assert mine.scheduler.last_epoch == its.scheduler.last_epoch


@pytest.mark.parametrize("case", CASES)
def test_both_train_alike(case: str, whole: Any) -> None:
    assert_same(whole[case][ours.__name__], whole[case][theirs.__name__])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_other_goes_on_from_it(direction: str, case: str, whole: Any, tmp_path: Path) -> None:
    first, second = DIRECTIONS[direction]
    begun = train(first, tmp_path / "a", case, epochs=2)
    path = tmp_path / "between.ckpt"
    begun.trainer.save_checkpoint(path)
    ended = train(second, tmp_path / "b", case, epochs=4, ckpt_path=path)
    assert_same(ended, whole[case][second.__name__])
    assert ended.net.seen == whole[case][second.__name__].net.seen[2 * NUM_BATCHES :]
    # What belongs to others than the weights.
    assert ended.net.loaded == {"steps": 2 * NUM_BATCHES}
    assert ended.data.restored
    assert ended.counting.batches == 4 * NUM_BATCHES
    # A mean of an epoch, which the two round differently.
    assert torch.allclose(ended.stopping.best_score, whole[case][second.__name__].stopping.best_score, rtol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_from_the_middle_of_an_epoch(direction: str, whole: Any, tmp_path: Path) -> None:
    first, second = DIRECTIONS[direction]
    path, at = tmp_path / "between.ckpt", NUM_BATCHES + 2
    train(first, tmp_path / "a", CASES[0], epochs=2, save_to=path, save_at=at)
    ended = train(second, tmp_path / "b", CASES[0], epochs=4, ckpt_path=path)
    assert ended.trainer.global_step == 4 * NUM_BATCHES
    assert [step for step, _ in ended.net.seen] == list(range(at, 4 * NUM_BATCHES))
    if second is ours:  # Lightning begins the data of the epoch anew
        assert_same(ended, whole[CASES[0]][ours.__name__])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_modules_and_datamodules_are_built_from_it(direction: str, tmp_path: Path) -> None:
    first, second = DIRECTIONS[direction]
    begun = train(first, tmp_path, CASES[0], epochs=1)
    path = tmp_path / "last.ckpt"
    made = train(second, tmp_path / "b", CASES[0], epochs=1).classes
    net = made.Net.load_from_checkpoint(path)
    data = made.Data.load_from_checkpoint(path)
    assert dict(net.hparams) == dict(begun.net.hparams)
    assert dict(data.hparams) == dict(begun.data.hparams) == {"seed": 1}
    assert all(torch.equal(net.state_dict()[name].cpu(), value) for name, value in begun.net.state_dict().items())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_ranking_goes_on(direction: str, tmp_path: Path) -> None:
    first, second = DIRECTIONS[direction]
    train(first, tmp_path, CASES[0], epochs=2)
    ended = train(second, tmp_path, CASES[0], epochs=4, ckpt_path=tmp_path / "last.ckpt")
    alone = train(second, tmp_path / "alone", CASES[0], epochs=4)

    def ranking(one: Any) -> dict[str, float]:
        return {Path(path).name: float(score) for path, score in one.keeping.best_k_models.items()}

    assert ranking(ended) == pytest.approx(ranking(alone))
    assert Path(ended.keeping.best_model_path).name == Path(alone.keeping.best_model_path).name
    assert torch.allclose(ended.keeping.best_model_score, alone.keeping.best_model_score)


def test_every_file_of_ours_loads_as_weights_only_there(tmp_path: Path) -> None:
    run = train(ours, tmp_path, CASES[0], epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["pytorch-lightning_version"] == theirs.__version__
    assert run.trainer.global_step == checkpoint["global_step"]


def test_words_find_their_files(tmp_path: Path) -> None:
    train(theirs, tmp_path / "c", CASES[0], epochs=2)
    for word in ("last", "auto"):
        keeping = ours.callbacks.ModelCheckpoint(tmp_path / "c", monitor="val_loss", save_last=True)
        made = train(ours, tmp_path / "d", CASES[0], epochs=0).classes
        trainer = ours.Trainer(
            accelerator="cpu", callbacks=[keeping], logger=False, max_epochs=2, default_root_dir=tmp_path
        )
        trainer.validate(made.Net(), datamodule=made.Data(), ckpt_path=word, verbose=False)
        assert Path(str(trainer.ckpt_path)) == tmp_path / "c" / "last.ckpt"
