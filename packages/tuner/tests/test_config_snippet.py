from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.tuner.config_snippet import options_of, snippet

NAMES = st.sampled_from(["lr", "width", "a", "b", "options"])
VALUES = st.floats(0.0, 1.0) | st.booleans() | st.none() | st.text(max_size=3)
PLAIN = st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)
ARGUMENTS = st.dictionaries(NAMES, PLAIN, max_size=4)
SECTIONS = ARGUMENTS | st.builds(lambda given: {"class_path": "my.Class", "init_args": given}, ARGUMENTS) | st.none()


def laid_over(below, above):
    """As a later config file is laid over an earlier one."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: laid_over(below.get(key), value) for key, value in above.items()}


def looked_up(described, path):
    for name in path:
        described = described.get("init_args", described)[name]
    return described


@settings(max_examples=50)
@given(
    st.fixed_dictionaries({"model": SECTIONS, "data": SECTIONS}),
    st.lists(NAMES, min_size=1, max_size=3),
    st.booleans(),
)
def test_laid_over_the_configuration_it_sets_this_argument_and_no_other(config, path, as_hparams):
    found = snippet(config, ["model", "data"], ("hparams." if as_hparams else "") + ".".join(path), 0.5)
    mixed = laid_over(config, found)
    for section in config:
        try:
            old = looked_up(config[section], path)
        except (KeyError, TypeError, AttributeError):
            assert section not in found
            assert mixed[section] == config[section]
            continue
        assert looked_up(mixed[section], path) == 0.5
        assert laid_over(mixed, snippet(config, [section], ".".join(path), old))[section] == config[section]
    assert options_of(found) == [".".join([section, *path]) for section in found]
    assert list(found) == [section for section in ("model", "data") if section in found]


def test_a_class_keeps_its_name():
    config = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}, "model": None}
    assert snippet(config, ["optimizer", "model"], "lr", 0.5) == {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    }


def test_nothing_is_found_where_nothing_is():
    assert snippet({"model": {"width": 3}}, ["model", "data"], "lr", 0.5) == {}
    assert options_of({}) == []
