"""What a run of several processes says of values that it does not join; the joining itself is in test_agreement.py."""

import warnings

import pytest
import torch

from fulmen.fabric.rank_zero import PossibleUserWarning, warned
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.log_call import EPOCH
from fulmen.trainer.stages import Stage


class Alike:
    """Two processes that have logged the same."""

    world_size = 2
    distinct_ranks = None

    def all_gather(self, tensor, group=None, sync_grads=False):
        return torch.stack([tensor, tensor])

    def gather_objects(self, obj):
        return [obj, obj]


class Alone(Alike):
    world_size = 1


def told(reducer, *calls):
    """What is said of an epoch of validation in which `calls` were logged: names with arguments."""
    board = MetricsBoard([])
    board.attach(reducer, torch.device("cpu"))
    warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with board.inside(Stage.VALIDATE):
                board.begin_epoch()
                board.hook, board.rule = "validation_step", EPOCH
                board.begin_batch(torch.zeros(2, 1), 0)
                for name, arguments in calls:
                    board.log(name, 1.0, **arguments)
                board.end_batches()
                board.publish_epoch(0, 0)
    return [str(one.message) for one in caught if one.category is PossibleUserWarning]


def test_values_of_one_process_only_are_told_of_once():
    [message] = told(Alike(), ("own", {}), ("joined", {"sync_dist": True}), ("second", {"reduce_fx": "max"}))
    assert "self.log('own', 'second') was called without sync_dist=True" in message
    assert "the value of rank 0" in message


@pytest.mark.parametrize(
    "call",
    [
        ("joined", {"sync_dist": True}),
        ("meant", {"rank_zero_only": True}),
        ("of steps", {"on_step": True, "on_epoch": False}),
    ],
)
def test_nothing_is_said_of_what_is_joined_or_meant(call):
    assert told(Alike(), call) == []


def test_one_process_has_nothing_to_join():
    assert told(Alone(), ("own", {})) == []
