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
    curves, epochs = read_curves(str(path))
    assert {curve.quantity: (curve.steps, curve.values) for curve in curves} == {
        "loss": ([0, 9], [3.0, 2.0]),
        "acc": ([9], [0.5]),
    }
    assert epochs == {0: 0, 1: 9}


def test_columns_become_curves(tmp_path: Path) -> None:
    curves, epochs = read_curves(str(a_run(tmp_path) / "metrics.csv"))
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
    assert validation == Curve("loss", "val", "", "", [3, 7, 11], [2.0, 1.0, 2.0 / 3])


def test_several_loaders_are_one_quantity(tmp_path: Path) -> None:
    row = {"step": 3, "val_loss/dataloader_idx_0": 1.0, "val_loss_epoch/dataloader_idx_12": 2.0}
    curves, _ = read_curves(str(write(tmp_path / "metrics.csv", [row])))
    assert curves == [Curve("loss", "val", "", "0", [3], [1.0]), Curve("loss", "val", "epoch", "12", [3], [2.0])]


def test_of_a_run_that_went_on_from_before_the_later_rows_count(tmp_path: Path) -> None:
    rows = [{"step": step, "loss_step": step, "epoch": step // 2} for step in range(5)]
    rows += [{"step": step, "loss_step": -step, "epoch": step // 2} for step in range(2, 6)]
    ends = [{"step": 3, "loss_epoch": number, "epoch": 1} for number in range(2)]
    curves, _ = read_curves(str(write(tmp_path / "metrics.csv", [*rows, *ends])))
    assert {curve.grain: (curve.steps, curve.values) for curve in curves} == {
        "step": ([0, 1, 2, 3, 4, 5], [0, 1, -2, -3, -4, -5]),
        "epoch": ([3], [1]),
    }


class Drawn:
    """What a picture shows, of which only the pixels are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]], folder: Path) -> None:
        from matplotlib.figure import Figure

        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
        write(folder / "metrics.csv", rows)
        plot_metrics(folder)
        [self.figure] = figures
        self.panels = self.figure.axes
        self.titles = [ax.get_title(loc="left") for ax in self.panels]

    def names(self, panel: int) -> list[str]:
        legend = self.panels[panel].get_legend()
        return [] if legend is None else [text.get_text() for text in legend.get_texts()]


@needs_matplotlib
def test_momentum_is_no_learning_rate_and_groups_can_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {f"lr-SGD/group_{number}": 0.1 / (number + 1) for number in range(9)}
    row = {"step": 0, "train_loss": 1.0, "lr-SGD/group_0-momentum": 0.9, "lr-SGD/group_0-weight_decay": 0.1, **groups}
    drawn = Drawn(monkeypatch, [row, {**row, "step": 5}], tmp_path)
    assert drawn.titles == ["loss", "lr-SGD/group_0-momentum", "lr-SGD/group_0-weight_decay", "learning rate"]
    assert drawn.names(-1) == list(groups)
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn.panels[-1].lines}) == len(groups)


@needs_matplotlib
def test_many_quantities_share_the_width_and_too_many_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"step": 0, "lr": 0.1, **{f"layer_{number}": 1.0 for number in range(31)}}
    drawn = Drawn(monkeypatch, [row], tmp_path)
    assert drawn.titles == [*(f"layer_{number}" for number in range(30)), "learning rate"]
    assert "30 of 31 quantities" in drawn.figure.get_suptitle()
    assert drawn.figure.get_figwidth() == 15
    assert [ax.get_xlabel() for ax in drawn.panels if ax.get_xlabel()] == ["step"]


@needs_matplotlib
def test_in_a_single_epoch_the_steps_are_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [{"step": step, "epoch": 0, "train_loss_step": 9.0 - step} for step in range(9)]
    rows.append({"step": 8, "epoch": 0, "train_loss_epoch": 5.0, "val_loss": 4.0})
    drawn = Drawn(monkeypatch, rows, tmp_path)
    assert drawn.names(0) == ["training", "validation"]
    assert [line.get_alpha() for line in drawn.panels[0].lines] == [1.0, 1.0, 1.0]
    low, high = drawn.panels[0].get_ylim()
    assert low < 1 < 9 < high


@needs_matplotlib
def test_a_long_name_stays_within_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch, [{"step": 0, "a" * 200: 1.0}], tmp_path)
    assert drawn.titles[0].replace("\n", "") == "a" * 200
    assert max(map(len, drawn.titles[0].split("\n"))) <= 90


@needs_matplotlib
def test_a_run_on_an_object_store_is_drawn_there() -> None:
    import fsspec

    from fulmen.trainer.loggers import CSVLogger

    logger = CSVLogger("memory://plots", version=0)
    for step in range(3):
        logger.log_metrics({"train_loss": 1.0 / (step + 1)}, step)
        logger.save()
    path = plot_metrics(logger.log_dir)
    assert path == "memory://plots/lightning_logs/version_0/curves.png"
    with fsspec.open(path, "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_cells_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", [{"step": 0, "epoch": 0, "loss": "x", "acc": ""}, {"step": "", "loss": 1}])
    assert read_curves(str(path))[0] == []


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


@needs_matplotlib
def test_values_that_no_line_can_show_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, float("nan"), 0.5, float("inf")]
    rows: list[dict[str, object]] = [{"step": i, "loss": value, "x": "nan"} for i, value in enumerate(values)]
    drawn = Drawn(monkeypatch, rows, tmp_path)
    assert drawn.titles == ["loss   (2 of 4 values are NaN or infinite)", "x   (4 of 4 values are NaN or infinite)"]
    assert [bool(len(panel.get_yticks())) for panel in drawn.panels] == [True, False]


@needs_matplotlib
def test_of_a_long_run_the_means_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [{"step": i, "train_loss": 2.0 + (-1) ** i} for i in range(4000)]
    panel = Drawn(monkeypatch, rows, tmp_path).panels[0]
    band, means = panel.lines
    assert (len(band.get_xdata()), band.get_alpha()) == (4000, 0.3)
    assert (len(means.get_xdata()), set(means.get_ydata()), means.get_label()) == (400, {2.0}, "training")


@needs_matplotlib
@pytest.mark.parametrize(("values", "scale"), [([0.001] + [0.5] * 99, "linear"), ([100.0] + [0.5] * 99, "log")])
def test_one_value_near_zero_is_no_tail(
    values: list[float], scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch, [{"step": i, "loss": value} for i, value in enumerate(values)], tmp_path)
    assert drawn.panels[0].get_yscale() == scale


@needs_matplotlib
def test_a_rate_that_is_logged_once_per_epoch_holds_until_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, object]] = [{"step": step, "epoch": step // 5, "train_loss": 1.0} for step in range(15)]
    for epoch in range(3):
        rows[5 * epoch]["lr-SGD"] = 0.1**epoch
        rows[5 * epoch]["lr-Adam"] = rows[5 * epoch + 1]["lr-Adam"] = 0.1
    lines = {line.get_label(): line for line in Drawn(monkeypatch, rows, tmp_path).panels[-1].lines}
    assert (lines["lr-SGD"].get_drawstyle(), lines["lr-SGD"].get_xdata()[-1]) == ("steps-post", 3.0)
    assert (lines["lr-Adam"].get_drawstyle(), len(lines["lr-Adam"].get_xdata())) == ("default", 6)


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
