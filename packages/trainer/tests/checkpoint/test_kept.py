import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io import save_sharded
from fulmen.fabric.errors import CheckpointDamagedError
from fulmen.trainer.checkpoint.kept import Kept, best_in, checkpoints_in, last_in, moved_ranking, newest_folder, refound


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


def test_the_next_best_are_told_too(tmp_path: Path) -> None:
    for name in "abc":
        keep(tmp_path, f"{name}.ckpt", at_s=1)
    scores = {
        f"/old/{name}.ckpt": torch.tensor(score) for name, score in zip("abcd", (0.2, 0.9, 0.5, 0.7), strict=True)
    }
    state = {"monitor": "acc", "dirpath": "/old", "best_model_path": "/old/b.ckpt", "best_k_models": scores}
    torch.save({"callbacks": {"ModelCheckpoint{}": state}}, tmp_path / "z.ckpt")
    found = best_in(str(tmp_path))
    assert found is not None
    assert [Path(path).name for path in (found.path, *found.others)] == ["b.ckpt", "c.ckpt", "a.ckpt"]


def test_a_sharded_folder_knows_its_ranking_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    state = {"monitor": "acc", "best_model_path": str(path), "best_model_score": torch.tensor(0.75)}
    saved = {"module": {"w": torch.ones(2)}, "epoch": 3, "callbacks": {"ModelCheckpoint{}": state}}
    save_sharded(path, saved)
    assert best_in(str(tmp_path)) == Kept(str(path), "acc", 0.75, 3, None)


NAMES = ("a.ckpt", "val/b.ckpt", "c.ckpt")


@given(there=st.sets(st.sampled_from(NAMES)), mode=st.sampled_from([1, -1]), data=st.data())
def test_after_a_move_the_ranking_is_that_of_the_files_that_are_there(
    tmp_path_factory: Any, there: set[str], mode: int, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("moved")
    scores = {name: data.draw(st.integers(0, 9)) for name in NAMES}
    worst, *_, best = sorted(NAMES, key=lambda name: -mode * scores[name])
    for name in there:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    state = {
        "dirpath": "/old/place",
        "best_model_path": f"/old/place/{best}",
        "best_model_score": torch.tensor(scores[best]),
        "best_k_models": {f"/old/place/{name}": torch.tensor(score) for name, score in scores.items()},
        "kth_best_model_path": f"/old/place/{worst}",
        "kth_value": torch.tensor(scores[worst]),
        "last_model_path": "/old/place/last.ckpt",
    }
    moved = moved_ranking(state, str(folder))
    assert (moved is None) == (not there)
    if moved is None:
        return
    assert {os.path.relpath(path, folder) for path in moved["best_k_models"]} == there
    for path, score in moved["best_k_models"].items():
        assert scores[os.path.relpath(path, folder)] == score
    ordered = sorted(scores[name] * mode for name in there)
    assert moved["best_k_models"][moved["best_model_path"]] * mode == min(ordered)
    assert moved["best_model_score"] * mode == min(ordered)
    assert moved["kth_value"] * mode == max(ordered)
    assert os.path.exists(moved["best_model_path"])
    assert moved["last_model_path"] == ""


def test_a_path_is_looked_for_where_it_was_and_beside_the_file_that_names_it(tmp_path: Path) -> None:
    here = keep(tmp_path / "b", "a.ckpt", at_s=1)
    assert refound(here, None, []) == here
    assert refound("/gone/a.ckpt", "/gone", [None, str(tmp_path / "b")]) == here
    assert refound("/gone/x.ckpt", "/gone", [str(tmp_path / "b")]) is None
    assert refound("", None, [str(tmp_path)]) is None
