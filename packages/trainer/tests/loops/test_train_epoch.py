import multiprocessing
from datetime import timedelta

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.demos import BoringModel, RandomDataset, RandomIterableDataset


class Logging(BoringModel):
    def training_step(self, batch, batch_idx):
        self.log("batch", float(batch_idx), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx): ...


def loader(batches, kind=RandomDataset):
    return DataLoader(kind(32, batches))


def test_a_row_goes_to_the_loggers_every_so_many_steps_and_at_the_end_of_the_epoch(quick, rows):
    quick(logger=rows, log_every_n_steps=2, max_epochs=2).fit(Logging(), loader(3))
    assert rows.rows == [
        (1, {"batch_step": 1.0, "epoch": 0.0}),
        (2, {"batch_epoch": 1.0, "epoch": 0.0}),
        (3, {"batch_step": 0.0, "epoch": 1.0}),
        (5, {"batch_step": 2.0, "epoch": 1.0}),
        (5, {"batch_epoch": 1.0, "epoch": 1.0}),
    ]


def test_while_gradients_accumulate_no_row_is_written(quick, rows):
    quick(logger=rows, log_every_n_steps=1, accumulate_grad_batches=2).fit(Logging(), loader(5))
    steps = [(step, row["batch_step"]) for step, row in rows.rows if "batch_step" in row]
    assert steps == [(0, 1.0), (1, 3.0), (2, 4.0)]


@pytest.mark.parametrize("kind", [RandomDataset, RandomIterableDataset])
def test_the_last_batch_is_known_as_such(kind, quick):
    class Asking(BoringModel):
        def training_step(self, batch, batch_idx):
            self.during.append(self.trainer.is_last_batch)
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.after.append(self.trainer.is_last_batch)

    module = Asking()
    module.during, module.after = [], []
    quick(limit_val_batches=0).fit(module, loader(3, kind))
    assert module.after == [False, False, True]
    # Of data without a length nobody knows before the next batch is fetched, which is after the step.
    assert module.during == ([False, False, True] if kind is RandomDataset else [False] * 3)


@pytest.mark.parametrize("kind", [RandomDataset, RandomIterableDataset])
@pytest.mark.parametrize(("batches", "window", "steps"), [(6, 2, 3), (5, 2, 3), (3, 5, 1), (4, 1, 4)])
def test_the_last_window_of_an_epoch_steps_though_it_is_short(kind, batches, window, steps, quick):
    trainer = quick(limit_val_batches=0, accumulate_grad_batches=window, max_epochs=2)
    trainer.fit(BoringModel(), loader(batches, kind))
    assert trainer.global_step == 2 * steps
    assert trainer.fit_loop.counts.zero_grads.total == 2 * steps


@pytest.mark.parametrize("kind", [RandomDataset, RandomIterableDataset])
@pytest.mark.parametrize("batches", [5, 6])
def test_what_follows_the_last_batch_does_so_also_where_windows_ask_for_it_before_the_step(kind, batches, quick):
    class Watching(BoringModel):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.after.append(self.trainer.is_last_batch)

        def on_validation_epoch_end(self):
            self.validated.append(self.current_epoch)

    module = Watching()
    module.after, module.validated = [], []
    trainer = quick(accumulate_grad_batches=2, max_epochs=2)
    trainer.fit(module, loader(batches, kind), loader(1))
    assert module.after == 2 * [*[False] * (batches - 1), True]
    assert module.validated == [0, 1]
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2
    assert trainer.fit_loop.counts.stepped_batches == 6


def test_a_hook_may_leave_out_the_rest_of_an_epoch(quick):
    class Leaving(BoringModel):
        seen = ()

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 - self.current_epoch else None

        def training_step(self, batch, batch_idx):
            self.seen += ((self.current_epoch, batch_idx),)
            return super().training_step(batch, batch_idx)

    module = Leaving()
    trainer = quick(limit_val_batches=0, max_epochs=2)
    trainer.fit(module, loader(5))
    assert module.seen == ((0, 0), (0, 1), (1, 0))
    assert trainer.fit_loop.counts.batch.total == 5  # the one that was passed over was visited


