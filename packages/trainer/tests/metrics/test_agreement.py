"""Values of several processes, joined by real collectives."""

import json
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchmetrics

from fulmen.fabric.errors import MisconfigurationException
from fulmen.fabric.gloo_threads import close_group
from fulmen.trainer.metrics.agreement import Part, join
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.log_call import EPOCH, EPOCH_ONLY, STEP
from fulmen.trainer.stages import Stage

WORLD = 2


class Gloo:
    """What the bound strategy gives the board; counts its collectives."""

    def __init__(self):
        self.world_size = dist.get_world_size()
        self.collectives = 0

    distinct_ranks = None

    def all_gather(self, tensor, group=None, sync_grads=False):
        self.collectives += 1
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather_objects(self, obj):
        self.collectives += 1
        found = [None] * self.world_size
        dist.all_gather_object(found, obj)
        return found

    def reduce(self, tensor, group=None, reduce_op="mean"):
        assert reduce_op == "sum"
        assert group is not None
        self.collectives += 1
        tensor = tensor.clone()
        dist.all_reduce(tensor, group=group)
        return tensor


class Rows:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"at": step, **metrics})

    def save(self):
        pass


class Stand:
    """A board in a process of its own, with what it sent and how often it talked to the others."""

    def __init__(self, module=None):
        self.reducer, self.logger = Gloo(), Rows()
        self.board = MetricsBoard([self.logger])
        self.board.attach(self.reducer, torch.device("cpu"), module=module)

    @contextmanager
    def epoch(self, stage, hook, rule):
        with self.board.inside(stage):
            self.board.begin_epoch()
            self.board.hook, self.board.rule = hook, rule
            yield self.board

    def seen(self):
        return {name: float(value) for name, value in self.board.callback_metrics.items()}


def training(rank):
    stand = Stand()
    names = ["a", "b", "c"] if rank == 0 else ["c", "b", "a"]  # another order on each process
    with stand.epoch(Stage.TRAIN, "training_step", STEP) as board:
        for index in range(2):
            board.begin_batch(torch.zeros(1 + rank, 1), index)  # rank 1 has batches twice as large
            for name in names:
                board.log(name, torch.tensor(10.0 * rank + index), on_epoch=True, sync_dist=True)
            for kind in ("min", "max", "sum"):
                options = {"on_step": False, "on_epoch": True, "sync_dist": True, "reduce_fx": kind}
                board.log(f"{kind}_of_all", 10.0 * rank + index, **options)
            board.log("own", float(rank), on_step=False, on_epoch=True)
        told = {"between": stand.reducer.collectives}
        board.publish_step(1, 0)
        told["step"] = stand.reducer.collectives
        board.end_batches()
        told["epoch"] = stand.reducer.collectives - told["step"]
        board.hook, board.rule = "on_train_epoch_end", EPOCH_ONLY
        board.log("late", float(rank), sync_dist=True, reduce_fx="sum")
        told["seen"] = stand.seen()
        board.publish_epoch(1, 0)
    return {**told, "rows": stand.logger.rows}


def evaluation(rank):
    """Rank 0 has three batches, rank 1 two."""
    stand = Stand()
    with torch.inference_mode(), stand.epoch(Stage.VALIDATE, "validation_step", EPOCH) as board:
        for index in range(3 - rank):
            board.begin_batch(torch.zeros(2), index)
            board.log("a", torch.tensor(10.0 * rank + index), on_step=True, on_epoch=True, sync_dist=True)
            board.log("own", float(index), on_step=True, on_epoch=False)
            board.publish_step(index)
        between = stand.reducer.collectives
        board.end_batches()
        board.publish_epoch(5, 0)
    return {"between": between, "seen": stand.seen(), "rows": stand.logger.rows}


def idle_process(rank):
    """Rank 1 has no batch at all."""
    module = torch.nn.Module()
    module.accuracy = torchmetrics.MeanMetric()
    stand = Stand(module)
    with stand.epoch(Stage.VALIDATE, "validation_step", EPOCH) as board:
        if rank == 0:
            board.begin_batch(torch.zeros(2), 0)
            board.log("loss", torch.tensor(3.0), sync_dist=True)
            board.log("unsynced", 4.0)
            module.accuracy.update(5.0)
            board.log("accuracy", module.accuracy)
        board.end_batches()
        board.hook, board.rule = "on_validation_epoch_end", EPOCH_ONLY
        board.log("late", 1.0, sync_dist=True, reduce_fx="sum")
        seen = stand.seen()
        board.publish_epoch(0, 0)
    return seen


def disagreement(rank, log, publish):
    stand = Stand()
    with stand.epoch(Stage.TRAIN, "training_step", STEP) as board:
        board.begin_batch(torch.zeros(1), 0)
        try:
            log(stand, rank)
            publish(board)
        except MisconfigurationException as error:
            return str(error)
    return ""


def log_epoch(stand, rank):
    stand.board.log("same", 1.0, on_epoch=True, sync_dist=True)
    stand.board.log("a" if rank else "b", 1.0, on_step=False, on_epoch=True, sync_dist=True)


def log_on_first(stand, rank):
    if rank == 0:
        stand.board.log("only", 1.0, sync_dist=True)


