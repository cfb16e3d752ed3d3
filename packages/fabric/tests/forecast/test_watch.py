import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from fulmen.fabric.forecast import fake_world, watch
from fulmen.fabric.forecast.figures import Traffic


def test_collectives_of_both_kinds_are_counted_by_their_axis():
    with fake_world.fake_group(8), fake_world.mode():
        row = dist.new_group([0, 1])
        seen = watch.Watch({"row": [0, 1], "all of them": range(8)}, [])
        with seen:
            dist.all_reduce(torch.zeros(10), group=row)
            dist.all_gather_into_tensor(torch.zeros(80), torch.zeros(10))
            functional.all_reduce(torch.zeros(4), "sum", row)
            functional.reduce_scatter_tensor(torch.zeros(16), "sum", 0, dist.group.WORLD)
    assert sorted(seen.traffic(accumulate=3), key=lambda one: (one.operation, one.axis)) == [
        Traffic("all_gather", "all of them", 8, 3, 3 * 320, 3 * 280),
        Traffic("all_reduce", "row", 2, 6, 3 * 56, 3 * 56),
        Traffic("reduce_scatter", "all of them", 8, 1, 64, 56),
    ]


def test_what_is_alive_is_what_somebody_holds():
    with fake_world.mode():
        given = torch.zeros(100)
        seen = watch.Watch({}, [given])
        with seen:
            kept = given + 1
            view = kept[:10]
            del kept
            assert seen.alive_bytes() == 400  # a view holds all of it
            given.mul_(2)
            assert seen.alive_bytes() == 400  # what was there before is not counted
            del view
            assert seen.alive_bytes() == 0


def test_what_is_gathered_is_counted_apart_at_its_most():
    with fake_world.fake_group(4), fake_world.mode():
        seen = watch.Watch({}, [])
        with seen:
            part, whole = torch.zeros(10), torch.zeros(40)
            dist.all_gather_into_tensor(whole, part)
            assert seen.alive_bytes() == 40
            del whole
        assert seen.most_exchanged == 160


def test_one_speaks_for_all_and_is_itself_again():
    class Strategy:
        def broadcast(self, obj, src=0):
            raise AssertionError

    strategy = Strategy()
    with watch.one_speaks_for_all(strategy):
        assert strategy.broadcast(3) == 3
        assert strategy.reduce_boolean_decision(True, all=False) is True
    assert strategy.__dict__ == {}