def test_max_steps_ends_in_the_middle_of_an_epoch(quick):
    trainer = quick(max_epochs=-1, max_steps=5, limit_val_batches=0)
    trainer.fit(BoringModel(), loader(3))
    assert (trainer.global_step, trainer.current_epoch) == (5, 2)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [({}, 2), ({"min_steps": 4}, 4), ({"min_epochs": 2}, 6), ({"min_epochs": 1, "min_steps": 4}, 4)],
)
def test_a_request_to_stop_is_followed_once_the_minimum_is_done(flags, steps, quick):
    class Stopping(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 2

    trainer = quick(max_epochs=5, limit_val_batches=0, callbacks=[Stopping()], **flags)
    trainer.fit(BoringModel(), loader(3))
    assert trainer.global_step == steps


def test_validation_by_the_clock_comes_when_the_time_is_over(quick):
    class Counting(BoringModel):
        validated = 0

        def on_validation_start(self):
            self.validated += 1

    for interval, expected in (({"microseconds": 1}, 4), ({"hours": 1}, 0)):
        module = Counting()
        quick(val_check_interval=interval, limit_val_batches=1).fit(module, loader(4))
        assert module.validated == expected


def test_loader_workers_do_not_outlive_a_fit_that_fails(quick):
    class Failing(BoringModel):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    trainer = quick(limit_val_batches=0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(), DataLoader(RandomDataset(32, 4), num_workers=1))
    assert multiprocessing.active_children() == []


def test_a_batch_goes_where_the_hook_says(quick):
    class Doubling(BoringModel):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch * 2

        def training_step(self, batch, batch_idx):
            self.seen = batch
            return super().training_step(batch, batch_idx)

    module = Doubling()
    quick(limit_val_batches=0).fit(module, DataLoader(torch.ones(1, 32)))
    assert torch.equal(module.seen, torch.full((1, 32), 2.0))


@pytest.mark.filterwarnings("ignore::fulmen.fabric.rank_zero.PossibleUserWarning")
def test_a_step_may_fetch_its_batches_itself(quick):
    class Takes(BoringModel):
        seen = ()

        def training_step(self, dataloader_iter):
            taken = [next(dataloader_iter) for _ in range(2)]
            self.seen += tuple(index for _, index, _ in taken)
            self.log("loss", 1.0, on_epoch=True)
            return sum(self.step(batch) for batch, _, _ in taken)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen += (f"end {batch_idx}",)

        def validation_step(self, dataloader_iter):
            _, index, loader = next(dataloader_iter)
            self.seen += ((index, loader),)

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            self.seen += (f"end {batch_idx} of {dataloader_idx}",)

    module = Takes()
    trainer = quick()
    trainer.fit(module, loader(5), [loader(1), loader(2)])  # the fifth batch has no second: the epoch is over
    assert module.seen[:6] == (0, 1, "end 1", 2, 3, "end 3")
    assert module.seen[6:] == ((0, 0), "end 0 of 0", (0, 1), "end 0 of 1", (1, 1), "end 1 of 1")
    assert trainer.global_step == 2
    assert trainer.fit_loop.counts.batch.total == 4


@pytest.mark.parametrize(("mode", "expected"), [("min_size", 2), ("max_size", 3), ("max_size_cycle", 3)])
def test_loaders_are_combined_in_each_mode(mode, expected, quick):
    class Sees(BoringModel):
        batches = ()

        def training_step(self, batch, batch_idx):
            self.batches += (batch["b"] is None,)
            return self.step(batch["a"])

    module = Sees()
    quick(limit_val_batches=0).fit(module, CombinedLoader({"a": loader(3), "b": loader(2)}, mode))
    assert len(module.batches) == expected
    assert any(module.batches) == (mode == "max_size")


def test_overfitting_sees_the_same_few_batches_in_order(quick):
    class Sees(BoringModel):
        batches = ()

        def training_step(self, batch, batch_idx):
            self.batches += (batch[0, 0].item(),)
            return self.step(batch)

        def validation_step(self, batch, batch_idx):
            self.batches += (f"val {batch[0, 0].item()}",)

    rows = torch.arange(6.0)[:, None].expand(6, 32)
    module = Sees()
    with pytest.warns(UserWarning, match="switches off the shuffling"):
        quick(overfit_batches=2, max_epochs=2).fit(module, DataLoader(rows, shuffle=True), DataLoader(rows))
    assert module.batches == (0.0, 1.0, "val 0.0", "val 1.0") * 2


class Clocked(BoringModel):
    """Each batch takes a second of a clock; writes down what runs."""

    def __init__(self, clock, tape):
        super().__init__()
        self.clock, self.tape = clock, tape

    def training_step(self, batch, batch_idx):
        self.clock[0] += 1.0
        self.tape.append(batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx): ...

    def on_validation_start(self):
        self.tape.append("validation")


class SaveAt(Callback):
    def __init__(self, hook, nth, path):
        self.left, self.path, self.mark = nth, path, None
        setattr(self, hook, self.hear)

    def hear(self, trainer, module, *_):
        self.left -= 1
        if self.left == 0:
            self.mark = len(module.tape) - ("validation" in module.tape[-1:])
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("hook", "nth"), [("on_train_batch_end", 2), ("on_train_batch_end", 5), ("on_validation_start", 2)]
)
def test_what_is_validated_by_the_clock_is_due_at_the_same_batch_after_a_resume(
    hook, nth, quick, monkeypatch, tmp_path
):
    clock = [0.0]
    monkeypatch.setattr("fulmen.trainer.loops.train_epoch.monotonic", lambda: clock[0])
    flags = {"val_check_interval": timedelta(seconds=3), "check_val_every_n_epoch": None, "limit_val_batches": 1}
    whole, saver = [], SaveAt(hook, nth, tmp_path / "cut.ckpt")
    quick(**flags, callbacks=[saver]).fit(Clocked(clock, whole), loader(8), loader(1))
    assert whole == [0, 1, 2, "validation", 3, 4, 5, "validation", 6, 7]
    clock[0] += 1000.0  # between the two runs
    rest = []
    quick(**flags).fit(Clocked(clock, rest), loader(8), loader(1), ckpt_path=saver.path)
    assert rest == whole[saver.mark :]


