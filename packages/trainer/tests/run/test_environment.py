import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.run.environment import PREFIXES, arguments_in
from fulmen.trainer.trainer import Trainer

literals = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.integers(), max_size=3)
)


@given(
    st.dictionaries(st.sampled_from(["devices", "max_epochs", "strategy"]), literals | st.sampled_from(["ddp", "a b"])),
    st.sampled_from(PREFIXES),
)
def test_values_are_literals_or_text(arguments, prefix):
    environment = {f"{prefix}{name.upper()}": str(value) for name, value in arguments.items()}
    assert arguments_in(environment | {"PATH": "x"}, ["devices", "max_epochs", "strategy"]) == arguments
    for text in environment.values():
        assert ast.literal_eval(text) is not NotImplemented if text not in ("ddp", "a b") else True


def test_what_is_passed_wins(monkeypatch, quick):
    monkeypatch.setenv("PL_TRAINER_LIMIT_VAL_BATCHES", "3")
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "cpu")
    trainer = Trainer(max_epochs=2, logger=False)
    assert (trainer.limit_val_batches, trainer.max_epochs) == (3, 2)


def test_our_prefix_wins_over_the_one_of_the_reference():
    found = {"FULMEN_TRAINER_DEVICES": "2", "PL_TRAINER_DEVICES": "3", "PL_TRAINER_STRATEGY": "ddp"}
    for environment in (found, dict(reversed(found.items()))):
        assert arguments_in(environment, ["devices", "strategy"]) == {"devices": 2, "strategy": "ddp"}


def test_what_is_for_the_command_line_is_none_of_ours(recwarn):
    environment = {"FULMEN_TRAINER__MAX_EPOCHS": "3", "FULMEN_TRAINER__LOGGER__NAME": "x", "FULMEN_GLOBAL_SEED": "1"}
    assert arguments_in(environment, ["max_epochs", "logger"]) == {}
    assert not recwarn.list


def test_a_wrong_name_or_value_is_told(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCH", "7")
    with pytest.warns(UserWarning, match="Did you mean PL_TRAINER_MAX_EPOCHS"):
        Trainer(logger=False, accelerator="cpu")
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "seven")
    with pytest.raises(TypeError, match="max_epochs='seven'"), pytest.warns(UserWarning, match="MAX_EPOCH"):
        Trainer(logger=False, accelerator="cpu")
