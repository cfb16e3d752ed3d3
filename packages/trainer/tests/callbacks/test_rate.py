import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.callbacks.rate import Rate


@given(
    pace=st.floats(0.1, 1000),
    moves=st.lists(st.tuples(st.sampled_from(["work", "pause", "ask"]), st.integers(1, 50)), max_size=30),
)
def test_an_even_pace_is_measured_whatever_happens_between(pace, moves):
    rate, now_s, done = Rate(), 0.0, 0
    rate.begin(0, now_s)
    for move, size in moves:
        if move == "work":
            done, now_s = done + size, now_s + size / pace
        elif move == "pause":
            now_s += size
            rate.pass_over(size)
        else:
            measured = rate.measure(done, now_s)
            assert (measured is None) == (done == 0)
            assert measured is None or abs(measured - pace) <= 1e-3 * pace


@given(start=st.integers(0, 1000), seconds=st.floats(0.01, 100))
def test_the_first_batch_of_a_run_that_goes_on_takes_as_long_as_it_takes(start, seconds):
    rate = Rate()
    rate.begin(0, 5.0)
    rate.skip_to(start)
    assert rate.measure(start + 1, 5.0 + seconds) == pytest.approx(1 / seconds)


def test_it_follows_a_new_pace():
    rate = Rate()
    rate.begin(5, 0.0)
    assert rate.measure(15, 1.0) == 10
    now_s = 1.0
    for done in range(115, 1500, 100):
        now_s += 1.0
        rate.measure(done, now_s)
    assert 95 < rate.per_second <= 100
