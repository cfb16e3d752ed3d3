import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import CheckpointDamagedError
from fulmen.trainer.checkpoint.kept import Kept, best_in, checkpoints_in, last_in, newest_folder


def keep(folder: Path, name: str, *, at_s: int, best: str = "", key: str = "ModelCheckpoint{}", **more: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    state = {"monitor": "acc", "best_model_path": best, "best_model_score": torch.tensor(0.75)}
    torch.save({"callbacks": {key: state}, **more}, path)
    os.utime(path, (at_s, at_s))
    return str(path)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), min_size=1), st.data())
def test_the_newest_folder_has_the_newest_file(tmp_path_factory: Any, times: dict[str, int], data: Any) -> None:
    root = tmp_path_factory.mktemp("runs")
    where = {name: data.draw(st.sampled_from(["x", "y"])) for name in times}
    for name, at_s in times.items():
        path = root / where[name] / f"{name}.ckpt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (at_s, at_s))
    newest = newest_folder([str(root / "x"), str(root / "y"), str(root / "none")])
    assert newest is not None
    latest = max(times.values())
    assert latest in [times[name] for name in times if where[name] == Path(newest).name]
    assert os.path.getmtime(checkpoints_in(newest)[0]) == latest


def test_the_best_is_what_the_newest_file_says(tmp_path: Path) -> None:
    best = keep(tmp_path, "a.ckpt", at_s=1, best="/gone/a.ckpt", epoch=4, global_step=50)
    keep(tmp_path, "b.ckpt", at_s=2, best="/gone/a.ckpt", epoch=6)
    assert best_in(str(tmp_path)) == Kept(best, "acc", 0.75, 4, 50)


def test_the_ranking_of_the_callback_that_asks_counts(tmp_path: Path) -> None:
    first = keep(tmp_path, "a.ckpt", at_s=1)
    other = {"monitor": "loss", "best_model_path": first, "best_model_score": torch.tensor(2.0)}
    states = {"ModelCheckpoint{1}": {"monitor": "acc", "best_model_path": "b.ckpt"}, "ModelCheckpoint{2}": other}
    torch.save({"callbacks": states}, tmp_path / "b.ckpt")
    for key, name in (("ModelCheckpoint{2}", "a.ckpt"), ("ModelCheckpoint{1}", "b.ckpt"), (None, "b.ckpt")):
        found = best_in(str(tmp_path), key)
        assert found is not None
        assert Path(found.path).name == name


def test_weights_alone_say_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert best_in(str(tmp_path)) is None
    assert best_in(str(tmp_path / "none")) is None
    assert last_in(str(tmp_path / "none")) is None


def test_a_damaged_file_does_not_hide_older_ones(tmp_path: Path) -> None:
    best = keep(tmp_path, "a.ckpt", at_s=1, best="a.ckpt")
    broken = Path(keep(tmp_path, "b.ckpt", at_s=2))
    broken.write_bytes(broken.read_bytes()[:300])
    found = best_in(str(tmp_path))
    assert found is not None
    assert found.path == best
    os.remove(best)
    with pytest.raises(CheckpointDamagedError, match=r"b\.ckpt"):
        best_in(str(tmp_path))
