"""The order in which stages work: each micro-batch goes forward and back once, and so many are under way at a time."""

from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.forecast.schedule_order import most_at_once, order_of_work
from fulmen.fabric.strategies.pipeline.cuts import SCHEDULES, Pipeline


@given(st.sampled_from(SCHEDULES), st.integers(2, 4), st.integers(1, 4), st.data())
def test_each_micro_batch_goes_forward_and_back_once(schedule, size, rounds, data):
    each = 1 if schedule in ("1F1B", "GPipe") else 2
    num = rounds * size * each
    pipeline = Pipeline([f"b{place}" for place in range(size * each - 1)], num, schedule)
    place = data.draw(st.integers(0, size - 1))
    order = order_of_work(pipeline, place, size, num)
    assert {stage for _, stage in order} == set(pipeline.stages_on(place, size))
    for stage in pipeline.stages_on(place, size):
        under_way = 0
        for what, where in order:
            under_way += (what == "forward") - (what == "done") if where == stage else 0
            assert 0 <= under_way <= num
        assert under_way == 0
        assert order.count(("forward", stage)) == num
    one = dict.fromkeys(range(pipeline.num_stages), 1)
    none = dict.fromkeys(range(pipeline.num_stages), 0)
    most = most_at_once(order, one, none, waits=False)
    if schedule == "1F1B":
        assert most == min(num, size - place)
    elif each == 1 or schedule == "LoopedBFS":
        assert most == each * num
    else:
        assert most <= each * num
    assert most_at_once(order, none, one, waits=True) == each * num
