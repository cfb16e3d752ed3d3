import ntpath
import posixpath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.checkpoint.filename import check_template, default_template, fill_template, first_free

VALUES = {"epoch": torch.tensor(2), "step": 6, "val_loss": torch.tensor(1.0), "val/loss": torch.tensor(2.0), "a.b": 0.5}

# A colon ends a name in a template, so no drive of Windows can be one.
names = st.text(st.characters(codec="ascii", exclude_characters="{}:![]"), min_size=1)


def leads_down(name):
    return not name.startswith(("/", "\\")) and ".." not in name.replace("\\", "/").split("/")


@given(st.lists(names | st.sampled_from(["..", "../..", "/", "a/../..", "\\", "..\\x"]), min_size=1, max_size=5))
def test_whatever_the_names_are_the_file_is_below_its_folder(logged):
    name = fill_template("/".join(f"{{{name}}}" for name in logged), dict.fromkeys(logged, 1))
    for kind in (posixpath, ntpath):
        assert kind.normpath(kind.join("root", name)).startswith(kind.join("root", ""))


@given(st.lists(st.tuples(names, st.integers()), min_size=1, max_size=5))
def test_every_name_comes_back_with_its_value(pairs):
    values = {name: value for name, value in pairs if leads_down(name)}
    template = "|".join(f"{{{name}}}" for name in values)
    assert fill_template(template, values) == "|".join(f"{name}={value}" for name, value in values.items())
    assert fill_template(template, values, insert_names=False) == "|".join(map(str, values.values()))


@given(st.sets(st.integers(0, 20)))
def test_the_first_free_name_is_free_and_all_before_it_are_taken(taken):
    used = {"m" if version == 0 else f"m-v{version}" for version in taken}
    free = first_free(lambda version: f"m-v{version}" if version else "m", used.__contains__)
    assert free not in used
    number = 0 if free == "m" else int(free[3:])
    assert set(range(number)) <= taken


# The names of the ckpt_filename_* cases of the reference, without extension.
@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        (default_template(), {}, "epoch=2-step=6"),
        ("{epoch:02d}-{val_loss:.2f}", {}, "epoch=02-val_loss=1.00"),
        ("epoch={epoch}-loss={val_loss:.1f}", {"insert_names": False}, "epoch=2-loss=1.0"),
        ("{val/loss:.2f}", {}, "val/loss=2.00"),
        ("l={val/loss:.2f}", {"insert_names": False}, "l=2.00"),
        ("{nope:.2f}-{epoch}", {}, "nope=0.00-epoch=2"),
        ("{step:05d}", {}, "step=00006"),
        ("model", {}, "model"),
        ("sub/{epoch}", {}, "sub/epoch=2"),
        ("{epoch}-{step}-{val_loss}", {}, "epoch=2-step=6-val_loss=1.0"),
        ("{epoch}-last", {"equals": "~"}, "epoch~2-last"),
        (default_template("_"), {"equals": "~"}, "epoch~2_step~6"),
        ("{a.b}", {}, "a.b=0.5"),
        ("{{x}}", {}, "{x}"),
    ],
)
def test_names_are_those_of_the_reference(template, options, expected):
    check_template(template)
    assert fill_template(template, VALUES, **options) == expected


@pytest.mark.parametrize("template", ["{epoch", "epoch}", "{}", "{:.2f}-{epoch}"])
def test_a_template_that_is_none_is_refused_and_quoted(template):
    with pytest.raises(ConfigurationError, match="filename="):
        check_template(template)


def test_a_format_that_does_not_suit_its_value_is_named():
    with pytest.raises(ConfigurationError, match=r"'val_loss' in the format 'd'"):
        fill_template("{val_loss:d}", VALUES)
