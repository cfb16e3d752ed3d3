from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import MisconfigurationException
from fulmen.tuner.attributes import NoSuchAttributeError, TunedAttribute, find_attribute


def owner(**attributes):
    return SimpleNamespace(**attributes)


PLACES = {
    "module": lambda: (owner(lr=1.0), None),
    "module's hparams": lambda: (owner(hparams={"lr": 1.0}), None),
    "namespace": lambda: (owner(hparams=owner(lr=1.0)), None),
    "both": lambda: (owner(lr=1.0, hparams={"lr": 1.0}), None),
    "datamodule": lambda: (owner(hparams={}), owner(lr=1.0)),
    "datamodule's hparams": lambda: (owner(), owner(hparams={"lr": 1.0})),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_is_read_wherever_it_lives(place):
    owners = PLACES[place]()
    attribute = TunedAttribute("lr", owners)
    assert attribute.exists
    assert attribute.read() == 1.0
    attribute.write(0.5)
    for one in owners:
        assert getattr(one, "lr", 0.5) == 0.5
        hparams = getattr(one, "hparams", {})
        assert (hparams if isinstance(hparams, dict) else vars(hparams)).get("lr", 0.5) == 0.5


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4), st.data())
def test_nested_names_go_through_dicts_and_objects(path, data):
    value = 1.0
    for part in reversed(path):
        value = {part: value} if data.draw(st.booleans()) else owner(**{part: value})
    module = owner(hparams=value)
    attribute = TunedAttribute(".".join(path), [module])
    assert attribute.read() == 1.0
    attribute.write(2.0)
    assert attribute.read() == 2.0
    assert TunedAttribute("hparams." + ".".join(path), [module]).read() == 2.0
    assert not TunedAttribute(".".join([*path, "more"]), [module]).exists


def test_the_first_name_that_somebody_has():
    names = ("lr", "learning_rate")
    found = find_attribute(names, owner(learning_rate=1), None, call="call", argument="attr_name")
    assert found.name == "learning_rate"


def test_nobody_has_it():
    with pytest.raises(
        NoSuchAttributeError, match=r"Tuner.lr_find finds no attribute 'lr' or 'learning_rate'"
    ) as caught:
        find_attribute(("lr", "learning_rate"), owner(), owner(), call="Tuner.lr_find", argument="attr_name")
    assert isinstance(caught.value, (AttributeError, MisconfigurationException))
