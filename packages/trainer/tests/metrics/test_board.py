"""What is seen of logged values, where and when: each test is a row of facts.yaml, or a law."""

import ast
import re

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.hooks.table import HOOKS
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.metrics.log_call import STEP
from fulmen.trainer.stages import Stage

VIEWS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def arguments_of(text):
    """`train_step log(on_step=None, ...)` to the step and a dict."""
    step, call = text.split(" log(")
    return step, {item.split("=")[0]: ast.literal_eval(item.split("=")[1]) for item in call.rstrip(")").split(", ")}


def carry_out(run_type, step, user_log):
    if step == "train_step":
        run = run_type({"training_step": lambda board, epoch, index: user_log(board, index)})
        return run, lambda: run.fit()
    names = {"val_step": "validation_step", "validate_step": "validation_step", "test_step": "test_step"}
    run = run_type({names[step]: lambda board, epoch, index, loader: user_log(board, index)})
    if step == "val_step":
        return run, lambda: run.fit(val_batches=2)
    stage = Stage.TEST if step == "test_step" else Stage.VALIDATE
    return run, lambda: run.evaluate(stage, [2])


def test_each_combination_of_arguments(combination, run_type):
    text, fact = combination
    step, kwargs = arguments_of(text)
    run, go = carry_out(run_type, step, lambda board, index: board.log("a", torch.tensor(index + 1.0), **kwargs))
    if "raises" in fact:
        with pytest.raises(MisconfigurationException):
            go()
        return
    go()
    assert run.seen() == {view: fact[view] for view in VIEWS}
    assert run.logger.rows == fact["sent_to_logger"]
    if "returned" in fact:
        assert run.returned == ast.literal_eval(fact["returned"])


