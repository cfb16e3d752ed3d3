import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.trainer.loops.evaluate import shares_of
from fulmen.trainer.stages import Stage


class Measuring(BoringModel):
    """Logs the number of each batch."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.trainer_said = (self.trainer.validating, self.trainer.sanity_checking, self.trainer.evaluating)
        self.log("number", float(batch_idx + 10 * dataloader_idx), batch_size=1)

    def test_step(self, batch, batch_idx):
        self.log("number", float(batch_idx), batch_size=1)


def loaders(*lengths):
    return [DataLoader(RandomDataset(32, length)) for length in lengths]


def test_what_was_logged_comes_back_one_dict_for_each_loader(quick):
    assert quick().validate(Measuring(), loaders(3), verbose=False) == [{"number": 1.0}]
    assert quick().test(Measuring(), loaders(3), verbose=False) == [{"number": 1.0}]
    several = quick().validate(Measuring(), loaders(3, 1), verbose=False)
    assert several == [{"number/dataloader_idx_0": 1.0}, {"number/dataloader_idx_1": 10.0}]


@pytest.mark.parametrize(("limit", "expected"), [(2, [2, 1]), (0.5, [2, 1]), (1.0, [4, 2]), (0, [0, 0])])
def test_each_loader_is_limited(limit, expected, quick):
    limit_of_second = [limit if isinstance(limit, int) else int(limit * 2)][0]
    trainer = quick(limit_val_batches=limit)
    trainer.validate(Measuring(), loaders(4, 2), verbose=False)
    assert trainer.num_val_batches == [expected[0], min(2, limit_of_second)]
    assert trainer.validate_loop.counts.batch.total == sum(trainer.num_val_batches)


def test_the_sanity_check_is_validation_and_leaves_no_trace(quick):
    class Checked(Measuring):
        shown = None

        def on_train_start(self):
            Checked.shown = dict(self.trainer.callback_metrics), self.trainer_said

        def on_validation_start(self):
            if self.trainer.sanity_checking:
                Checked.batches = self.trainer.num_sanity_val_batches, self.trainer.num_val_batches

    trainer = quick(num_sanity_val_steps=2, limit_train_batches=1)
    state = torch.get_rng_state()
    trainer.fit(Checked(), loaders(1)[0], loaders(5))
    assert Checked.shown == ({}, (False, True, True))
    assert Checked.batches == ([2], [5])  # a progress bar asks meanwhile
    assert trainer.num_sanity_val_batches == [2]
    assert trainer.fit_loop.val_loop.counts.batch.total == 5
    assert not torch.equal(state, torch.get_rng_state())


def test_validation_inside_fit_counts_on_in_its_epoch(quick):
    totals = []

    class Counting(Measuring):
        def on_validation_end(self):
            counts = self.trainer.fit_loop.val_loop.counts.batch
            totals.append((counts.total, counts.current))

    quick(max_epochs=2, val_check_interval=1).fit(Counting(), loaders(2)[0], loaders(3))
    assert totals == [(3, 3), (6, 3)] * 2


def test_a_stage_knows_whose_loaders_it_uses(quick):
    trainer = quick()
    assert trainer.fit_loop.val_loop.source_stage is Stage.VALIDATE
    assert trainer.test_loop.source_stage is Stage.TEST
    assert trainer.test_loop.skips


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_a_flag_and_never_used_inside_fit(inference_mode, quick):
    class Asking(BoringModel):
        modes = ()

        def validation_step(self, batch, batch_idx):
            self.modes += (torch.is_inference_mode_enabled(),)

    module = Asking()
    trainer = quick(inference_mode=inference_mode, limit_val_batches=1, limit_train_batches=1, num_sanity_val_steps=1)
    trainer.validate(module, verbose=False)
    trainer.fit(module)
    assert module.modes == (inference_mode, False, False)


class BySteps(BoringModel):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("number", 1.0, on_step=True, on_epoch=False)


def test_the_axis_of_steps_counts_the_batches_of_each_loader_and_goes_on_after_a_resume(quick, rows, tmp_path):
    def axis():
        found = [(*values, step) for step, values in rows.rows if any("number" in name for name in values)]
        rows.rows.clear()
        return [(name[-1], step) for name, step in found]

    first = [("0", 0), ("0", 1), ("1", 0), ("1", 1), ("1", 2)]
    second = [("0", 2), ("0", 3), ("1", 3), ("1", 4), ("1", 5)]
    flags = {"logger": rows, "log_every_n_steps": 1, "limit_train_batches": 1}
    trainer = quick(max_epochs=2, **flags)
    trainer.fit(BySteps(), val_dataloaders=loaders(2, 3))
    assert axis() == first + second
    trainer.fit_loop.max_epochs = 3
    trainer.fit(BySteps(), val_dataloaders=loaders(1, 1, 1))  # another number of them
    assert len(axis()) == 3
    trainer = quick(**flags)
    trainer.fit(BySteps(), val_dataloaders=loaders(2, 3))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    axis()
    quick(max_epochs=2, **flags).fit(BySteps(), val_dataloaders=loaders(2, 3), ckpt_path=tmp_path / "a.ckpt")
    assert axis() == second
    quick(**flags).validate(BySteps(), loaders(2, 3), verbose=False)
    assert axis() == first


@pytest.mark.parametrize(
    ("seen", "lengths", "shares"),
    [(10, [2, 3], [4, 6]), (7, [4], [7]), (0, [1, 2], [0, 0]), (4, [float("inf"), 1], [2, 2]), (3, [0, 0], [1, 1])],
)
def test_what_was_seen_is_shared_out(seen, lengths, shares):
    assert shares_of(seen, lengths) == shares
