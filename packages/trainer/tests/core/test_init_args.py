import sys
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given

from fulmen.trainer.core.init_args import collect_init_args, get_init_args, init_arguments, parse_class_init_keys

names = st.sampled_from(["lr", "width", "depth", "rate", "root"])
values = st.one_of(st.integers(), st.text(), st.lists(st.integers()))


class Parent:
    def __init__(self, lr=1, *args, width=2, **rest):
        self.seen = init_arguments(self)


class Child(Parent):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


@given(st.dictionaries(names, values))
def test_every_argument_is_seen_through_any_number_of_classes(arguments):
    for cls in (Parent, Child):
        assert cls(**arguments).seen == ({"lr": 1, "width": 2} | arguments)


def test_what_a_subclass_was_given_wins():
    class Doubling(Parent):
        def __init__(self, lr, extra):
            super().__init__(lr=2 * lr)

    assert Doubling(3, extra=4).seen == {"lr": 3, "width": 2, "extra": 4}


def test_a_base_class_called_by_name_is_seen_as_well():
    class ByName(Parent):
        def __init__(self, lr, extra):
            Parent.__init__(self, lr)

    assert ByName(3, extra=4).seen == {"lr": 3, "width": 2, "extra": 4}


def test_objects_built_inside_are_not_mixed_in():
    class Inner(Parent):
        pass

    class Outer:
        def __init__(self, inner_lr, outer):
            self.inner = Inner(inner_lr)

    assert Outer(5, outer=6).inner.seen == {"lr": 5, "width": 2}


def test_helpers_between_are_no_hindrance():
    class Helped:
        def __init__(self, lr):
            self.build()

        def build(self):
            self.seen = init_arguments(self)

    assert Helped(0.5).seen == {"lr": 0.5}


def test_arguments_in_closures_are_seen_and_deleted_ones_are_not():
    class Closure:
        def __init__(self, lr, gone):
            del gone
            self.function = lambda: lr
            self.seen = init_arguments(self)

    assert Closure(0.5, 1).seen == {"lr": 0.5}


def test_fields_of_a_dataclass():
    @dataclass
    class Fields:
        lr: float
        layers: list[int] = field(default_factory=list)
        made: int = field(init=False, default=0)

        def __post_init__(self):
            self.seen = init_arguments(self)

    assert Fields(0.1).seen == {"lr": 0.1, "layers": []}


def test_outside_of_init_there_is_nothing():
    assert init_arguments(object()) == {}


def test_frames_of_methods():
    def method(self, a, *args, b=2, **rest):
        return get_init_args(sys._getframe())

    assert method(None, 1, 7, c=3) == {"a": 1, "b": 2, "c": 3}


def test_collect_lists_the_calls_from_the_inside():
    class Base:
        def __init__(self, a):
            frame = sys._getframe()
            self.all = collect_init_args(frame, [], classes=(Base,))
            self.none = collect_init_args(frame, [], classes=(int,))

    class Derived(Base):
        def __init__(self, b):
            super().__init__(a=b + 1)

    derived = Derived(1)
    assert derived.all == [{"a": 2}, {"b": 1}]
    assert derived.none == []


def test_init_keys():
    class Named:
        def __init__(this, a, *more, **others):  # noqa: N805
            pass

    assert parse_class_init_keys(Named) == ("this", "more", "others")
    assert parse_class_init_keys(type("Empty", (), {"__init__": lambda self: None})) == ("self", None, None)
