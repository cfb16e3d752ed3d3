import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.strategies.plan import Plan, parse_style


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(4, 8), nn.Linear(8, 4), nn.LayerNorm(4)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(4, 2)


NAMES = [name for name, _ in Net().named_modules() if name]
PARAMETERS = [name for name, _ in Net().named_parameters()]


def matched(styles):
    return Plan(styles).match(Net())


@given(st.sampled_from(NAMES), st.data())
def test_stars_in_place_of_any_part_of_a_name_find_it(name, data):
    parts = [data.draw(st.sampled_from([part, "*", part[0] + "*", "**"])) for part in name.split(".")]
    assert name in matched({".".join(parts): "replicate"}).tensors


@given(st.sampled_from(PARAMETERS))
def test_the_name_of_a_parameter_stands_for_its_module(name):
    assert list(matched({name: "replicate"}).tensors) == [name.rpartition(".")[0]]


def test_a_star_stands_for_no_dot():
    assert list(matched({"blocks.*.up": "column"}).tensors) == ["blocks.0.up", "blocks.1.up"]
    with pytest.raises(ConfigurationError, match="names nothing"):
        matched({"blocks.*up": "column"})
    assert list(matched({"**.up": "column"}).tensors) == ["blocks.0.up", "blocks.1.up"]


def test_units_are_modules_with_a_forward():
    assert matched({"**": "shard"}).units == (
        *("blocks.0", "blocks.0.up", "blocks.0.down", "blocks.0.norm"),
        *("blocks.1", "blocks.1.up", "blocks.1.down", "blocks.1.norm", "head"),
    )


def test_a_pattern_that_names_nothing_names_the_nearest():
    with pytest.raises(ConfigurationError) as raised:
        matched({"block.*.up": "column"})
    assert str(raised.value).startswith("ModelParallelStrategy(plan={'block.*.up': 'column'}) names nothing in Net.")
    assert "The nearest names are 'blocks.*.up'" in str(raised.value)


def test_a_part_is_split_in_one_way():
    with pytest.raises(ConfigurationError, match=r"'\*\*.up': 'column', 'blocks.0.up': 'row'.*two ways"):
        matched({"**.up": "column", "blocks.0.up": "row"})
    both = matched({"**.up": "column", "blocks.*.up": "column", "blocks.*": "shard"})
    assert (len(both.tensors), both.units) == (2, ("blocks.0", "blocks.1"))


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        ("column", ("column", "whole", "features")),
        ("row", ("row", None, "whole")),
        ("sequence", ("sequence", "sequence", "sequence")),
        ("replicate", ("replicate", "whole", "whole")),
        ("sequence > column", ("column", "sequence", "features")),
        ("row>sequence", ("row", None, "sequence")),
        ("sequence > column > whole", ("column", "sequence", "whole")),
        ("whole > replicate > sequence", ("replicate", "whole", "sequence")),
        ("shard", ("shard", None, None)),
    ],
)
def test_a_style_says_how_tensors_come_and_leave(text, flow):
    style = parse_style("up", text)
    assert (style.kind, style.source, style.target) == flow


@pytest.mark.parametrize(
    "text", ["", "colum", "column > row", "sequence > sequence", "shard > whole", "a > row", "> row"]
)
def test_a_style_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="has a style that is unknown"):
        parse_style("up", text)


def test_a_spelling_is_mended():
    with pytest.raises(ConfigurationError, match="did you mean 'column'"):
        parse_style("up", "colum")


def test_a_style_of_torch_stays_as_it_is():
    from torch.distributed.tensor.parallel import ColwiseParallel

    own = ColwiseParallel()
    assert parse_style("up", own).own is own


@pytest.mark.parametrize(
    ("styles", "kind"),
    [
        (["up"], ArgumentTypeError),
        ({}, ConfigurationError),
        ({3: "row"}, ArgumentTypeError),
        ({"up": 3}, ArgumentTypeError),
        ({"up": None}, ArgumentTypeError),
    ],
)
def test_a_plan_is_a_dictionary_of_texts(styles, kind):
    with pytest.raises(kind, match="plan="):
        Plan(styles)


def test_only_columns_rows_and_sequences_split_tensors():
    assert not Plan({"**": "shard", "head": "replicate"}).splits_tensors
    for style in ("column", "row", "sequence"):
        assert Plan({"head": style}).splits_tensors
