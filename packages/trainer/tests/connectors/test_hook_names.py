import warnings
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.connectors.hook_names import NoHookError, check_hook_names, misspelt
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.hooks.table import HOOKS

SHARED = "teardown"


def owner(base=LightningModule, **methods):
    return type("Owner", (base,), methods)()


def nothing(self, *_): ...


@cache
def edits(a, b):
    """Letters to insert, delete, replace or swap: the slow way."""
    if not a or not b:
        return len(a) + len(b)
    best = min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))
    if len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0]:
        best = min(best, edits(a[2:], b[2:]) + 1)
    return best


@given(st.text("ab_", min_size=1, max_size=6), st.text("ab_", min_size=1, max_size=6))
def test_a_misspelling_is_two_edits_away_at_most(name, hook):
    found = misspelt(type("Any", (), {f"x{name}": nothing})(), f"x{hook}")
    assert (found is not None) == (edits(name, hook) <= 2)


@pytest.mark.parametrize("base", [LightningModule, LightningDataModule, Callback])
@pytest.mark.parametrize("name", sorted(HOOKS))
def test_every_hook_is_one(base, name):
    if hasattr(base, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_hook_names(owner(base, **{name: nothing}))


@pytest.mark.parametrize("base", [LightningModule, LightningDataModule, Callback])
def test_a_typing_error_is_told_with_the_name_that_is_meant(base):
    hook = "on_exception" if base is LightningDataModule else "on_train_start"
    if hasattr(base, hook):
        with pytest.raises(NoHookError, match=rf"Owner\.{hook}e\(\) is no hook.*The nearest hook is {hook}\(\)"):
            check_hook_names(owner(base, **{f"{hook}e": nothing}))


def test_methods_of_bases_count_once_and_ours_never():
    class Base(LightningModule):
        def on_train_epoch_ends(self): ...

    with pytest.raises(NoHookError, match=r"Base\.on_train_epoch_ends"):
        check_hook_names(type("Derived", (Base,), {})())
    check_hook_names(object())


@pytest.mark.parametrize("how", ["method", "property", "nested", "static"])
def test_who_calls_a_method_of_ones_own_is_right(how):
    class Calls(LightningModule):
        def on_train_epoch_ends(self): ...

    caller = {
        "method": lambda self: self.on_train_epoch_ends(),
        "property": property(lambda self: self.on_train_epoch_ends()),
        "nested": lambda self: [self.on_train_epoch_ends() for _ in range(2)],
        "static": staticmethod(lambda module: module.on_train_epoch_ends()),
    }[how]
    check_hook_names(type("Calling", (Calls,), {"mine": caller})())


def test_calling_oneself_in_a_base_class_is_no_call():
    class Base(LightningModule):
        def training_epoch_end(self, outputs): ...

    class Derived(Base):
        def training_epoch_end(self, outputs):
            super().training_epoch_end(outputs)

    with pytest.raises(NoHookError, match=r"training_epoch_end\(\) is a hook of PyTorch Lightning 1"):
        check_hook_names(Derived())


def test_far_names_and_attributes_are_nobodys_business():
    module = owner(on_my_own_event=nothing, training_steps_done=nothing, on_train_starts=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_hook_names(module)