@pytest.mark.parametrize("stops", ["max_steps", "request"])
def test_a_fit_that_has_ended_inside_an_epoch_goes_on_there(stops, quick, tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = stops == "request" and trainer.global_step == 6

    tape = []
    first = quick(max_epochs=2, max_steps=6 if stops == "max_steps" else -1, callbacks=[Stop()], limit_val_batches=0)
    first.fit(Clocked([0.0], tape), loader(4))
    assert first.current_epoch == 2  # hooks have heard its end
    first.save_checkpoint(tmp_path / "cut.ckpt")
    second = quick(max_epochs=2, limit_val_batches=0)
    second.fit(Clocked([0.0], tape), loader(4), ckpt_path=tmp_path / "cut.ckpt")
    assert tape == [0, 1, 2, 3] * 2
    assert (second.current_epoch, second.global_step) == (2, 8)


def test_an_epoch_that_a_hook_has_left_is_over(quick, tmp_path):
    class Leaving(Clocked):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

    tape = []
    first = quick(limit_val_batches=0)
    first.fit(Leaving([0.0], tape), loader(4))
    first.save_checkpoint(tmp_path / "left.ckpt")
    quick(max_epochs=2, limit_val_batches=0).fit(Leaving([0.0], tape), loader(4), ckpt_path=tmp_path / "left.ckpt")
    assert tape == [0, 1, 0, 1]


def test_programs_ask_the_loop_which_batch_is_in_work(quick):
    class Asks(BoringModel):
        def __init__(self):
            super().__init__()
            self.seen = []

        def ask(self):
            loop = self.trainer.fit_loop.epoch_loop
            self.seen.append((loop.batch_idx, loop.total_batch_idx))

        def training_step(self, batch, batch_idx):
            self.ask()
            return super().training_step(batch, batch_idx)

        def on_train_epoch_start(self):
            self.ask()

        def on_train_epoch_end(self):
            self.ask()

    module = Asks()
    quick(max_epochs=2, limit_train_batches=2, limit_val_batches=0).fit(module)
    assert module.seen == [(-1, -1), (0, 0), (1, 1), (1, 1), (-1, 1), (0, 2), (1, 3), (1, 3)]
