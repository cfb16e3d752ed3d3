import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.plots import Axis, Curve, plot_metrics, read_curves

needs_matplotlib = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("matplotlib"), reason="matplotlib is not installed"
)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_the_axis_rises_with_the_steps_and_epochs_end_at_whole_numbers(lengths: list[int]) -> None:
    ends = [sum(lengths[: count + 1]) - 1 for count in range(len(lengths))]
    axis = Axis(dict(enumerate(ends)))
    places = [axis.place(step) for step in range(sum(lengths))]
    assert places == sorted(places)
    assert [axis.place(end) for end in ends] == [epoch + 1 for epoch in range(len(lengths))]
    assert all(0 < place <= len(lengths) for place in places)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    names = sorted({name for row in rows for name in row})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def a_run(folder: Path) -> Path:
    rows: list[dict[str, object]] = []
    for epoch in range(3):
        for step in range(epoch * 4, epoch * 4 + 4):
            rows.append(
                {"step": step, "epoch": epoch, "train_loss_step": 3.0 / (step + 1), "lr-Adam": 0.1 / (step + 1)}
            )
        last = epoch * 4 + 3
        rows.append({"step": last, "epoch": epoch, "val_loss": 2.0 / (epoch + 1), "val/acc": epoch / 3})
        rows.append({"step": last, "epoch": epoch, "train_loss_epoch": 2.5 / (epoch + 1)})
    write(folder / "metrics.csv", rows)
    return folder


def test_rows_that_wait_beside_the_table_are_drawn_too(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", [{"step": 0, "epoch": 0, "val_loss": 3.0}])
    waiting = tmp_path / "metrics.waiting.jsonl"
    waiting.write_text('{"val_acc": 0.5, "val_loss": 2.0, "epoch": 1, "step": 9}\n{"step": ')
    curves, epochs = read_curves(path)
    assert {curve.quantity: (curve.steps, curve.values) for curve in curves} == {
        "loss": ([0, 9], [3.0, 2.0]),
        "acc": ([9], [0.5]),
    }
    assert epochs == {0: 0, 1: 9}


def test_columns_become_curves(tmp_path: Path) -> None:
    curves, epochs = read_curves(a_run(tmp_path) / "metrics.csv")
    found = {(curve.quantity, curve.stage, curve.grain) for curve in curves}
    assert found == {
        ("loss", "train", "step"),
        ("loss", "train", "epoch"),
        ("loss", "val", ""),
        ("acc", "val", ""),
        ("lr-Adam", "", ""),
    }
    assert epochs == {0: 3, 1: 7, 2: 11}
    validation = next(curve for curve in curves if curve.stage == "val" and curve.quantity == "loss")
    assert validation == Curve("loss", "val", "", [3, 7, 11], [2.0, 1.0, 2.0 / 3])


def test_cells_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", [{"step": 0, "epoch": 0, "loss": "x", "acc": ""}, {"step": "", "loss": 1}])
    assert read_curves(path)[0] == []


@needs_matplotlib
def test_the_picture_lies_beside_the_metrics_and_nothing_of_pyplot_is_touched(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    state = {"monitor": "val_loss", "best_model_path": "gone/b.ckpt", "best_model_score": torch.tensor(1.0)}
    checkpoint = {"callbacks": {"ModelCheckpoint{}": state}, "epoch": 1, "global_step": 8, "state_dict": {}}
    torch.save(checkpoint, run / "checkpoints" / "b.ckpt")
    path = plot_metrics(run)
    assert path == str(run / "curves.png")
    assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert Path(path).stat().st_size > 20_000
    other = plot_metrics(run / "metrics.csv", tmp_path / "pictures" / "a.png")
    assert Path(other).is_file()


@needs_matplotlib
@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "epoch": 0, "loss": 1.0}],
        [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": float("inf")}],
        [{"step": step, "epoch": step, "train_loss": 10.0**-step, "test_loss": 1} for step in range(5)],
        [{"step": 5, "epoch": 1, "lr": 0.1}, {"step": 9, "epoch": 4, "lr": 0.2}],
    ],
    ids=["one point", "no finite value", "many orders of magnitude", "only learning rates"],
)
def test_odd_metrics_are_drawn_too(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    write(tmp_path / "metrics.csv", rows)
    assert Path(plot_metrics(tmp_path)).is_file()


def test_nothing_to_draw_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="finds no metrics"):
        plot_metrics(tmp_path)
    write(tmp_path / "metrics.csv", [{"step": 0, "epoch": 0}])
    with pytest.raises(ConfigurationError, match="nothing to draw"):
        plot_metrics(tmp_path)


def test_as_a_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fulmen.trainer.plots", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr
