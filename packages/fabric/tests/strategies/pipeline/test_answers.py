"""What the last stage gives, known to all: forms of values, and how often one is sent."""

import dataclasses
import os
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.strategies.pipeline.answers import Answers, form_of

CPU = torch.device("cpu")
_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
_shapes = st.lists(st.integers(0, 3), max_size=3)
_leaves = st.one_of(
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.builds(
        lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
        _shapes,
        st.sampled_from(_DTYPES),
        st.integers(0, 5),
    ),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=8,
)


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_equal(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


@given(_trees)
def test_a_value_is_read_as_it_was_written(value):
    form, values = form_of(value)
    assert form_of(value)[0] == form
    assert_equal(form.read(form.write(values, CPU), CPU), value)


@given(_trees, _trees)
def test_values_of_one_form_are_read_by_it_alone(one, other):
    form, _ = form_of(one)
    another, values = form_of(other)
    if form == another:
        assert_equal(form.read(another.write(values, CPU), CPU), other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("a", "b"),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ([1], (1,)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 1}, {"b": 1, "a": 1}),
        (2**70, 2**70),  # too large for the bytes
        (torch.zeros(2).to_sparse(), torch.zeros(2).to_sparse()),
        (object, object()),
    ],
)
def test_what_may_differ_in_more_than_numbers_is_another_form(one, other):
    assert form_of(one)[0] != form_of(other)[0]


def test_numbers_alone_make_no_other_form():
    one = {"loss": torch.tensor(1.0), "logged": [("loss", torch.tensor(2.0), {"reduce_fx": max, "batch_size": 3})]}
    other = {"loss": torch.tensor(3.0), "logged": [("loss", torch.tensor(4.0), {"reduce_fx": max, "batch_size": 5})]}
    assert form_of(one)[0] == form_of(other)[0]


def test_a_tensor_that_waits_for_its_conjugate_is_sent_as_it_is_read():
    value = torch.tensor([1 + 2j]).conj()
    form, values = form_of(value)
    assert torch.equal(form.read(form.write(values, CPU), CPU), value)


# ---- two processes


@dataclasses.dataclass
class Own:
    """Of a class of the user's."""

    text: str


GIVEN = [
    {"loss": torch.tensor(1.5), "n": 3},
    {"loss": torch.tensor(2.5), "n": 4},
    {"loss": torch.tensor(3.5, dtype=torch.float64), "n": 4},  # another form
    {"loss": torch.tensor(4.5, dtype=torch.float64), "n": 5},
    [Own("one"), torch.ones(2)],  # never the same form
    [Own("two"), torch.ones(2)],
    None,
    None,
    torch.tensor([True, False], requires_grad=False),
]
PICKLED = [True, False, True, False, True, True, True, False, True]


def both(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    pickled, original = [], dist.broadcast_object_list
    dist.broadcast_object_list = lambda *args, **kwargs: (pickled.append(True), original(*args, **kwargs))
    answers = Answers(dist.group.WORLD, 1, CPU, CPU)
    seen = []
    for value in GIVEN:
        pickled.clear()
        seen.append((answers.share("training_step", value if rank else None), bool(pickled)))
    kinds = [
        answers.share(kind, [kind] if rank else None) for _ in range(2) for kind in range(40)
    ]  # more than are kept
    assert kinds == [[kind] for kind in range(40)] * 2
    return seen


def work(rank, folder):
    torch.set_num_threads(1)
    try:
        found = both(rank, folder)
    except BaseException:
        found = traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)


def test_the_form_is_sent_when_it_is_new_and_numbers_for_each_batch(tmp_path):
    torch.multiprocessing.start_processes(work, args=(tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert isinstance(found, list), found
        assert [was_pickled for _, was_pickled in found] == PICKLED
        for (value, _), expected in zip(found, GIVEN, strict=True):
            assert_equal(value, expected)