def log_kinds(stand, rank):
    stand.board.log("a", 1.0, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max" if rank else "min")


def log_late(stand, rank):
    board = stand.board
    board.end_batches()
    board.hook, board.rule = "on_train_epoch_end", EPOCH_ONLY
    if rank == 1:
        board.log("late", 1.0, sync_dist=True)


def log_many(stand, rank):
    for number in range(300 + rank):
        stand.board.log(f"m{number}", 1.0, on_step=False, on_epoch=True, sync_dist=True)


DISAGREEMENTS = {
    "epoch": (log_epoch, lambda board: board.end_batches()),
    "step": (log_on_first, lambda board: board.publish_step(0, 0)),
    "kind": (log_kinds, lambda board: board.end_batches()),
    "late": (log_late, lambda board: board.publish_epoch(0, 0)),
    "many": (log_many, lambda board: board.end_batches()),
}


def very_many(rank):
    """More values than fit into one message."""
    reducer = Gloo()
    values = [torch.tensor(float(number + rank), dtype=torch.float64) for number in range(1000)]
    parts = [Part(f"m{number}", "training_step", "max", [value]) for number, value in enumerate(values)]
    joined = join(parts, reducer, torch.device("cpu"))
    return {"right": [float(value) for [value] in joined] == [number + 1.0 for number in range(1000)],
            "collectives": reducer.collectives}  # fmt: skip


def grouped(rank):
    """Each process joins with itself alone."""
    group = [dist.new_group([0]), dist.new_group([1])][rank]
    stand = Stand()
    with stand.epoch(Stage.TRAIN, "training_step", STEP) as board:
        board.begin_batch(torch.zeros(1), 0)
        board.log("a", float(rank), on_step=False, on_epoch=True, sync_dist=True, sync_dist_group=group)
        board.end_batches()
        seen = stand.seen()
        board.publish_epoch(0, 0)
    return seen


def one_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    report = {
        "training": training(rank),
        "evaluation": evaluation(rank),
        "idle": idle_process(rank),
        "very_many": very_many(rank),
        "grouped": grouped(rank),
        **{name: disagreement(rank, *case) for name, case in DISAGREEMENTS.items()},
    }
    close_group()
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(report, file)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    # Forked: two processes that share the imported torch.
    mp.start_processes(one_process, args=(folder,), nprocs=WORLD, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_means_weigh_the_samples_of_all_processes(reports):
    weighted = (1 * (0 + 1) + 2 * (10 + 11)) / 6
    for seen in (report["training"]["seen"] for report in reports):
        assert [seen[f"{name}_epoch"] for name in "abc"] == pytest.approx([weighted] * 3)
        assert [seen[f"{kind}_of_all"] for kind in ("min", "max", "sum")] == [0, 11, 22]


def test_what_nobody_asked_to_join_stays_apart(reports):
    assert [report["training"]["seen"]["own"] for report in reports] == [0, 1]


def test_the_row_of_a_step_is_that_of_all(reports):
    for report in reports:
        [row, *_] = report["training"]["rows"]
        assert row == {"at": 1, "a_step": 6.0, "b_step": 6.0, "c_step": 6.0, "epoch": 0}


def test_what_the_epochs_end_logs_is_joined_before_monitors_look(reports):
    assert [report["training"]["seen"]["late"] for report in reports] == [1, 1]


def test_no_collective_between_two_points_and_one_at_each_of_them(reports):
    for report in reports:
        assert [report["training"][moment] for moment in ("between", "step", "epoch")] == [0, 1, 1]
        assert report["evaluation"]["between"] == 0


def test_evaluation_may_have_a_batch_more_on_one_process(reports):
    for report in reports:
        assert report["evaluation"]["seen"]["a_epoch"] == pytest.approx((0 + 1 + 2 + 10 + 11) / 5)
    rows = reports[0]["evaluation"]["rows"]
    assert [row["a_step"] for row in rows if "a_step" in row] == [5.0, 6.0, 2.0]
    assert [row["at"] for row in rows if "a_step" in row] == [0, 1, 2]
    assert [row["own"] for row in rows if "own" in row] == [0, 1, 2]


def test_a_process_without_a_batch_goes_along_and_sees_what_the_others_see(reports):
    seen = {"loss": 3.0, "unsynced": 4.0, "accuracy": 5.0, "late": 2.0}
    assert [report["idle"] for report in reports] == [seen, seen]


def test_any_number_of_values_is_joined_in_two_collectives(reports):
    assert [report["very_many"] for report in reports] == [{"right": True, "collectives": 2}] * 2


def test_a_group_joins_among_itself(reports):
    assert [report["grouped"]["a"] for report in reports] == [0, 1]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("epoch", ["'a' (sum, in training_step) on rank 1 and not on rank 0", "'b' (sum, in training_step) on rank 0"]),
        ("step", ["'only' (mean, in training_step) on rank 0 and not on rank 1"]),
        ("kind", ["'a' (min, in training_step) on rank 0", "'a' (max, in training_step) on rank 1"]),
        ("late", ["'late' (sum, in on_train_epoch_end) on rank 1 and not on rank 0"]),
        ("many", ["'m300' (sum, in training_step) on rank 1 and not on rank 0"]),
    ],
)
def test_different_names_are_an_error_on_every_process_that_names_rank_and_key(what, says, reports):
    for report in reports:
        for part in says:
            assert part in report[what]
        assert "Log them everywhere, or pass sync_dist=False." in report[what]
