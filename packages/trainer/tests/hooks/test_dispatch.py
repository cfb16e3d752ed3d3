import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.hooks.dispatch import Hooks, listened, nobody
from fulmen.trainer.hooks.table import HOOKS, Listener
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.log_call import EPOCH_ONLY, NEVER
from fulmen.trainer.profilers.base import PassThroughProfiler, Profiler


class Heard(Callback):
    """Writes down what it hears, and answers."""

    def __init__(self, name, lines, answer=None, monitors=False):
        self.name, self.lines, self.answer = name, lines, answer
        self.monitors_metrics = monitors

    def on_train_epoch_end(self, trainer, pl_module):
        self.lines.append(self.name)
        return self.answer

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lines.append((self.name, trainer, pl_module, batch, batch_idx))
        return self.answer


class Deaf(Callback):
    """Overrides nothing."""


class Module(BoringModel):
    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def on_train_epoch_end(self):
        self.lines.append("module")


def hooks_of(callbacks, module=None, profiler=None, board=None):
    hooks = Hooks(board or MetricsBoard(), profiler or PassThroughProfiler(), "the trainer", callbacks)
    if module is not None:
        hooks.attach(module, None, None)
    return hooks


@given(st.lists(st.sampled_from(["usual", "monitor", "deaf"]), max_size=6))
def test_monitors_hear_the_end_of_an_epoch_after_the_module_the_others_before(kinds):
    lines = []
    callbacks = [
        Deaf() if kind == "deaf" else Heard(f"{kind} {place}", lines, monitors=kind == "monitor")
        for place, kind in enumerate(kinds)
    ]
    hooks_of(callbacks, Module(lines)).on_train_epoch_end()
    names = [f"{kind} {place}" for place, kind in enumerate(kinds)]
    usual, monitors = ([name for name in names if name.startswith(kind)] for kind in ("usual", "monitor"))
    assert lines == [*usual, "module", *monitors]


@given(st.lists(st.sampled_from([None, -1, 5]), max_size=5))
def test_the_last_answer_that_is_one_counts(answers):
    callbacks = [Heard(str(place), [], answer) for place, answer in enumerate(answers)]
    said = [answer for answer in answers if answer is not None]
    assert hooks_of(callbacks).on_train_batch_start("batch", 3) == (said[-1] if said else None)


def test_a_hook_that_nobody_overrides_can_be_left_out():
    hooks = hooks_of([Deaf()], BoringModel())
    compiled = [name for name, hook in HOOKS.items() if hook.listeners]
    assert {getattr(hooks, name) for name in compiled if not hasattr(BoringModel, name)} == {nobody}
    assert listened(hooks.on_train_batch_start) is None
    assert nobody(1, two=3) is None


def test_callbacks_get_trainer_and_module_the_module_gets_neither():
    lines, module = [], Module([])
    hooks_of([Heard("cb", lines)], module).on_train_batch_start("batch", 3)
    assert lines == [("cb", "the trainer", module, "batch", 3)]


def test_while_a_hook_runs_the_board_knows_which_and_what_it_may_log():
    board, seen = MetricsBoard(), []

    class Asking(Deaf):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((board.hook, board.rule))

    hooks = hooks_of([Asking()], board=board)
    with hooks.inside("on_fit_start"):
        hooks.on_train_epoch_end()
        assert (board.hook, board.rule) == ("on_fit_start", NEVER)
    assert seen == [("on_train_epoch_end", EPOCH_ONLY)]


def test_a_profiler_times_each_listener_by_its_own_name():
    class Noting(Profiler):
        def __init__(self):
            super().__init__()
            self.started = []

        def start(self, action_name):
            self.started.append(action_name)

        def stop(self, action_name): ...

    profiler = Noting()
    hooks = hooks_of([Heard("a", [])], Module([]), profiler)
    hooks.on_train_epoch_end()
    hooks.step("training_step", lambda: None)()
    hooks.module_method("optimizer_zero_grad")
    assert profiler.started == [
        "[Callback]Heard.on_train_epoch_end",
        "[LightningModule]Module.on_train_epoch_end",
        "[Strategy]NoneType.training_step",
    ]


def test_a_profiler_times_the_wait_for_each_item_and_without_one_nothing_is_between():
    class Noting(Profiler):
        def __init__(self):
            super().__init__()
            self.heard = []

        def start(self, action_name):
            self.heard.append(f"+{action_name}")

        def stop(self, action_name):
            self.heard.append(f"-{action_name}")

    def items():
        for item in "ab":
            profiler.heard.append(f"makes {item}")
            yield item

    profiler = Noting()
    for item in hooks_of([], profiler=profiler).timed_items("next", items()):
        profiler.heard.append(f"has {item}")
    assert profiler.heard == [
        *("+next", "makes a", "-next", "has a"),
        *("+next", "makes b", "-next", "has b"),
        *("+next", "-next"),
    ]
    assert hooks_of([], profiler=profiler).are_timed
    assert not hooks_of([]).are_timed
    whatever = items()
    assert hooks_of([]).timed_items("next", whatever) is whatever
    assert hooks_of([]).timed("next", items) is items


def test_one_group_can_be_called_alone():
    lines = []
    hooks = hooks_of([Heard("cb", lines)], Module(lines))
    hooks.fire_group(Listener.MODULE, "on_train_epoch_end")
    assert lines == ["module"]
    assert len(hooks.calls(Listener.CALLBACKS, "on_train_epoch_end")) == 1


def test_callbacks_that_come_later_are_heard_after_compiling():
    lines = []
    hooks = hooks_of([])
    hooks.callbacks.append(Heard("late", lines))
    hooks.on_train_epoch_end()
    assert lines == []
    hooks.compile()
    hooks.on_train_epoch_end()
    assert lines == ["late"]


def test_hooks_travel_to_another_process():
    hooks = pickle.loads(pickle.dumps(hooks_of([Heard("cb", [])])))
    hooks.on_train_epoch_end()
    assert hooks.callbacks[0].lines == ["cb"]


def test_there_are_no_other_hooks():
    with pytest.raises(AttributeError, match="There is no hook named 'on_lunch'"):
        hooks_of([]).on_lunch()
