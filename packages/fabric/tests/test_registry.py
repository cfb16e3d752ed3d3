from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.registry import Entry, Registry

names = st.text(min_size=1, max_size=5)


@given(st.lists(st.tuples(st.sampled_from(["register", "override", "remove"]), names, st.integers())))
def test_a_registry_is_an_ordered_dict_that_answers_mistakes(moves: list[tuple[str, str, int]]) -> None:
    registry: Registry[int] = Registry("number")
    model: dict[str, int] = {}
    for move, name, value in moves:
        if move == "remove":
            if name in model:
                registry.remove(name)
                del model[name]
            else:
                with pytest.raises(ConfigurationError):
                    registry.remove(name)
        elif name in model and move == "register":
            with pytest.raises(ConfigurationError):
                registry.register(name, value)
        else:
            registry.register(name, value, override=move == "override")
            model[name] = value
        assert registry.names() == list(registry) == list(model)
        assert len(registry) == len(model)
        assert all(name in registry and registry.get(name) == model[name] for name in model)


def test_an_entry_holds_its_description_and_preset() -> None:
    registry: Registry[type] = Registry("strategy")
    registry.register("ddp_spawn", dict, "DDP, spawned", start_method="spawn")
    assert registry["ddp_spawn"] == Entry("ddp_spawn", dict, "DDP, spawned", {"start_method": "spawn"})


def test_a_value_may_be_given_by_the_kind_of_the_registry() -> None:
    registry: Registry[type] = Registry("strategy")
    assert registry.register("mine", strategy=dict, answer=42) is dict
    assert registry["mine"] == Entry("mine", dict, "", {"answer": 42})


def test_it_decorates_too() -> None:
    registry: Registry[type] = Registry("strategy")

    @registry.register("mine", description="my own", answer=42)
    class Mine:
        pass

    assert registry.get("mine") is Mine
    assert registry["mine"].description == "my own"
    assert registry["mine"].preset == {"answer": 42}


def test_an_unknown_name_is_answered_with_near_and_all_names() -> None:
    registry: Registry[int] = Registry("strategy")
    registry.register("ddp", 1)
    registry.register("single_device", 2)
    with pytest.raises(
        ConfigurationError,
        match=r"strategy='dpp' is not .* names: 'ddp', 'single_device'\. Did you mean 'ddp'\?",
    ):
        registry.get("dpp")
    with pytest.raises(ConfigurationError, match=r"strategy='zzz'.*Pass one of"):
        registry.get("zzz")


@pytest.mark.parametrize("name", [None, 3, ["ddp"], ""])
def test_what_is_no_name_is_answered_as_clearly(name: object) -> None:
    registry: Registry[int] = Registry("strategy")
    assert name not in registry
    with pytest.raises(ConfigurationError, match="Registered names: none"):
        registry.get(name)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no usable name"):
        registry.register(name, 1)  # type: ignore[call-overload]


def test_a_taken_name_says_by_whom() -> None:
    registry: Registry[str] = Registry("strategy")
    registry.register("ddp", "the first")
    with pytest.raises(ConfigurationError, match=r"stands for 'the first'\. Choose .* override=True"):
        registry.register("ddp", "the second")


def test_expected_names_are_known_at_once_and_registered_when_one_is_asked_for() -> None:
    registry: Registry[int] = Registry("number")
    calls: list[str] = []

    def register(found: Registry[int]) -> None:
        calls.append("called")
        for name, value in (("two", 2), ("three", 3), ("four", 4)):
            found.register(name, value, f"number {value}", odd=value % 2)

    registry.register("one", 1)
    registry.expect(("two", "three", "four"), register)
    registry.register("five", 5)
    assert registry.names() == list(registry) == ["one", "two", "three", "four", "five"]
    assert "two" in registry
    assert "three" in repr(registry)
    assert len(registry) == 5
    registry.register("four", 44, override=True)
    assert registry.get("four") == 44
    assert calls == []

    assert registry["three"] == Entry("three", 3, "number 3", {"odd": 1})
    assert [registry.get(name) for name in ("two", "four")] == [2, 44]
    assert calls == ["called"]
    assert registry.names() == ["one", "two", "three", "four", "five"]
    registry.remove("two")
    assert "two" not in registry


def test_an_expected_name_is_taken() -> None:
    registry: Registry[int] = Registry("number")
    registry.expect(("two",), lambda found: found.register("two", 2))
    with pytest.raises(ConfigurationError, match="It stands for 2"):
        registry.register("two", 3)
    with pytest.raises(ConfigurationError, match="or remove that one first"):
        registry.expect(("one", "two"), lambda found: None)
    assert "one" not in registry