MOMENTS = {
    "moments_train": ({"on_step": True, "on_epoch": True, "prog_bar": True}, "training_step"),
    "moments_train_epoch_only": ({"on_step": False, "on_epoch": True, "prog_bar": True}, "training_step"),
    "moments_val": ({"prog_bar": True}, "validation_step"),
    "moments_val_both": ({"prog_bar": True, "on_step": True, "on_epoch": True}, "validation_step"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_each_moment(name, run_type, facts):
    kwargs, where = MOMENTS[name]
    fact, seen = facts[name], {}
    if where == "training_step":
        user = {where: lambda board, epoch, index: board.log("a", torch.tensor(10.0 * epoch + index + 1), **kwargs)}
    else:
        user = {where: lambda board, epoch, index, loader: board.log("a", torch.tensor(index + 1.0), **kwargs)}

    def look(hook):
        def callback(board, epoch, index=None, loader=None):
            batch = "" if index is None else f"batch {index} "
            seen[f"{hook} {batch}epoch {epoch}"] = run.seen()

        return callback

    for moment in fact["moments"]:
        user.setdefault(moment.split()[0], look(moment.split()[0]))
    run = run_type(user)
    if where == "training_step":
        run.fit(epochs=2)
    else:
        run.fit(val_batches=2)
    assert {moment: seen[moment] for moment in fact["moments"]} == fact["moments"]
    assert run.seen() == fact["after"]
    assert run.logger.rows == fact["sent_to_logger"]


def test_without_a_logger(run_type, facts):
    run = run_type(
        {"training_step": lambda board, epoch, index: board.log("a", index + 1.0, prog_bar=True)}, logger=False
    )
    run.fit()
    assert run.seen() == facts["logger_false"]["after"]


def test_every_second_step_goes_to_loggers(run_type, facts):
    fact = facts["log_every_n_steps_2"]
    run = run_type({"training_step": lambda board, epoch, index: board.log("a", 10.0 * epoch + index + 1)}, log_every=2)
    run.fit(epochs=2)
    assert run.seen() == fact["after"]
    assert run.logger.rows == fact["sent_to_logger"]


def test_the_axis_of_evaluation_steps(run_type, facts):
    user = {"validation_step": lambda board, epoch, index, loader: board.log("a", index + 1.0, on_step=True)}
    run = run_type(user)
    for _ in range(2):
        run.board.reset()
        run.evaluate(Stage.VALIDATE, [2])
    assert run.logger.rows == facts["validate_on_step_steps"]["sent_to_logger"]
    assert run_type(user).fit(epochs=2, val_batches=2).logger.rows == facts["fit_val_on_step_steps"]["sent_to_logger"]


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_a_metric_with_the_name_of_an_axis(name, run_type, facts):
    run = run_type({"training_step": lambda board, epoch, index: board.log(name, 100.0 + index)}).fit()
    assert run.logger.rows == facts[f"log_of_a_metric_called_{name}"]


class TestSeveralLoaders:
    def of_loader(self, index, loader):
        return [[1.0, 2.0], [11.0]][loader][index]

    def test_names_are_kept_apart(self, run_type, facts):
        fact = facts["several_loaders"]["validate, add_dataloader_idx=True"]
        run = run_type(
            {"validation_step": lambda board, epoch, i, k: board.log("a", self.of_loader(i, k), on_step=True)}
        )
        run.evaluate(Stage.VALIDATE, [2, 1])
        seen = run.seen()
        assert seen["callback_metrics"] == fact["callback_metrics"]
        assert seen["logged_metrics"] == fact["logged_metrics"]
        assert [str(one) for one in run.returned] == fact["returned (one dict a loader)"]
        assert run.logger.rows == fact["sent_to_logger"]

    def test_names_of_the_users_own(self, run_type, facts):
        fact = facts["several_loaders"]["validate, add_dataloader_idx=False, name made unique by the user"]
        run = run_type(
            {
                "validation_step": lambda board, epoch, i, k: board.log(
                    f"a_of_{k}", self.of_loader(i, k), add_dataloader_idx=False
                )
            }
        )
        run.evaluate(Stage.VALIDATE, [2, 1])
        assert run.seen()["callback_metrics"] == fact["callback_metrics"]
        assert run.seen()["logged_metrics"] == fact["logged_metrics"]
        assert [str(one) for one in run.returned] == fact["returned (one dict a loader)"]
        assert run.logger.rows == fact["sent_to_logger"]

    def test_one_name_for_both_is_refused(self, run_type):
        run = run_type({"validation_step": lambda board, e, i, k: board.log("a", 1.0, add_dataloader_idx=False)})
        with pytest.raises(MisconfigurationException, match=r"for the dataloaders 0 and 1"):
            run.evaluate(Stage.VALIDATE, [2, 1])

    @pytest.mark.parametrize("several", [True, False])
    def test_what_the_epochs_end_logs_belongs_to_all(self, several, run_type, facts):
        label = (
            "logged in on_validation_epoch_end too" if several else "one loader, logged in on_validation_epoch_end too"
        )
        fact = facts["several_loaders"][label]
        value = (lambda i, k: [1.0, 11.0][k]) if several else (lambda i, k: i + 1.0)
        run = run_type(
            {
                "validation_step": lambda board, epoch, i, k: board.log("a", value(i, k)),
                "on_validation_epoch_end": lambda board, epoch: board.log("whole", 5.0),
            }
        )
        run.evaluate(Stage.VALIDATE, [2, 1] if several else [2])
        assert run.seen()["callback_metrics"] == fact["callback_metrics"]
        assert [str(one) for one in run.returned] == fact["returned"]


KINDS = {
    "default": {},
    "on_step=True": {"on_step": True},
    "on_epoch=True": {"on_epoch": True},
    "both": {"on_step": True, "on_epoch": True},
    "neither": {"on_step": False, "on_epoch": False},
}


def names_after_logging_in(hook, kwargs, run_type):
    run = run_type({hook: lambda board, *_: board.log("a", 1.0, **kwargs)})
    if "predict" in hook:
        run.predict()
    elif "test" in hook:
        run.board.reset()
        run.evaluate(Stage.TEST, [2])
    else:
        run.fit(val_batches=2)
        # Hooks of which this run has none, such as on_save_checkpoint, come with their rule only.
        if not run.board.callback_metrics:
            run.fire(hook)
    return " ".join(sorted(run.board.callback_metrics))


def check_hook(hook, fact, run_type):
    for kind, outcome in fact.items():
        if outcome.startswith("raises"):
            with pytest.raises(MisconfigurationException, match=r"^self\.log\('a', "):
                names_after_logging_in(hook, KINDS[kind], run_type)
        else:
            assert names_after_logging_in(hook, KINDS[kind], run_type) == outcome, kind


def test_each_hook_of_a_module(module_hook, run_type):
    check_hook(*module_hook, run_type)


def test_each_hook_of_a_callback(callback_hook, run_type):
    check_hook(*callback_hook, run_type)


REDUCTIONS = {"torch.mean": torch.mean, "torch.sum": torch.sum, "builtin max": max, "median callable": torch.median}


@pytest.mark.parametrize("python_numbers", [True, False])
@pytest.mark.parametrize(
    "name", ["mean", "sum", "min", "max", "torch.mean", "torch.sum", "builtin max", "prod", "median callable"]
)
def test_each_reduction(name, python_numbers, run_type, facts):
    fact, values = facts["reductions"][name], [1.0, 2.0, 6.0]

    def step(board, epoch, index):
        value = values[index] if python_numbers else torch.tensor(values[index])
        board.log("a", value, on_step=False, on_epoch=True, reduce_fx=REDUCTIONS.get(name, name))

    run = run_type({"training_step": step})
    if isinstance(fact, str):
        with pytest.raises(MisconfigurationException, match="'mean', 'sum', 'min' and 'max'"):
            run.fit(batches=3)
    else:
        assert run.fit(batches=3).seen()["callback_metrics"] == fact


@pytest.mark.parametrize("name", ["mean", "sum"])
def test_batch_sizes_weigh_means_only(name, run_type, facts):
    def step(board, epoch, index):
        size = [1, 1, 2][index]
        board.log("a", [1.0, 2.0, 6.0][index], on_step=False, on_epoch=True, reduce_fx=name, batch_size=size)

    run = run_type({"training_step": step}).fit(batches=3)
    assert run.seen()["callback_metrics"] == facts["reductions"][f"{name} with batch_size 1,1,2"]


VALUES = {
    "float": 1.5,
    "int": 3,
    "bool": True,
    "tensor[]": torch.tensor(2.0),
    "tensor[1]": torch.tensor([2.0]),
    "tensor[2]": torch.tensor([1.0, 2.0]),
    "int tensor": torch.tensor(3),
    "str": "x",
    "None": None,
    "list": [1.0],
    "numpy float": np.float64(2.0),
    "dict": {"b": 1},
    "half tensor": torch.tensor(1.0, dtype=torch.float16),
    "tensor requiring grad": torch.tensor(1.0, requires_grad=True),
    "int with on_epoch": 3,
}


@pytest.mark.filterwarnings("ignore:.*It is kept as float32")
@pytest.mark.parametrize("on_epoch", [True, False])
@pytest.mark.parametrize("name", VALUES)
def test_each_kind_of_value(name, on_epoch, run_type, facts):
    fact = facts["values"][name]
    run = run_type({"training_step": lambda board, e, i: board.log("a", VALUES[name], on_epoch=on_epoch)})
    if isinstance(fact, str):
        with pytest.raises(ConfigurationError, match=r"^self\.log\('a', .*\. .*\. .*\.$"):
            run.fit()
        return
    value = run.fit().board.callback_metrics["a"]
    shown = f"Tensor {value.dtype} shape={list(value.shape)} value={value.item()}"
    assert shown == fact["a"]
    assert not value.requires_grad


class TestNames:
    @pytest.mark.parametrize("hook", ["training_step"])
    def test_slash(self, hook, run_type, facts):
        run = run_type({hook: lambda board, e, i: board.log("a/b", 1.0, on_step=True, on_epoch=True)}).fit()
        assert run.seen()["callback_metrics"] == facts["names"]["slash"]

    @pytest.mark.parametrize("name", [3, ["a"], None])
    def test_no_string(self, name, run_type):
        with pytest.raises(TypeError, match=r"as its name\. Metrics are found again by their name") as raised:
            run_type({"training_step": lambda board, e, i: board.log(name, 1.0)}).fit()
        assert isinstance(raised.value, MisconfigurationException)

    def test_the_loaders_ending(self, run_type):
        with pytest.raises(MisconfigurationException, match="holds '/dataloader_idx_'"):
            run_type({"training_step": lambda board, e, i: board.log("a/dataloader_idx_0", 1.0)}).fit()

    def test_twice_in_one_hook(self, run_type, facts):
        def twice(board, epoch, index):
            board.log("a", 1.0)
            board.log("a", 2.0)

        fact = facts["names"]["same name twice in the same hook with the same arguments"]
        assert run_type({"training_step": twice}).fit().seen()["callback_metrics"] == fact

    def test_twice_in_one_hook_with_other_arguments(self, run_type):
        def twice(board, epoch, index):
            board.log("a", 1.0)
            board.log("a", 2.0, on_epoch=True)

        with pytest.raises(MisconfigurationException, match="other arguments: on_epoch=True after False"):
            run_type({"training_step": twice}).fit()

    def test_the_same_arguments_in_other_words(self, run_type):
        def twice(board, epoch, index):
            board.log("a", 1.0, reduce_fx=torch.mean)
            board.log("a", 2.0, on_step=True, on_epoch=False, logger=True)

        assert run_type({"training_step": twice}).fit().seen()["callback_metrics"] == {"a": 2.0}

    def test_a_forked_name_and_one_half_by_hand(self, run_type, facts):
        def both(board, epoch, index):
            board.log("a", 1.0, on_step=True, on_epoch=True)
            board.log("a_step", 7.0)

        fact = facts["names"]["a (forked) and a_step by hand"]
        assert run_type({"training_step": both}).fit().seen()["callback_metrics"] == fact


METRIC_KINDS = {
    "object both": {"on_step": True, "on_epoch": True},
    "object default": {},
    "object epoch": {"on_step": False, "on_epoch": True},
    "reduce_fx with a metric object": {"on_step": True, "on_epoch": True, "reduce_fx": "sum"},
}


class TestMetricObjects:
    def module(self):
        module = torch.nn.Module()
        module.m = torchmetrics.MeanMetric()
        return module

    @pytest.mark.parametrize("kind", METRIC_KINDS)
    def test_each_kind(self, kind, run_type, facts):
        module = self.module()

        def step(board, epoch, index):
            module.m(torch.tensor(index + 1.0))
            board.log("m", module.m, **METRIC_KINDS[kind])

        run = run_type({"training_step": step}, module=module).fit(epochs=2)
        assert run.seen()["callback_metrics"] == facts["torchmetrics"][kind]

    def test_the_value_of_forward(self, run_type, facts):
        module = self.module()

        def step(board, epoch, index):
            board.log("m", module.m(torch.tensor(index + 1.0)), on_step=True, on_epoch=True)

        run = run_type({"training_step": step}, module=module).fit(epochs=2)
        assert run.seen()["callback_metrics"] == facts["torchmetrics"]["value of forward"]

    def test_a_collection_is_many(self, run_type):
        collection = torchmetrics.MetricCollection({"x": torchmetrics.MeanMetric()})
        with pytest.raises(ValueError, match="log_dict"):
            run_type({"training_step": lambda board, e, i: board.log("p", collection)}).fit()

    def test_one_that_is_no_part_of_the_module(self, run_type):
        stray = torchmetrics.MeanMetric()
        run = run_type({"training_step": lambda board, e, i: board.log("m", stray)}, module=self.module())
        with pytest.raises(MisconfigurationException, match="no part of the module"):
            run.fit()

    def test_two_objects_under_one_name(self, run_type):
        metrics = [torchmetrics.MeanMetric(), torchmetrics.MeanMetric()]
        with pytest.raises(MisconfigurationException, match="Give each its own name"):
            run_type({"training_step": lambda board, e, i: board.log("m", metrics[i])}).fit()

    def test_one_that_computes_a_matrix(self, run_type):
        module = torch.nn.Module()
        module.m = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3)

        def step(board, epoch, index, loader):
            module.m.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
            board.log("m", module.m)

        with pytest.raises(ConfigurationError, match=r"computes a tensor of shape \(3, 3\)"):
            run_type({"validation_step": step}, module=module).evaluate(Stage.VALIDATE, [2])

    def test_it_goes_on_after_a_stop(self, run_type):
        uninterrupted, resumed = self.module(), self.module()
        batches = list(range(6))

        def train(board, module, indices, *, end):
            with board.inside(Stage.TRAIN):
                board.begin_epoch()
                for index in indices:
                    board.begin_batch(torch.zeros(2), index)
                    board.hook, board.rule = "training_step", STEP
                    module.m(torch.tensor(index + 1.0))
                    board.log("m", module.m, on_epoch=True)
                    board.log("x", index * 1.0, on_epoch=True)
                    board.log("y", torch.tensor(index * 1.0), on_epoch=True, reduce_fx="max")
                if not end:
                    return board.state_dict()
                board.publish_epoch(5, 0)
                return {name: float(value) for name, value in board.callback_metrics.items()}

        def board_of(module):
            board = MetricsBoard()
            board.attach(None, torch.device("cpu"), module=module)
            return board

        whole = train(board_of(uninterrupted), uninterrupted, batches, end=True)
        state = train(board_of(resumed), resumed, batches[:4], end=False)
        fresh = self.module()
        second = board_of(fresh)
        second.load_state_dict(state)
        assert train(second, fresh, batches[4:], end=True) == whole


def a_board(stage=Stage.TRAIN):
    board = MetricsBoard()
    board.attach(None, torch.device("cpu"))
    board._switch = board.inside(stage)
    board._switch.__enter__()
    board.begin_epoch()
    board.hook, board.rule = "training_step", STEP
    return board


def test_a_value_outlives_the_users_tensor():
    board = a_board()
    running = torch.zeros(())
    board.begin_batch(torch.zeros(1), 0)
    for _ in range(2):
        running += 1
        board.log("a", running, on_epoch=True)
    running.zero_()
    assert board.callback_metrics["a"] == 2
    kept = board.callback_metrics["a"]
    board.log("a", torch.tensor(5.0), on_epoch=True)
    assert kept == 2
    board.end_batches()
    assert board.callback_metrics["a_epoch"] == pytest.approx(8 / 3)


def test_nothing_is_read_back_before_somebody_looks(monkeypatch):
    board = a_board()
    reads = []
    for name in ("item", "tolist", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _o=original, _n=name: reads.append(_n) or _o(self, *a))
    for index in range(20):
        board.begin_batch([torch.zeros(4, 3), torch.zeros(4)], index)
        for key in "abc":
            board.log(key, torch.ones((), requires_grad=True) * index, on_step=True, on_epoch=True, prog_bar=True)
    assert reads == []
    assert board.progress_bar_metrics == {f"{key}_step": 19.0 for key in "abc"}
    assert reads == ["tolist"]  # one transfer for all
    assert board.progress_bar_metrics
    assert reads == ["tolist"]  # what is known is not read again


def test_validation_inside_training_leaves_training_alone(run_type):
    user = {
        "training_step": lambda board, e, i: board.log("loss", i + 1.0, on_step=True, on_epoch=True),
        "validation_step": lambda board, e, i, k: board.log("loss", 7.0, on_epoch=True),
    }
    run = run_type(user).fit(val_batches=2)
    assert run.seen()["callback_metrics"] == {"loss": 1.5, "loss_step": 2.0, "loss_epoch": 1.5}
    assert run.logger.rows[2] == "step=1: loss=7.0, epoch=0.0"


def test_a_sanity_check_leaves_no_trace(run_type):
    run = run_type({"validation_step": lambda board, e, i, k: board.log("a", 1.0, on_step=True, prog_bar=True)})
    run.board.reset()
    run.evaluate(Stage.SANITY_CHECK, [2])
    assert run.seen() == {view: {} for view in VIEWS}
    assert run.logger.rows == []


def test_a_value_of_one_step_is_sent_once(run_type):
    def step(board, epoch, index):
        board.log("always", float(index))
        if index == 0:
            board.log("rarely", 5.0)

    run = run_type({"training_step": step}, log_every=2).fit(batches=4)
    assert run.logger.rows == ["step=1: always=1.0, rarely=5.0, epoch=0.0", "step=3: always=3.0, epoch=0.0"]


def test_a_stage_that_an_error_ends_has_shown_its_last_values():
    board = MetricsBoard()
    with pytest.raises(SystemExit), board.inside(Stage.TRAIN):  # noqa: PT012  # as a signal ends it
        board.hook, board.rule = "training_step", STEP
        board.begin_epoch()
        board.begin_batch(None, 0)
        board.log("a", torch.tensor(2.0))
        raise SystemExit
    assert board.state_dict()["shown"]["callback"] == {"a": 2.0}
    assert board.callback_metrics == {"a": 2.0}


def test_what_cannot_be_shown_after_an_error_hides_it_not():
    class Breaks(MetricsBoard):
        def _show(self):
            if self._results.training:
                raise RuntimeError("the device is gone")

    with pytest.raises(ValueError, match="first"), Breaks().inside(Stage.TRAIN):
        raise ValueError("first")


def test_what_evaluation_shows_can_be_changed_outside(run_type):
    run = run_type({"validation_step": lambda board, e, i, k: board.log("a", torch.tensor(1.0), on_step=True)})
    run.evaluate(Stage.VALIDATE, [2])
    for value in (*run.board.callback_metrics.values(), *run.board.logged_metrics.values()):
        assert not value.is_inference()
        value.add_(1)


def test_a_graph_is_kept_when_asked_for():
    board = a_board()
    weight = torch.tensor(3.0, requires_grad=True)
    board.begin_batch(torch.zeros(1), 0)
    for factor in (1, 3):
        board.log("a", weight * factor, on_step=True, on_epoch=True, enable_graph=True)
    board.end_batches()
    board.callback_metrics["a_epoch"].backward()
    assert weight.grad == 2


def test_a_muted_board_says_why_and_takes_nothing():
    board = a_board()
    board.muted = "barebones=True"
    with pytest.warns(UserWarning, match="barebones=True"):
        board.log("muted metric", 1.0)
    assert board.callback_metrics == {}


def test_a_logger_asked_for_and_not_there():
    board = a_board()
    with pytest.warns(UserWarning, match="has no logger to send it to"):
        board.log("metric without logger", 1.0, logger=True)


@pytest.mark.parametrize("size", [-1, "x", float("nan")])
def test_a_bad_batch_size(size):
    board = a_board()
    for value in (1.0, torch.tensor(1.0), torch.tensor(1.0)):
        with pytest.raises(ConfigurationError, match=re.escape(f"batch_size={size!r}")):
            board.log("a", value, on_epoch=True, batch_size=size)


def test_callbacks_can_put_values_in():
    board = a_board()
    board.callback_metrics["mine"] = torch.tensor(1.0)
    assert board.callback_metrics["mine"] == 1


VALUE = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.floats(-1e3, 1e3, width=32).map(lambda x: torch.tensor(x)),
    st.floats(-1e3, 1e3, width=16).map(lambda x: torch.tensor([x], dtype=torch.bfloat16)),
    st.floats(-1e3, 1e3, width=32).map(lambda x: torch.tensor(x, requires_grad=True)),
    st.integers(-100, 100),
)
NUMPY = {
    "mean": lambda values, sizes: np.average(values, weights=sizes),
    "sum": lambda values, sizes: np.sum(values),
    "min": lambda values, sizes: np.min(values),
    "max": lambda values, sizes: np.max(values),
}


@settings(deadline=None, max_examples=60)
@given(
    logged=st.lists(st.tuples(VALUE, st.integers(1, 50)), min_size=1, max_size=20),
    reduction=st.sampled_from(sorted(NUMPY)),
    given_sizes=st.booleans(),
)
def test_any_values_in_any_order_equal_numpy(logged, reduction, given_sizes):
    board = a_board()
    for index, (value, size) in enumerate(logged):
        board.begin_batch(torch.zeros(7 if given_sizes else size, 2), index)
        board.log("a", value, on_epoch=True, reduce_fx=reduction, batch_size=size if given_sizes else None)
    board.end_batches()
    values = np.array([float(torch.as_tensor(value).detach()) for value, _ in logged])
    expected = NUMPY[reduction](values, [size for _, size in logged])
    scale = np.abs(values).sum()
    assert float(board.callback_metrics["a_epoch"]) == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale + 1e-30)
    assert float(board.callback_metrics["a_step"]) == pytest.approx(values[-1], rel=1e-6)
    assert board.callback_metrics["a"].dtype is torch.float32


def test_every_hook_has_a_rule():
    assert {hook.log.allowed for hook in HOOKS.values()} == {True, False}
