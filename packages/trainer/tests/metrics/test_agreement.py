"""Values of several processes, joined by real collectives."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.log_call import EPOCH_ONLY, STEP
from fulmen.trainer.stages import Stage

OPS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


class Gloo:
    """What the bound strategy gives the board; counts its collectives."""

    def __init__(self):
        self.world_size = dist.get_world_size()
        self.collectives = []

    def reduce_tensors(self, tensors, op):
        self.collectives.append(op)
        stacked = torch.stack(list(tensors))
        dist.all_reduce(stacked, OPS.get(op, dist.ReduceOp.SUM))
        return list((stacked / self.world_size if op == "mean" else stacked).unbind())

    def reduce(self, tensor, group=None, reduce_op="mean"):
        raise AssertionError("no group was given")


class Rows:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"at": step, **metrics})

    def save(self):
        pass


def one_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reducer, rows = Gloo(), Rows()
    board = MetricsBoard([rows])
    board.attach(reducer, torch.device("cpu"))
    names = ["a", "b", "c"] if rank == 0 else ["c", "b", "a"]  # another order on each process
    with board.inside(Stage.TRAIN):
        board.begin_epoch()
        board.hook, board.rule = "training_step", STEP
        for index in range(2):
            board.begin_batch(torch.zeros(1 + rank, 1), index)  # rank 1 has batches twice as large
            for name in names:
                board.log(name, torch.tensor(10.0 * rank + index), on_epoch=True, sync_dist=True)
            board.log("top", 10.0 * rank + index, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max")
            board.log("own", float(rank), on_step=False, on_epoch=True)
        per_step = len(reducer.collectives)
        board.publish_step(1, 0)
        board.end_batches()
        board.hook, board.rule = "on_train_epoch_end", EPOCH_ONLY
        board.log("late", float(rank), sync_dist=True, reduce_fx="sum")
        seen = {name: float(value) for name, value in board.callback_metrics.items()}
        board.publish_epoch(1, 0)

        board.begin_epoch()
        board.hook, board.rule = "training_step", STEP
        board.begin_batch(torch.zeros(1), 0)
        board.log("a" if rank else "b", 1.0, on_epoch=True, sync_dist=True)
        try:
            board.end_batches()
            said = ""
        except MisconfigurationException as error:
            said = str(error)
    dist.destroy_process_group()
    report = {"seen": seen, "rows": rows.rows, "per_step": per_step, "ops": reducer.collectives, "said": said}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(report, file)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    # Forked: two processes that share the imported torch.
    mp.start_processes(one_process, args=(folder,), nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_means_weigh_the_samples_of_all_processes(reports):
    weighted = (1 * (0 + 1) + 2 * (10 + 11)) / 6
    for report in reports:
        assert [report["seen"][f"{name}_epoch"] for name in "abc"] == pytest.approx([weighted] * 3)
        assert report["seen"]["top"] == 11


def test_what_nobody_asked_to_join_stays_apart(reports):
    assert [report["seen"]["own"] for report in reports] == [0, 1]


def test_the_row_of_a_step_is_that_of_all(reports):
    for report in reports:
        assert report["rows"][0] == {"at": 1, "a_step": 6.0, "b_step": 6.0, "c_step": 6.0, "epoch": 0}


def test_what_the_epochs_end_logs_is_joined_before_monitors_look(reports):
    assert [report["seen"]["late"] for report in reports] == [1, 1]


def test_no_collective_between_two_points_and_one_per_kind_at_them(reports):
    for report in reports:
        assert report["per_step"] == 0
        # The row of the step; the names, then means together and maxima; what came late; the names again.
        assert report["ops"] == ["mean", "max", "sum", "max", "sum", "max"]


def test_different_names_are_an_error_on_every_process(reports):
    for report, name in zip(reports, "ba", strict=True):
        assert f"['{name}_epoch']" in report["said"] or f"['{name}']" in report["said"]
        assert "Log them everywhere, or pass sync_dist=False." in report["said"]
