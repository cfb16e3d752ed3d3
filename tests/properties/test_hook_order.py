"""The order of all hooks is that of the reference, in every setting that is listed here."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fulmen.fabric.plugins import MixedPrecision
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    Timer,
    TQDMProgressBar,
)
from fulmen.tuner import BatchSizeFinder, LearningRateFinder
from tests.support.hook_recorder import Recording

REFERENCE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "hooks_order.yaml").read_text())


class Run:
    """One setting: makes a Trainer from what the setting says, and keeps the lines."""

    def __init__(self, folder: Path) -> None:
        self.rec = Recording()
        self.folder = folder
        self.code: int | None = None  # that the program would end with

    def trainer(self, *, callbacks: list[Any] | None = None, **flags: Any) -> Trainer:
        """A Trainer without anything that is not recorded."""
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": self.rec.logger(),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "max_epochs": 1,
            "default_root_dir": self.folder,
        }
        found = [self.rec.callback()] if callbacks is None else callbacks
        trainer = Trainer(callbacks=found, **(defaults | flags))
        self.rec.recorder.trainer = trainer
        return trainer

    def second_call(self, what: str) -> None:
        """The same Trainer is used again."""
        self.rec.recorder.note_state()
        self.rec.recorder.lines.append(f"== second call: {what}")

    @contextmanager
    def expecting(self, kind: type[BaseException]) -> Iterator[None]:
        """The entry point ends with this exception."""
        with pytest.raises(kind) as caught:
            yield
        self.code = getattr(caught.value, "code", None)
        self.rec.recorder.note_state()
        self.rec.recorder.lines.append(f"!! {kind.__name__} reaches the caller")


Setting = Callable[[Run], None]
SETTINGS: dict[str, Setting] = {}


def setting(function: Setting) -> Setting:
    """The function runs the setting of its name."""
    SETTINGS[function.__name__.lstrip("_")] = function  # pytest would collect a function named `test`
    return function


@setting
def fit_basic_module_only(run: Run) -> None:
    run.trainer(max_epochs=2, num_sanity_val_steps=1).fit(run.rec.module())


@setting
def fit_datamodule(run: Run) -> None:
    trainer = run.trainer(max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(run.rec.module(own_data=False), datamodule=run.rec.datamodule())


@setting
def fit_logging_and_checkpoint(run: Run) -> None:
    checkpoint = run.rec.checkpoint(dirpath=run.folder / "ck", save_last=True)
    trainer = run.trainer(
        callbacks=[run.rec.callback(), checkpoint],
        max_epochs=2,
        num_sanity_val_steps=1,
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    module = run.rec.module(own_data=False, log=True)
    module.save_hyperparameters({"width": 3})
    trainer.fit(module, datamodule=run.rec.datamodule())


@setting
def callback_order_checkpoint_moved_last(run: Run) -> None:
    checkpoint = run.rec.checkpoint(dirpath=run.folder / "ck")
    trainer = run.trainer(callbacks=[checkpoint, run.rec.callback()], enable_checkpointing=True, log_every_n_steps=1)
    trainer.fit(run.rec.module(log=True))


@setting
def callback_order_configure_callbacks(run: Run) -> None:
    trainer = run.trainer()
    trainer.fit(run.rec.module(callbacks=[run.rec.callback("cb2")], train_batches=1))


@setting
def fit_accumulate_2(run: Run) -> None:
    run.trainer(accumulate_grad_batches=2).fit(run.rec.module(train_batches=3, interval="step"))


def two_optimizers(module: Any) -> Any:
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2)]
    return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]


@setting
def fit_manual_two_optimizers(run: Run) -> None:
    def steps(module: Any, batch: Any) -> None:
        module(batch[0])
        for optimizer, scheduler in zip(module.optimizers(), module.lr_schedulers(), strict=True):
            optimizer.zero_grad()
            module.manual_backward(module._loss(batch))
            optimizer.step()
            scheduler.step()

    run.trainer().fit(run.rec.module(manual=steps, optimizers=two_optimizers))


@setting
def fit_manual_toggle_and_closure(run: Run) -> None:
    def step(module: Any, batch: Any) -> None:
        optimizer = module.optimizers()
        module.toggle_optimizer(optimizer)
        module.manual_backward(module._loss(batch))
        module.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()
        module.untoggle_optimizer(optimizer)
        optimizer.step(closure=lambda: module.manual_backward(module._loss(batch)))

    run.trainer().fit(run.rec.module(train_batches=1, manual=step))


@setting
def raw_optimizer_calls(run: Run) -> None:
    run.trainer(limit_val_batches=0).fit(run.rec.module(train_batches=1, optimizers=run.rec.optimizer))


@setting
def fit_grad_scaler(run: Run) -> None:
    scaled = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = run.trainer(limit_val_batches=0, plugins=[scaled])
    trainer.fit(run.rec.module(train_batches=1, optimizers=run.rec.optimizer))


@setting
def on_train_batch_start_returns_minus_one(run: Run) -> None:
    run.trainer().fit(run.rec.module(skip_at=1))


@setting
def fit_gradient_clipping(run: Run) -> None:
    trainer = run.trainer(gradient_clip_val=0.5, gradient_clip_algorithm="value", limit_val_batches=0)
    trainer.fit(run.rec.module(train_batches=1))


def with_strategy(run: Run, ckpt_path: str | None = None) -> None:
    checkpoint = run.rec.checkpoint(dirpath=run.folder / "ck2")
    trainer = run.trainer(
        callbacks=[run.rec.callback(), checkpoint],
        num_sanity_val_steps=1,
        enable_checkpointing=True,
        strategy=run.rec.strategy(),
    )
    trainer.fit(run.rec.module(own_data=False), datamodule=run.rec.datamodule(train_batches=1), ckpt_path=ckpt_path)


@setting
def fit_strategy(run: Run) -> None:
    with_strategy(run)


@setting
def fit_resume_strategy(run: Run) -> None:
    with_strategy(run, saved_run(run))


@setting
def training_step_dataloader_iter(run: Run) -> None:
    run.trainer(limit_val_batches=0).fit(run.rec.module(takes_iterator=True))


@setting
def fit_ddp_fork_2_processes_rank_0(run: Run) -> None:
    fork(run, rank=0)


@setting
def fit_ddp_fork_2_processes_rank_1(run: Run) -> None:
    fork(run, rank=1)


def fork(run: Run, rank: int) -> None:
    recorder = run.rec.recorder
    recorder.folder = run.folder  # the lines are written down in other processes
    trainer = run.trainer(strategy="ddp_fork", devices=2)
    trainer.fit(run.rec.module(own_data=False), datamodule=run.rec.datamodule(train_batches=2, val_batches=2))
    recorder.lines = (run.folder / f"rank_{rank}").read_text().splitlines()


@setting
def validate(run: Run) -> None:
    run.trainer().validate(run.rec.module(own_data=False, log=True), datamodule=run.rec.datamodule(), verbose=False)


@setting
def _test(run: Run) -> None:
    run.trainer().test(run.rec.module(own_data=False, log=True), datamodule=run.rec.datamodule(), verbose=False)


@setting
def predict(run: Run) -> None:
    run.trainer().predict(run.rec.module(own_data=False), datamodule=run.rec.datamodule())


@setting
def predict_return_predictions_false(run: Run) -> None:
    run.trainer().predict(run.rec.module(), return_predictions=False)


@setting
def validate_two_loaders(run: Run) -> None:
    run.trainer().validate(run.rec.module(val_batches=(2, 1)), verbose=False)


def saved_run(run: Run, **flags: Any) -> str:
    """A run of one epoch, not recorded, and its checkpoint."""
    apart = Run(run.folder / "first")
    checkpoint = apart.rec.checkpoint(dirpath=run.folder / "ck", filename="saved", **flags)
    trainer = apart.trainer(callbacks=[apart.rec.callback(), checkpoint], enable_checkpointing=True)
    trainer.fit(apart.rec.module(own_data=False), datamodule=apart.rec.datamodule())
    return str(run.folder / "ck" / "saved.ckpt")


@setting
def fit_resume(run: Run) -> None:
    path = saved_run(run)
    checkpoint = run.rec.checkpoint(dirpath=run.folder / "ck2")
    trainer = run.trainer(
        callbacks=[run.rec.callback(), checkpoint], max_epochs=2, num_sanity_val_steps=1, enable_checkpointing=True
    )
    trainer.fit(run.rec.module(own_data=False), datamodule=run.rec.datamodule(), ckpt_path=path)


@setting
def validate_with_ckpt(run: Run) -> None:
    path = saved_run(run)
    trainer = run.trainer()
    trainer.validate(run.rec.module(own_data=False), datamodule=run.rec.datamodule(), ckpt_path=path, verbose=False)


@setting
def fit_resume_mid_epoch(run: Run) -> None:
    apart = Run(run.folder / "first")
    checkpoint = apart.rec.checkpoint(dirpath=run.folder, filename="saved", every_n_train_steps=1, save_top_k=1)
    trainer = apart.trainer(callbacks=[apart.rec.callback(), checkpoint], enable_checkpointing=True, max_steps=1)
    trainer.fit(apart.rec.module())
    run.trainer().fit(run.rec.module(), ckpt_path=str(run.folder / "saved.ckpt"))


def failing(run: Run, where: tuple[str, int], error: BaseException) -> Any:
    return run.rec.module(own_data=False, fail_in=where, error=error)


@setting
def exception_in_training_step(run: Run) -> None:
    trainer = run.trainer(
        callbacks=[run.rec.callback(), run.rec.checkpoint(dirpath=run.folder)],
        num_sanity_val_steps=1,
        enable_checkpointing=True,
    )
    with run.expecting(RuntimeError):
        trainer.fit(failing(run, ("train", 2), RuntimeError("x")), datamodule=run.rec.datamodule())


@setting
def exception_in_validation_step(run: Run) -> None:
    with run.expecting(RuntimeError):
        run.trainer(num_sanity_val_steps=1).fit(run.rec.module(fail_in=("val", 2), error=RuntimeError("x")))


@setting
def exception_in_sanity_check(run: Run) -> None:
    with run.expecting(RuntimeError):
        run.trainer(num_sanity_val_steps=1).fit(run.rec.module(fail_in=("val", 1), error=RuntimeError("x")))


@setting
def exception_in_test_step(run: Run) -> None:
    with run.expecting(RuntimeError):
        run.trainer().test(run.rec.module(fail_in=("test", 1), error=RuntimeError("x")))


@setting
def keyboard_interrupt_in_training_step(run: Run) -> None:
    trainer = run.trainer(
        callbacks=[run.rec.callback(), run.rec.checkpoint(dirpath=run.folder)],
        num_sanity_val_steps=1,
        enable_checkpointing=True,
    )
    with run.expecting(SystemExit):
        trainer.fit(failing(run, ("train", 2), KeyboardInterrupt()), datamodule=run.rec.datamodule())


@setting
def keyboard_interrupt_in_validate(run: Run) -> None:
    with run.expecting(SystemExit):
        run.trainer().validate(run.rec.module(fail_in=("val", 1), error=KeyboardInterrupt()))


@setting
def systemexit_in_training_step(run: Run) -> None:
    with run.expecting(SystemExit):
        run.trainer(num_sanity_val_steps=1).fit(run.rec.module(fail_in=("train", 2), error=SystemExit(3)))


@setting
def should_stop_in_first_batch(run: Run) -> None:
    callback = run.rec.callback(react=lambda trainer: setattr(trainer, "should_stop", True))
    run.trainer(callbacks=[callback], max_epochs=2).fit(run.rec.module())


@setting
def should_stop_with_min_epochs(run: Run) -> None:
    callback = run.rec.callback(react=lambda trainer: setattr(trainer, "should_stop", True))
    run.trainer(callbacks=[callback], max_epochs=2, min_epochs=2).fit(run.rec.module(train_batches=1))


@setting
def training_step_returns_none(run: Run) -> None:
    run.trainer().fit(run.rec.module(train_batches=1, no_loss=True))


@setting
def val_check_interval_half(run: Run) -> None:
    run.trainer(val_check_interval=0.5).fit(run.rec.module())


@setting
def val_check_interval_int_check_none(run: Run) -> None:
    run.trainer(val_check_interval=3, check_val_every_n_epoch=None, max_epochs=2).fit(run.rec.module())


@setting
def check_val_every_n_epoch_2(run: Run) -> None:
    run.trainer(check_val_every_n_epoch=2, max_epochs=2).fit(run.rec.module(train_batches=1))


@setting
def max_steps_3(run: Run) -> None:
    run.trainer(max_epochs=-1, max_steps=3).fit(run.rec.module())


@setting
def fast_dev_run(run: Run) -> None:
    checkpoint = run.rec.checkpoint(dirpath=run.folder)
    trainer = run.trainer(
        callbacks=[run.rec.callback(), checkpoint], fast_dev_run=True, enable_checkpointing=True, max_epochs=None
    )
    trainer.fit(run.rec.module())


@setting
def max_epochs_0(run: Run) -> None:
    run.trainer(max_epochs=0, num_sanity_val_steps=1).fit(run.rec.module())


@setting
def limit_train_batches_0(run: Run) -> None:
    run.trainer(limit_train_batches=0, num_sanity_val_steps=1).fit(run.rec.module())


@setting
def reload_dataloaders_every_epoch(run: Run) -> None:
    run.trainer(reload_dataloaders_every_n_epochs=1, max_epochs=2, num_sanity_val_steps=1).fit(
        run.rec.module(train_batches=1)
    )


def with_plateau(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


@setting
def reduce_on_plateau_monitor_val(run: Run) -> None:
    run.trainer(log_every_n_steps=1).fit(run.rec.module(train_batches=1, optimizers=with_plateau, log=True))


@setting
def fit_then_test_same_trainer(run: Run) -> None:
    trainer = run.trainer(log_every_n_steps=1)
    module = run.rec.module(train_batches=1, log=True)
    trainer.fit(module)
    run.second_call("trainer.test")
    trainer.test(module, verbose=False)


@setting
def fit_twice_same_trainer(run: Run) -> None:
    trainer = run.trainer(limit_val_batches=0)
    module = run.rec.module(train_batches=1)
    trainer.fit(module)
    run.second_call("trainer.fit with max_epochs raised to 2")
    trainer.settings.max_epochs = 2
    trainer.fit(module)


Change = Callable[[list[str]], list[str]]


def torn_down(stage: str, *owners: str) -> Change:
    """After an exception, `teardown` is called, and module and stage are as they were before on_exception is."""

    def change(lines: list[str]) -> list[str]:
        place = lines.index("lg.finalize(failed)") + 1
        changed = lines[:place] + [f"{owner}.teardown(stage={stage})" for owner in owners] + lines[place:]
        if "~ stage=None" not in lines:
            changed.insert(-1, "~ stage=None")
        return [LEFT.get((stage, line), line) for line in changed]

    return change


LEFT = {
    ("fit", "~ status=interrupted grad=True"): "~ status=interrupted stage=train train_mode=True grad=True",
    **{
        (stage, "~ status=interrupted grad=True inference=False"): (
            "~ status=interrupted train_mode=True grad=True inference=False"
        )
        for stage in ("validate", "test")
    },
}


def replaced(*pairs: tuple[str, list[str]]) -> Callable[[list[str]], list[str]]:
    """Lines that the recorder of the reference wrote otherwise, or left out, in this setting."""

    def change(lines: list[str]) -> list[str]:
        return [line for old in lines for line in dict(pairs).get(old, [old])]

    return change


# The recorder of the reference saw optimizers of its own make otherwise; what is called, and when, is the same.
_CONFIGURED = ("lm.configure_model", ["lm.configure_model", "lm.configure_optimizers"])


def _zeroed(indent: str) -> list[tuple[str, list[str]]]:
    hook = "lm.optimizer_zero_grad"
    return [
        (f"{indent}{hook}(OptRec)", [f"{indent}{hook}(epoch=0, batch_idx=0, optimizer=OptRec)"]),
        (f"{indent}opt.zero_grad", [f"{indent}. opt.zero_grad"]),
    ]


def without_collectives(lines: list[str]) -> list[str]:
    return [line for line in lines if line.lstrip(". ") not in ("st.barrier", "st.broadcast", "st.reduce")]


def hooks_around_backward(lines: list[str]) -> list[str]:
    """`on_before_backward` comes before `Strategy.backward`, `on_after_backward` behind it."""
    backward = [index for index, line in enumerate(lines) if "st.backward" in line]
    for begin in reversed(backward):
        end = next(index for index in range(begin, len(lines)) if "st.post_backward" in lines[index]) + 1
        inside = lines[begin:end]
        before = [line.removeprefix(". ") for line in inside if "on_before_backward" in line]
        after = [line.removeprefix(". ") for line in inside if "on_after_backward" in line]
        rest = [line for line in inside if "on_before_backward" not in line and "on_after_backward" not in line]
        lines = lines[:begin] + before + rest + after + lines[end:]
    return lines


def hook_behind_transfer(lines: list[str]) -> list[str]:
    return [line.removeprefix(". ") if "on_after_batch_transfer" in line else line for line in lines]


def read_at_once(lines: list[str]) -> list[str]:
    changed = [line for line in lines if line != "st.load_checkpoint"]
    if len(changed) < len(lines):
        changed.insert(changed.index("st.setup_environment") + 1, "st.load_checkpoint")
    return changed


def true_batch_idx(lines: list[str]) -> list[str]:
    """Of two batches, the hooks of the second that come before `on_train_batch_end` speak of the second."""
    second = lines.index("lm.on_train_batch_end(outputs={loss}, batch_idx=0)") + 1
    return lines[:second] + [line.replace("batch_idx=0", "batch_idx=1") for line in lines[second:]]


def saved_once(lines: list[str]) -> list[str]:
    """Of two saves right behind each other the second is left out."""
    changed: list[str] = []
    for line in lines:
        changed.append(line)
        if line == ". lg.after_save_checkpoint":
            size = next(back for back in range(1, len(changed)) if changed[-back] == ". cb.state_dict")
            if changed[-2 * size : -size] == changed[-size:]:
                del changed[-size:]
    return changed


_FIRST_LINE = "~ status=running fn=fit stage=train epoch=0 step=0 train_mode=True grad=True inference=False"
_CONNECTED = replaced(
    (_FIRST_LINE, [_FIRST_LINE.replace("train_mode=True", "train_mode=None")]),
    ("st.connect", ["st.connect", "~ train_mode=True"]),
)

NOTATION: dict[str, list[Change]] = {
    "raw_optimizer_calls": [replaced(_CONFIGURED, *_zeroed(". . "))],
    "fit_grad_scaler": [replaced(_CONFIGURED, *_zeroed(". "))],
    "keyboard_interrupt_in_validate": [
        replaced(
            (
                "lm.on_validation_batch_start(batch_idx=0)",
                ["lm.on_validation_batch_start(batch_idx=0)", "lm.validation_step(batch_idx=0)"],
            )
        )
    ],
    # The module is known to the Trainer only when the strategy has it.
    "fit_strategy": [_CONNECTED],
    "fit_resume_strategy": [_CONNECTED],
    # Such a step is given no index that could be shown.
    "training_step_dataloader_iter": [
        replaced((". lm.training_step(batch_idx=0)", [". lm.training_step"])),
        replaced((". lm.training_step(batch_idx=1)", [". lm.training_step"])),
    ],
}

# Where the reference is left on purpose: why, in which settings, and what is done to its lines before comparing.
DEVIATIONS: list[tuple[str, dict[str, Change]]] = [
    (
        "What a run has set up and entered, it tears down and leaves, also when it fails.",
        {
            "exception_in_training_step": torn_down("fit", "dm", "cb", "ck", "lm"),
            "exception_in_validation_step": torn_down("fit", "cb", "lm"),
            "exception_in_sanity_check": torn_down("fit", "cb", "lm"),
            "exception_in_test_step": torn_down("test", "cb", "lm"),
            "keyboard_interrupt_in_training_step": torn_down("fit", "dm", "cb", "ck", "lm"),
            "keyboard_interrupt_in_validate": torn_down("validate", "cb", "lm"),
            "systemexit_in_training_step": torn_down("fit", "cb", "lm"),
        },
    ),
    (
        "How often processes wait for each other is no hook, and less often is better.",
        {"fit_strategy": without_collectives, "fit_resume_strategy": without_collectives},
    ),
    (
        "A strategy computes gradients, and calls no hooks: the run calls them before and behind it.",
        {"fit_strategy": hooks_around_backward},
    ),
    (
        "A strategy moves a batch, and calls no hooks: the run calls them before and behind it.",
        {"fit_strategy": hook_behind_transfer, "fit_resume_strategy": hook_behind_transfer},
    ),
    (
        "A checkpoint is read before anything else is done: it may be damaged.",
        {"fit_resume_strategy": read_at_once},
    ),
    (
        "`last` is a link to the checkpoint that was just saved, and no second one.",
        {"fit_logging_and_checkpoint": saved_once},
    ),
    (
        "A step that fetches by itself is told of the batch that it fetches, not of the one before.",
        {"training_step_dataloader_iter": true_batch_idx},
    ),
]

# What the file holds beside settings, and is compared elsewhere.
NO_SETTINGS = {
    "callback_list": "the lists that Trainer() makes: the tests below",
    "profiler_actions": "the names that a profiler is told: what nobody overrides is no call here, and has no name;"
    " those of loops and steps are told by packages/trainer/tests/profilers/test_simple.py",
}

# With which code the program ends, where it does. After Ctrl-C the reference says 1, which is what any failure says; a
# shell tells by 130 that a person ended the program, and stops the script that it runs.
CODES = {
    "keyboard_interrupt_in_training_step": 130,
    "keyboard_interrupt_in_validate": 130,
    "systemexit_in_training_step": 3,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_hooks_are_called_in_the_order_of_the_reference(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SETTINGS[name](run)
    expected = REFERENCE[name]["calls"]
    for change in NOTATION.get(name, []):
        expected = change(expected)
    for _reason, settings in DEVIATIONS:
        if name in settings:
            expected = settings[name](expected)
    assert run.rec.recorder.lines == expected
    assert run.code == CODES.get(name)


def test_every_setting_of_the_reference_is_compared() -> None:
    assert SETTINGS.keys() | NO_SETTINGS.keys() == REFERENCE.keys()
    for _reason, settings in DEVIATIONS:
        assert settings.keys() <= SETTINGS.keys()


# How each list of the reference comes about. Left out: the default bars where `rich` is there.
LISTS: dict[str, tuple[list[Callback] | Callback | None, dict[str, Any]]] = {
    "Trainer()": (None, {}),
    "Trainer(barebones=True)": (None, {"barebones": True}),
    "Trainer(enable_checkpointing=False)": (None, {"enable_checkpointing": False}),
    "Trainer(enable_progress_bar=False, enable_model_summary=False)": (
        None,
        {"enable_progress_bar": False, "enable_model_summary": False},
    ),
    "Trainer(fast_dev_run=True)": (None, {"fast_dev_run": True}),
    "Trainer(max_time=...)": (None, {"max_time": "00:00:00:09"}),
    "callbacks=Timer() (not a list)": (Timer(), {}),
    "callbacks=[ModelCheckpoint, EarlyStopping, BatchSizeFinder, Timer, LearningRateFinder]": (
        [ModelCheckpoint(), EarlyStopping("loss"), BatchSizeFinder(), Timer(), LearningRateFinder()],
        {},
    ),
    "callbacks=[EMAWeightAveraging, ModelCheckpoint, Timer]": ([EMAWeightAveraging(), ModelCheckpoint(), Timer()], {}),
    "callbacks=[OnExceptionCheckpoint, Timer]": ([OnExceptionCheckpoint("."), Timer()], {}),
    "callbacks=[TQDMProgressBar, ModelSummary, Timer]": ([TQDMProgressBar(), ModelSummary(), Timer()], {}),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_callbacks_of_a_trainer_are_in_the_order_of_the_reference(name: str, tmp_path: Path) -> None:
    callbacks, flags = LISTS[name]
    trainer = Trainer(callbacks=callbacks, default_root_dir=tmp_path, accelerator="cpu", **flags)
    assert [type(callback).__name__ for callback in trainer.callbacks] == REFERENCE["callback_list"]["lists"][name]


def test_no_list_of_the_reference_is_left_out_but_one() -> None:
    left_out = REFERENCE["callback_list"]["lists"].keys() - LISTS.keys()
    assert [name for name in left_out if "rich" not in name] == []


def test_checkpoints_come_last_and_the_rest_stays_in_order(tmp_path: Path) -> None:
    given = [ModelCheckpoint(), EarlyStopping("loss"), Timer()]
    trainer = Trainer(callbacks=given, default_root_dir=tmp_path, accelerator="cpu")
    names = [type(callback).__name__ for callback in trainer.callbacks]
    assert names == ["EarlyStopping", "Timer", "TQDMProgressBar", "ModelSummary", "ModelCheckpoint"]
