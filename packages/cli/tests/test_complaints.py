import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.cli.complaints import Kind, read_complaint

UNION = """Parser key "{key}":
  Does not validate against any of the Union subtypes
  Subtypes: [{types}]
  Errors:
    - {first}
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: {value}"""

names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@given(st.text())
def test_any_text_is_some_complaint(text: str) -> None:
    assert read_complaint(text).kind in Kind


@given(names, names, st.text("abc{}[]:' ", min_size=1).map(str.strip).filter(bool))
def test_a_wrong_type_has_its_place_and_its_value(group: str, name: str, value: str) -> None:
    types = "<class 'int'>, <class 'NoneType'>"
    message = UNION.format(key=f"{group}.{name}", types=types, first="Expected a <class 'int'>", value=value)
    complaint = read_complaint(message)
    assert (complaint.kind, complaint.path) == (Kind.WRONG_TYPE, f"{group}.{name}")
    assert (complaint.value, complaint.wanted) == (value, ("int", "null"))


@given(st.lists(names, min_size=1, max_size=4), names)
def test_an_unknown_argument_is_found_below_any_number_of_classes(classes: list[str], unknown: str) -> None:
    message = f"Option '{unknown}' is not accepted"
    for cls in reversed(classes):
        indented = message.replace("\n", "\n        ")
        first = f"Problem with given class_path 'm.{cls}':\n        {indented}"
        message = UNION.format(key=f"k_{cls}", types="<class 'm.Base'>, <class 'NoneType'>", first=first, value="x")
    complaint = read_complaint(message)
    assert (complaint.kind, complaint.name, complaint.class_path) == (Kind.UNKNOWN_KEY, unknown, f"m.{classes[-1]}")
    assert complaint.path == ".".join(f"k_{cls}.init_args" for cls in classes) + f".{unknown}"


@pytest.mark.parametrize(
    ("message", "kind", "name"),
    [
        ("unrecognized arguments: --nope=1 x", Kind.UNKNOWN_FLAG, "--nope=1 x"),
        ("Subcommand 'fit' does not accept option 'trainer.max_epoch'", Kind.UNKNOWN_KEY, "trainer.max_epoch"),
        ("argument subcommand: invalid choice: 'fitt' (choose from 'fit')", Kind.UNKNOWN_COMMAND, "fitt"),
        ('expected "subcommand" to be one of {fit,test}, but it was not provided.', Kind.NO_COMMAND, ""),
        ("the following arguments are required: fit.model", Kind.MISSING, "fit.model"),
        ("argument --data: expected one argument", Kind.NO_VALUE, "--data"),
        ("Parser key \"config\": File does not exist: '/a/b.yaml'", Kind.NO_FILE, "/a/b.yaml"),
        ("Problems parsing config: mapping values are not allowed", Kind.NO_YAML, "mapping values are not allowed"),
    ],
)
def test_plain_messages(message: str, kind: Kind, name: str) -> None:
    complaint = read_complaint(message)
    assert (complaint.kind, complaint.name) == (kind, name)


def test_all_words_of_a_literal_are_wanted() -> None:
    types = "typing.Literal[64, 32], typing.Literal['16-mixed', 'bf16'], <class 'NoneType'>"
    complaint = read_complaint(UNION.format(key="p", types=types, first="Expected a typing.Literal[64, 32]", value="1"))
    assert complaint.wanted == ("64", "32", "'16-mixed'", "'bf16'", "null")


def test_what_stands_below_a_plain_value_is_unknown() -> None:
    value = "NestedArg(key='foo', val='3')"
    message = UNION.format(
        key="trainer.accelerator", types="<class 'str'>", first="Expected a <class 'str'>", value=value
    )
    complaint = read_complaint(message)
    assert (complaint.kind, complaint.path) == (Kind.UNKNOWN_KEY, "trainer.accelerator.foo")
