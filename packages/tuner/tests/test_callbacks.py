import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.core.callback import Callback
from fulmen.tuner.callbacks import BatchSizeFinder, LearningRateFinder


def test_tuners_come_first(make_trainer):
    given = [ModelCheckpoint(), EarlyStopping("x"), BatchSizeFinder(), LearningRateFinder()]
    trainer = make_trainer(callbacks=given, enable_checkpointing=True)
    assert [type(callback).__name__ for callback in trainer.callbacks] == [
        "BatchSizeFinder",
        "LearningRateFinder",
        "EarlyStopping",
        "ModelCheckpoint",
    ]
    assert [callback.state_dict() for callback in trainer.callbacks[:2]] == [{}, {}]


class Watching(Callback):
    def __init__(self):
        self.rates, self.sizes, self.num_batches = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.sizes.append(len(batch[0]))
        self.num_batches.append(trainer.num_training_batches)

    def on_validation_batch_start(self, trainer, module, batch, *_):
        self.sizes.append(len(batch[0]))

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


def test_a_fit_trains_with_the_rate_that_was_found(kit, make_trainer):
    finder, watching = LearningRateFinder(max_lr=10.0, num_training_steps=60), Watching()
    model = kit.Model()
    make_trainer(callbacks=[watching, finder]).fit(model)
    assert finder.optimal_lr.suggestion() == model.lr == model.hparams.lr
    assert watching.rates == [model.lr] * 12
    assert model.notes == list(range(12))  # of the trial nothing is left


def test_schedulers_begin_at_the_rate_that_was_found(kit, make_trainer):
    class Cycle(kit.Model):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=total)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    watching, model = Watching(), Cycle()
    make_trainer(callbacks=[LearningRateFinder(max_lr=10.0, num_training_steps=40), watching]).fit(model)
    assert watching.rates[0] == pytest.approx(model.lr / 25)
    assert max(watching.rates) == pytest.approx(model.lr, rel=0.05)


def test_it_may_only_look(kit, make_trainer):
    finder, watching, model = LearningRateFinder(update_attr=False, num_training_steps=20), Watching(), kit.Model()
    make_trainer(callbacks=[finder, watching]).fit(model)
    assert finder.optimal_lr.results["lr"]
    assert watching.rates == [1e-3] * 12


def test_a_subclass_may_look_later(kit, make_trainer):
    class Later(LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            return

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)

    finder, watching, model = Later(max_lr=10.0, num_training_steps=60), Watching(), kit.Model()
    make_trainer(callbacks=[finder, watching], max_epochs=2).fit(model)
    assert watching.rates == [1e-3] * 12 + [finder.optimal_lr.suggestion()] * 12


def test_a_fit_runs_with_the_batch_size_that_was_found(kit, make_trainer):
    finder, watching, data = BatchSizeFinder(max_val=16), Watching(), kit.Data()
    trainer = make_trainer(callbacks=[finder, watching])
    trainer.fit(kit.Model(), datamodule=data)
    assert finder.optimal_batch_size == data.hparams.batch_size == 16
    assert set(watching.sizes) == {16}
    assert trainer.num_training_batches == 3


def test_so_does_one_that_has_counted_its_steps_before(kit, make_trainer):
    class Counting(kit.Model):
        counted = ()

        def configure_optimizers(self):
            self.counted = [*self.counted, self.trainer.estimated_stepping_batches]
            return super().configure_optimizers()

    model, watching = Counting(), Watching()
    make_trainer(callbacks=[BatchSizeFinder(max_val=16), watching]).fit(model)
    assert model.counted == [12, 3]
    assert set(watching.sizes) == {16}
    assert set(watching.num_batches) == {3}


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_so_do_evaluations(kit, make_trainer, method):
    finder, watching, model = BatchSizeFinder(max_val=16), Watching(), kit.Model()
    trainer = make_trainer(callbacks=[finder, watching])
    getattr(trainer, method)(model)
    assert finder.optimal_batch_size == model.batch_size == 16
    assert watching.sizes == [16, 16, 16]


def test_a_subclass_may_scale_later(kit, make_trainer):
    class Later(BatchSizeFinder):
        def on_fit_start(self, trainer, pl_module):
            return

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    watching = Watching()
    make_trainer(callbacks=[Later(max_val=16), watching], max_epochs=2, limit_val_batches=0).fit(kit.Model())
    assert watching.sizes == [4] * 12 + [16] * 3


def test_both_at_once(kit, make_trainer):
    sizes, rates, model = (
        BatchSizeFinder(max_val=16),
        LearningRateFinder(max_lr=10.0, num_training_steps=40),
        kit.Model(),
    )
    make_trainer(callbacks=[rates, sizes]).fit(model)
    assert model.batch_size == 16
    assert model.lr == rates.optimal_lr.suggestion()


def test_a_quick_development_run_is_not_tuned(kit, make_trainer):
    finders = LearningRateFinder(), BatchSizeFinder()
    model = kit.Model()
    with pytest.warns(UserWarning, match="LearningRateFinder looks for nothing"):
        make_trainer(callbacks=list(finders), fast_dev_run=True).fit(model)
    assert (finders[0].optimal_lr, finders[1].optimal_batch_size) == (None, None)
    assert (model.lr, model.batch_size) == (1e-3, 4)


@pytest.mark.parametrize("kind", [LearningRateFinder, BatchSizeFinder])
def test_bad_arguments(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(mode='foo'\)"):
        kind(mode="foo")
    assert (("linear", "exponential") if kind is LearningRateFinder else ("power", "binsearch")) == kind.SUPPORTED_MODES


def test_bad_runs(kit, make_trainer):
    with pytest.raises(MisconfigurationException, match="LearningRateFinder finds no attribute 'foo'"):
        make_trainer(callbacks=[LearningRateFinder(attr_name="foo")]).fit(kit.Model())
    with pytest.raises(MisconfigurationException, match="BatchSizeFinder finds no attribute 'foo'"):
        make_trainer(callbacks=[BatchSizeFinder(batch_arg_name="foo")]).fit(kit.Model())
    with pytest.raises(MisconfigurationException, match="BatchSizeFinder was given loaders"):
        make_trainer(callbacks=[BatchSizeFinder()]).fit(kit.Model(), DataLoader(kit.Points(), 4))
    with pytest.raises(ValueError, match=r"num_training_steps=0"):
        LearningRateFinder(num_training_steps=0)
