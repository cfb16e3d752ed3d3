from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ArgumentTypeError, MisconfigurationException
from fulmen.trainer.metrics.log_call import EPOCH, EPOCH_ONLY, NEVER, STEP, decide

USUAL = {
    "prog_bar": False,
    "logger": None,
    "on_step": None,
    "on_epoch": None,
    "reduce_fx": "mean",
    "enable_graph": False,
    "sync_dist": False,
    "add_dataloader_idx": True,
    "dataloader_idx": None,
    "rank_zero_only": False,
}
OPEN = st.sampled_from([None, True, False])


def three_sentences(error):
    return str(error.value).count(". ") >= 2 and str(error.value).endswith((".", "(...)."))


@given(rule=st.sampled_from([STEP, EPOCH, EPOCH_ONLY]), on_step=OPEN, on_epoch=OPEN)
def test_what_is_said_holds_and_what_is_open_is_the_rules(rule, on_step, on_epoch):
    step = rule.on_step if on_step is None else on_step
    epoch = rule.on_epoch if on_epoch is None else on_epoch
    possible = (step or epoch) and (rule.allow_step or not step)
    try:
        call = decide(rule, "hook", "a", **{**USUAL, "on_step": on_step, "on_epoch": on_epoch})
    except MisconfigurationException:
        assert not possible
    else:
        assert possible
        assert (call.on_step, call.on_epoch) == (step, epoch)


@given(name=st.text().filter(lambda name: "/dataloader_idx_" not in name), loader=st.none() | st.integers(0, 9))
def test_names_of_step_and_epoch_differ_and_tell_the_loader(name, loader):
    usual = {**USUAL, "on_step": True, "on_epoch": True, "dataloader_idx": loader}
    call = decide(STEP, "training_step", name, **usual)
    assert len({call.plain_name, call.step_name, call.epoch_name}) == 3
    ending = "" if loader is None else f"/dataloader_idx_{loader}"
    assert (call.step_name, call.epoch_name) == (f"{name}_step{ending}", f"{name}_epoch{ending}")


@pytest.mark.parametrize(
    ("rule", "name", "change", "quoted"),
    [
        (NEVER, "a", {}, "self.log('a', ...) was called in `on_fit_start`, where it is not allowed"),
        (STEP, "a", {"on_step": False, "on_epoch": False}, "on_step=False, on_epoch=False"),
        (STEP, "a", {"on_step": False}, "on_step=False"),
        (EPOCH_ONLY, "a", {"on_step": True}, "on_step=True"),
        (EPOCH_ONLY, "a", {"on_epoch": False}, "on_epoch=False"),
        (STEP, "a", {"reduce_fx": "foo"}, "reduce_fx='foo'"),
        (STEP, "a", {"reduce_fx": torch.median}, "reduce_fx=<built-in method median"),
        (STEP, "a", {"reduce_fx": ["mean"]}, "reduce_fx=['mean']"),
        (STEP, "a/dataloader_idx_0", {}, "'a/dataloader_idx_0'"),
    ],
)
def test_what_cannot_be_is_answered_in_three_sentences(rule, name, change, quoted):
    with pytest.raises(MisconfigurationException) as raised:
        decide(rule, "on_fit_start", name, **{**USUAL, **change})
    assert quoted in str(raised.value)
    assert three_sentences(raised)


def test_a_name_that_is_no_string():
    with pytest.raises(ArgumentTypeError, match="int as its name") as raised:
        decide(STEP, "training_step", 3, **USUAL)
    assert three_sentences(raised)


@pytest.mark.parametrize("hook", ["predict_step", ""])
def test_where_it_cannot_be_logged_is_said(hook):
    with pytest.raises(MisconfigurationException, match="Predicting" if hook else "outside of the hooks of a run"):
        decide(NEVER, hook, "a", **USUAL)


def test_values_of_rank_zero_alone_are_not_joined():
    for sync, alone in product([True, False], repeat=2):
        call = decide(STEP, "training_step", "a", **{**USUAL, "sync_dist": sync, "rank_zero_only": alone})
        assert call.sync_dist == (sync and not alone)
