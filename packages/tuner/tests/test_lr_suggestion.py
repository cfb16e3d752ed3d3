import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fulmen.tuner.lr_suggestion import Smoother, has_diverged, smoothed, steepest_descent, swept_rates

LOSSES = st.floats(-1e6, 1e6)
BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])
RATES = st.floats(1e-12, 1e3)


@given(RATES, RATES, st.integers(1, 200), st.booleans())
def test_a_sweep_rises_from_the_lowest_rate_to_the_highest(low, high, num_steps, is_linear):
    assume(low < high * 0.99)
    rates = swept_rates(low, high, num_steps, is_linear=is_linear)
    assert len(rates) == num_steps
    assert rates[0] == low
    assert num_steps == 1 or rates[-1] == high
    assert all(before < after for before, after in pairwise(rates))


@given(st.integers(3, 200), st.booleans())
def test_it_rises_by_equal_ratios_or_differences(num_steps, is_linear):
    rates = swept_rates(1e-6, 10.0, num_steps, is_linear=is_linear)
    pairs = list(pairwise(rates))
    moves = [after - before if is_linear else after / before for before, after in pairs]
    assert moves == pytest.approx([moves[0]] * len(moves), rel=1e-6)


@given(st.lists(LOSSES | BROKEN, min_size=1, max_size=50), st.floats(0.5, 0.99))
def test_a_running_mean_lies_among_the_finite_losses(losses, keep):
    smoother = Smoother(keep)
    seen = []
    for loss in losses:
        mean = smoother.add(loss)
        if math.isfinite(loss):
            seen.append(loss)
        slack = 1e-9 + 1e-6 * max(map(abs, seen), default=1)
        assert math.isnan(mean) if not seen else min(seen) - slack <= mean <= max(seen) + slack


@given(st.lists(LOSSES | BROKEN, max_size=50), st.floats(0.0, 10.0))
def test_a_smoothed_curve_lies_among_the_finite_losses_and_is_broken_where_they_are(losses, width):
    curve = smoothed(losses, width)
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert len(curve) == len(losses)
    for before, after in zip(losses, curve, strict=True):
        if math.isfinite(before):
            slack = 1e-9 + 1e-6 * max(map(abs, finite))
            assert min(finite) - slack <= after <= max(finite) + slack
        else:
            assert str(after) == str(before)


@given(st.lists(LOSSES, min_size=1, max_size=50), st.floats(0.1, 10.0))
def test_a_smoothed_curve_has_no_direction(losses, width):
    assert smoothed(losses[::-1], width)[::-1] == pytest.approx(smoothed(losses, width), rel=1e-6, abs=1e-3)


@given(LOSSES, st.floats(1.01, 100.0))
def test_the_best_loss_has_not_diverged(best, threshold):
    assert not has_diverged(best, best, threshold)
    assert not has_diverged(best - 1.0, best, threshold)
    assert has_diverged(math.nan, best, threshold)
    assert has_diverged(math.inf, best, threshold)


@given(st.floats(1e-6, 1e6), st.floats(1.01, 100.0), st.floats(0.0, 200.0))
def test_of_positive_losses_the_ratio_counts(best, threshold, ratio):
    assume(abs(ratio - threshold) > 1e-6)
    assert has_diverged(ratio * best, best, threshold) == (ratio > threshold)


def test_a_negative_loss_does_not_diverge_by_being_good():
    assert not has_diverged(-9.0, -10.0, 4.0)
    assert has_diverged(25.0, -10.0, 3.0)


@given(st.lists(LOSSES | BROKEN, max_size=50), st.integers(0, 20), st.integers(0, 20))
def test_what_is_suggested_was_not_skipped_and_lies_on_the_way_down(losses, skip_begin, skip_end):
    index = steepest_descent(losses, skip_begin, skip_end)
    kept = losses[skip_begin : len(losses) - skip_end] if skip_begin < len(losses) - skip_end else []
    finite = [loss for loss in kept if math.isfinite(loss)]
    if index is None:
        assert len(finite) < 2 or finite.index(min(finite)) == 0
    else:
        assert skip_begin <= index < len(losses) - skip_end
        assert math.isfinite(losses[index])
        assert index <= losses.index(min(finite), skip_begin)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30), st.integers(1, 9), st.integers(-100, 100))
def test_scale_and_offset_of_the_loss_do_not_matter(losses, scale, offset):
    assert steepest_descent([scale * loss + offset for loss in losses]) == steepest_descent(losses)


@given(st.integers(16, 80), st.floats(0.2, 3.0))
def test_a_clean_curve_is_cut_at_its_steepest_point(centre, drop):
    curve = [drop / (1 + math.exp((step - centre) / 2)) for step in range(100)]
    assert steepest_descent(curve, 10, 1) == centre


def test_a_dip_while_it_blows_up_is_no_suggestion():
    losses = [2.0] * 20 + [1.9, 1.7, 1.4, 1.2, 1.1, 1.1, 5.0, 40.0, 3.0, 90.0]
    assert steepest_descent(losses) in (21, 22)
    assert steepest_descent([1.0, 2.0, 3.0]) is None
