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
