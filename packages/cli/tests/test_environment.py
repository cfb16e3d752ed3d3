from hypothesis import given
from hypothesis import strategies as st

from fulmen.cli.environment import Setting, settings_in, variable_of

names = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z0-9]{1,5})?", fullmatch=True)
options = st.lists(names, min_size=1, max_size=3).map(".".join)
values = st.text(min_size=1, max_size=5)


@given(options, values, st.sampled_from([None, "fit", "batch-size"]))
def test_an_option_is_set_by_its_variable(option: str, value: str, subcommand: str | None) -> None:
    variable = variable_of(option, prefix="FULMEN", subcommand=subcommand)
    (setting,) = settings_in({variable: value}, [option], prefix="FULMEN", subcommand=subcommand)
    assert setting == Setting(variable, option, value)
    assert setting.argument == f"--{option}={value}"


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), values))
def test_what_belongs_to_others_is_left_alone(environ: dict[str, str]) -> None:
    known = ["trainer.max_epochs", "model.width", "config"]
    for setting in settings_in(environ, known, prefix="FULMEN", subcommand="fit"):
        assert setting.variable.startswith(("FULMEN_FIT__", "FULMEN_TRAINER", "FULMEN_MODEL", "FULMEN_CONFIG"))


def arguments(environ: dict[str, str], subcommand: str | None = "fit") -> list[str]:
    known = ["config", "trainer.max_epochs", "trainer.logger", "model", "hidden_D", "seed_everything"]
    return [one.argument for one in settings_in(environ, known, prefix="FULMEN", subcommand=subcommand)]


def test_files_come_first_then_classes_then_their_arguments_and_the_own_subcommand_last() -> None:
    environ = {
        "FULMEN_FIT__TRAINER__MAX_EPOCHS": "4",
        "FULMEN_TRAINER__MAX_EPOCHS": "3",
        "FULMEN_TRAINER_MAX_EPOCHS": "2",
        "FULMEN_MODEL__WIDTH": "5",
        "FULMEN_MODEL": "my.Net",
        "FULMEN_FIT__CONFIG": "b.yaml",
        "FULMEN_CONFIG": "a.yaml",
    }
    assert arguments(environ) == [
        "--config=a.yaml",
        "--config=b.yaml",
        "--model=my.Net",
        "--trainer.max_epochs=2",
        "--model.width=5",
        "--trainer.max_epochs=3",
        "--trainer.max_epochs=4",
    ]


def test_other_subcommands_seeds_and_empty_ones_are_none_of_ours() -> None:
    environ = {
        "FULMEN_GLOBAL_SEED": "1",
        "FULMEN_SEED_WORKERS": "1",
        "FULMEN_TEST__VERBOSE": "true",
        "FULMEN_TRAINER_SOMETHING_ELSE": "x",
        "FULMEN_MODEL": "",
        "PL_TRAINER__MAX_EPOCHS": "3",
    }
    assert arguments(environ) == []


def test_a_misspelt_one_of_ours_is_not_skipped() -> None:
    assert arguments({"FULMEN_FIT__NOPE": "1"}) == ["--nope=1"]
    assert arguments({"FULMEN_TRAINER__MAX_EPOCH": "1"}) == ["--trainer.max_epoch=1"]


def test_the_spelling_of_a_known_option_is_kept() -> None:
    assert arguments({"FULMEN_HIDDEN_D": "3"}, subcommand=None) == ["--hidden_D=3"]
