import math

from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.checkpoint.ranking import Ranking, best_first, is_better, worst_possible

scores = st.floats(allow_nan=True, width=32)
modes = st.sampled_from(["min", "max"])


def offer(ranking, path, score):
    """What a caller does: ask, add, delete what gave way."""
    if not ranking.accepts(score):
        return ranking, path
    return ranking.add(path, score), ranking.gives_way()


@given(st.lists(scores, max_size=30), st.integers(-1, 5), modes)
def test_the_k_best_are_kept_and_the_rest_is_named_once(offered, k, mode):
    ranking, dropped = Ranking(k, mode), []
    for number, score in enumerate(offered):
        ranking, gone = offer(ranking, str(number), score)
        dropped += [gone] if gone is not None else []
    assert sorted([*ranking.scores, *dropped], key=int) == [str(number) for number in range(len(offered))]
    assert len(ranking.scores) == (len(offered) if k == -1 else min(k, len(offered)))
    ranked = [worst_possible(mode) if math.isnan(score) else score for score in offered]
    kept = sorted(ranking.scores.values(), reverse=mode == "max")
    assert kept == sorted(ranked, reverse=mode == "max")[: len(kept)]


@given(st.lists(scores, min_size=1, max_size=30), st.integers(1, 5), modes)
def test_best_and_worst_are_extremes_and_of_equals_the_oldest(offered, k, mode):
    ranking = Ranking(k, mode)
    for number, score in enumerate(offered):
        ranking, _ = offer(ranking, str(number), score)
    best, worst = ranking.scores[ranking.best], ranking.scores[ranking.worst]
    for path, score in ranking.scores.items():
        assert not is_better(score, best, mode)
        assert not is_better(worst, score, mode)
        assert score != best or int(ranking.best) <= int(path)
        assert score != worst or int(ranking.worst) <= int(path)


@given(st.lists(scores, min_size=1, max_size=10), modes)
def test_k_of_0_keeps_nothing(offered, mode):
    assert not any(Ranking(0, mode).accepts(score) for score in offered)


def test_an_equal_score_does_not_push_out():
    assert not Ranking(1, "min", {"a": 1.0}).accepts(1.0)


def test_the_same_path_is_ranked_anew():
    assert Ranking(2, "min", {"a": 1.0, "b": 2.0}).add("a", 3.0).scores == {"b": 2.0, "a": 3.0}


@given(st.dictionaries(st.text(max_size=3), scores, min_size=1), modes)
def test_the_best_come_first_whichever_way_is_good(offered, mode):
    ranking = Ranking(-1, mode)
    for path, score in offered.items():
        ranking = ranking.add(path, score)
    ordered = best_first(ranking.scores, ranking.best)
    assert sorted(ordered) == sorted(offered)
    assert ordered[0] == ranking.best
    found = [ranking.scores[path] for path in ordered]
    assert found == sorted(found, reverse=mode == "max")
