import pytest

from fulmen.fabric.enums import LightningEnum


class Mode(LightningEnum):
    LOW = "min"
    HIGH = "Max"


@pytest.mark.parametrize("text", ["min", "MIN", Mode.LOW])
def test_case_does_not_matter(text):
    assert text == Mode.LOW
    assert text != Mode.HIGH
    assert {Mode.LOW: 1}["min"] == 1
    assert hash(Mode.HIGH) == hash("max")
    assert Mode.LOW != 3


@pytest.mark.parametrize(
    ("text", "source", "member"),
    [
        ("low", "key", Mode.LOW),
        ("MAX", "value", Mode.HIGH),
        ("high", "any", Mode.HIGH),
        ("min", "any", Mode.LOW),
        ("min", "key", None),
        ("low", "value", None),
    ],
)
def test_members_are_found_by_name_and_value(text, source, member):
    assert Mode.try_from_str(text, source) is member
    if member is None:
        with pytest.raises(ValueError, match=f"Mode.from_str\\('{text}'"):
            Mode.from_str(text, source)
    else:
        assert Mode.from_str(text, source) is member
