import pytest

from fulmen.fabric.collectives.base import Collective
from fulmen.fabric.collectives.single_device import SingleDeviceCollective
from fulmen.fabric.errors import NotLaunchedError


def test_one_object_works_in_one_group():
    collective = SingleDeviceCollective()
    with pytest.raises(NotLaunchedError, match=r"Call `create_group\(\)` first"):
        _ = collective.group
    assert collective.create_group() is collective
    group = collective.group
    assert (group.size(), group.rank()) == (1, 0)
    with pytest.raises(NotLaunchedError, match="has a group already"):
        collective.create_group()
    assert collective.group is group
    assert collective.teardown() is collective
    assert collective.create_group().group is not group


def test_a_connection_is_opened_once():
    opened = []

    class Line(SingleDeviceCollective):
        @classmethod
        def is_initialized(cls):
            return bool(opened)

        @classmethod
        def init_group(cls, **kwargs):
            opened.append(kwargs)

    line = Line()
    assert line.setup(backend="mine") is line.setup(backend="other") is line
    assert opened == [{"backend": "mine"}]


def test_the_base_is_for_subclasses():
    with pytest.raises(TypeError, match="abstract"):
        Collective()
