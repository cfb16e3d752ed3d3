import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.tuner.attributes import NoSuchAttributeError
from fulmen.tuner.callbacks import BatchSizeFinder, LearningRateFinder
from fulmen.tuner.tuner import Tuner

# ---- no trace --------------------------------------------------------------------------------------------------------


ENDS = {
    "good": lambda: None,
    "error": lambda: (_ for _ in ()).throw(ValueError("of the user")),
    "no memory": lambda: torch.empty(2**62, dtype=torch.uint8),
    "interrupted": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
}
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "precision": st.sampled_from(["bf16-mixed", "16-mixed", "64-true", "bf16-true"]),
        "accumulate_grad_batches": st.integers(2, 3),
        "gradient_clip_val": st.just(0.5),
        "limit_train_batches": st.sampled_from([3, 0.5]),
        "limit_val_batches": st.sampled_from([0, 2]),
        "max_epochs": st.integers(1, 2),
        "max_steps": st.just(2),
        "val_check_interval": st.just(1),
        "check_val_every_n_epoch": st.just(2),
        "reload_dataloaders_every_n_epochs": st.just(1),
        "overfit_batches": st.just(2),
        "profiler": st.just("simple"),
        "detect_anomaly": st.just(True),
        "deterministic": st.just(True),
        "max_time": st.just("00:00:01:00"),
    },
)
CALLS = {
    "lr_find": lambda tuner, *given, **kind: tuner.lr_find(
        *given, **kind, num_training=15, max_lr=10.0, update_attr=False
    ),
    "power": lambda tuner, *given, **kind: tuner.scale_batch_size(*given, **kind, max_val=16),
    "binsearch": lambda tuner, *given, **kind: tuner.scale_batch_size(*given, **kind, mode="binsearch", max_val=16),
    "validate": lambda tuner, *given, **kind: tuner.scale_batch_size(*given, **kind, method="validate", max_val=16),
    "predict": lambda tuner, *given, **kind: tuner.scale_batch_size(*given, **kind, method="predict", max_val=16),
}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flags=SETTINGS,
    call=st.sampled_from(sorted(CALLS)),
    end=st.sampled_from(sorted(ENDS)),
    at_step=st.integers(0, 6),
    optimizer=st.sampled_from(["Adam", "SGD", "LBFGS"]),
    fitted=st.booleans(),
    with_datamodule=st.booleans(),
)
@example({"precision": "bf16-true"}, "lr_find", "error", 3, "Adam", True, True)
@example({"precision": "16-mixed"}, "power", "no memory", 3, "SGD", True, False)
def test_afterwards_everything_is_as_before(
    kit, make_trainer, tmp_path, flags, call, end, at_step, optimizer, fitted, with_datamodule
):
    class Ending(kit.Model):
        left = math.inf

        def step(self, batch):
            self.left -= 1
            if self.left < 0:
                ENDS[end]()
            return super().step(batch)

    torch.manual_seed(at_step)
    model = Ending(optimizer=optimizer)
    given = {"datamodule": kit.Data()} if with_datamodule else {}
    trainer = make_trainer(
        logger=CSVLogger(tmp_path),
        callbacks=[ModelCheckpoint(tmp_path / "kept"), EarlyStopping("loss", strict=False)],
        enable_checkpointing=True,
        **flags,
    )
    if fitted:
        trainer.fit(model, **given)
    model.left = at_step if end != "good" else math.inf
    owners = [trainer, model, *given.values()]
    before = kit.everything(*owners, root=tmp_path)
    found, failed = None, None
    try:
        found = CALLS[call](Tuner(trainer), model, **given)
    except (ValueError, RuntimeError, SystemExit, MisconfigurationException) as error:
        failed = str(error)
    # A sweep goes on until its loss explodes, and that is what detect_anomaly=True looks for.
    assert end != "good" or failed is None or "returned nan values" in failed
    if isinstance(found, int):  # the only thing that may differ
        for holder in (model, given["datamodule"].hparams) if given else (model,):
            if hasattr(holder, "batch_size"):
                assert holder.batch_size == found
                holder.batch_size = 4
    after = kit.everything(*owners, root=tmp_path)
    assert after == before


def test_a_fit_after_tuning_is_the_fit_without(kit, make_trainer, tmp_path):
    weights = []
    for tunes in (False, True):
        torch.manual_seed(7)
        model, data = kit.Model(), kit.Data()
        trainer = make_trainer(max_epochs=2)
        if tunes:
            Tuner(trainer).lr_find(model, datamodule=data, num_training=20, update_attr=False)
        trainer.fit(model, datamodule=data)
        weights.append({name: value.tolist() for name, value in model.state_dict().items()})
    assert weights[0] == weights[1]


def test_loaders_that_were_passed_are_where_they_were(kit, make_trainer):
    loader = DataLoader(kit.Points(), 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    state = loader.generator.get_state()
    Tuner(make_trainer()).lr_find(kit.Model(), loader, num_training=20)
    assert torch.equal(loader.generator.get_state(), state)


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_the_suggestion_is_set_wherever_the_rate_lives(kit, make_trainer):
    model = kit.Model()
    finder = Tuner(make_trainer()).lr_find(model, max_lr=10.0)
    assert finder.suggestion() == model.lr == model.hparams.lr
    assert 1e-8 < model.lr < 10.0
    assert model.hparams_initial.lr == 1e-3


def test_nothing_is_set_unless_wanted(kit, make_trainer):
    model = kit.Model()
    assert Tuner(make_trainer()).lr_find(model, max_lr=10.0, update_attr=False).suggestion()
    assert (model.lr, model.hparams.lr) == (1e-3, 1e-3)


def test_a_rate_under_another_name(kit, make_trainer):
    class Nested(kit.Model):
        def __init__(self):
            super().__init__()
            self.options = {"rate": 1e-3}

    model = Nested()
    finder = Tuner(make_trainer()).lr_find(model, max_lr=10.0, attr_name="options.rate")
    assert model.options["rate"] == finder.suggestion()
    assert model.lr == 1e-3


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_a_batch_size_for_every_entry_point(kit, make_trainer, method, mode):
    model = kit.Model(memory=kit.Memory(21))
    found = Tuner(make_trainer()).scale_batch_size(model, method=method, mode=mode, margin=0.0)
    assert found == model.batch_size == (16 if mode == "power" else 21)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 60), init_val=st.integers(1, 60))
def test_the_largest_size_that_a_memory_allows(kit, make_trainer, limit, init_val):
    model, data = kit.Model(memory=kit.Memory(limit)), kit.Data()
    trainer = make_trainer(limit_val_batches=0)
    found = Tuner(trainer).scale_batch_size(
        model, datamodule=data, mode="binsearch", init_val=init_val, margin=0.0, steps_per_trial=1
    )
    assert found == min(limit, 48)  # there are 48 samples
    assert model.batch_size == data.hparams.batch_size == found


@pytest.mark.parametrize("name", ["CUDA", "cuDNN", "cuDNN workspace", "MPS", "machine", "Python"])
def test_memory_of_every_kind(kit, make_trainer, name):
    class Full(kit.Model):
        def step(self, batch):
            if len(batch[0]) > 8:
                raise kit.FULL[name]
            return super().step(batch)

    assert Tuner(make_trainer()).scale_batch_size(Full()) == 8


def test_what_was_tried_is_kept(kit, make_trainer):
    tuner = Tuner(make_trainer(limit_val_batches=0))
    assert tuner.batch_size_trials is None
    assert tuner.scale_batch_size(kit.Model(memory=kit.Memory(20)), mode="binsearch", margin=0.1) == 18
    trials = tuner.batch_size_trials
    assert trials.results["batch_size"] == [2, 8, 16, 32, 24, 20, 22, 21]
    assert trials.results["fits"] == [True, True, True, False, False, True, False, False]
    assert (trials.suggestion(), trials.suggestion(margin=0.0)) == (18, 20)


def test_a_margin_is_kept(kit, make_trainer):
    model = kit.Model(memory=kit.Memory(40))
    assert Tuner(make_trainer()).scale_batch_size(model, mode="binsearch", margin=0.25) == 30


def test_validation_needs_memory_too(kit, make_trainer):
    class Greedy(kit.Model):
        def validation_step(self, batch, batch_idx):
            self.memory.take(2 * len(batch[0]))

    model = Greedy(memory=kit.Memory(20))
    assert Tuner(make_trainer()).scale_batch_size(model) == 8
    assert Tuner(make_trainer(limit_val_batches=0)).scale_batch_size(model) == 16


def test_every_size_survives_its_steps(kit, make_trainer):
    memory = kit.Memory(10**9)
    Tuner(make_trainer(limit_val_batches=0)).scale_batch_size(
        kit.Model(memory=memory), steps_per_trial=4, init_val=3, max_trials=3
    )
    assert memory.asked == [3] * 4 + [6] * 4 + [12] * 4


def test_callbacks_of_trainer_and_module_hear_nothing(kit, make_trainer):
    heard = kit.Alarm.heard
    tuner = Tuner(make_trainer(callbacks=[kit.Alarm()]))
    tuner.lr_find(kit.Model(), num_training=5)
    tuner.scale_batch_size(kit.Model(), max_val=4)
    assert kit.Alarm.heard == heard


# ---- bad input -------------------------------------------------------------------------------------------------------


def no_rate(kit):
    model = kit.Model()
    del model.lr, model.hparams["lr"]
    return model


def two_optimizers(self):
    self.automatic_optimization = False
    return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.Adam(self.parameters(), 0.1)]


def variant(kit, **changes):
    return type("Variant", (kit.Model,), changes)()


def batches(kit):
    return DataLoader(kit.Points(), batch_sampler=BatchSampler(SequentialSampler(kit.Points()), 4, False))


def fixed(kit):
    return DataLoader(kit.Points(), batch_size=4)


def find(**options):
    return lambda kit, tuner: tuner.lr_find(kit.Model(), **options)


def scale(**options):
    return lambda kit, tuner: tuner.scale_batch_size(kit.Model(), **options)


WRONG = {
    "no attribute": (lambda kit, t: t.lr_find(no_rate(kit)), AttributeError, "finds no attribute 'lr' or 'learning_"),
    "no such attribute": (find(attr_name="foo"), NoSuchAttributeError, "finds no attribute 'foo'"),
    "method": (find(method="validate"), ConfigurationError, "method='validate'"),
    "unknown method": (find(method="foo"), ConfigurationError, "method='foo'"),
    "mode": (find(mode="foo"), ValueError, "mode='foo'"),
    "loaders of other methods": (find(dataloaders=[1]), ConfigurationError, "dataloaders="),
    "min above max": (find(min_lr=1.0, max_lr=0.1), ValueError, r"min_lr=1.0, max_lr=0.1"),
    "min of zero": (find(min_lr=0.0), ValueError, "min_lr=0.0"),
    "NaN": (find(max_lr=math.nan), ValueError, "max_lr=nan"),
    "a word": (find(min_lr="1e-3"), ArgumentTypeError, "min_lr='1e-3'"),
    "no steps": (find(num_training=0), ValueError, "num_training=0"),
    "threshold": (find(early_stop_threshold=0.5), ValueError, "early_stop_threshold=0.5"),
    "no module": (lambda kit, t: t.lr_find(torch.nn.Linear(1, 1)), TypeError, "LightningModule"),
    "several optimizers": (
        lambda kit, t: t.lr_find(variant(kit, configure_optimizers=two_optimizers)),
        MisconfigurationException,
        "gave 2",
    ),
    "no optimizer": (
        lambda kit, t: t.lr_find(variant(kit, configure_optimizers=lambda self: None)),
        ConfigurationError,
        "gave 0",
    ),
    "NaN from the start": (
        lambda kit, t: t.lr_find(variant(kit, step=lambda self, batch: self.net(batch[0]).sum() * math.nan)),
        ConfigurationError,
        "met a loss of nan in the very first step, at a learning rate of 1e-08",
    ),
    "no loss": (
        lambda kit, t: t.lr_find(variant(kit, training_step=lambda self, batch, index: None)),
        ConfigurationError,
        "saw no loss",
    ),
    "no batches": (
        lambda kit, t: t.lr_find(variant(kit, train_dataloader=lambda self: [])),
        ConfigurationError,
        "train_dataloader",
    ),
    "scale: method": (scale(method="foo"), ValueError, "method='foo'"),
    "scale: mode": (scale(mode="foo"), ValueError, "mode='foo'"),
    "scale: attribute": (scale(batch_arg_name="foo"), MisconfigurationException, "finds no attribute 'foo'"),
    "scale: loaders": (scale(train_dataloaders=[1]), MisconfigurationException, "was given loaders"),
    "scale: wrong loaders": (scale(method="test", train_dataloaders=[1]), MisconfigurationException, "train_dataload"),
    "scale: min above max": (scale(init_val=64, max_val=8), ValueError, "init_val=64, max_val=8"),
    "scale: margin": (scale(margin=1.5), ValueError, "margin=1.5"),
    "scale: no size": (scale(init_val=0), ValueError, "init_val=0"),
    "scale: half a size": (scale(init_val=1.5), TypeError, "init_val=1.5"),
    "scale: no batch size on the loader": (
        lambda kit, t: t.scale_batch_size(variant(kit, train_dataloader=lambda self: batches(kit))),
        ConfigurationError,
        "loaders without a batch size",
    ),
    "scale: a loader that does not listen": (
        lambda kit, t: t.scale_batch_size(variant(kit, train_dataloader=lambda self: fixed(kit))),
        ConfigurationError,
        "from 2 to 4, and the batches stayed at 4 samples",
    ),
    "scale: nothing fits": (
        lambda kit, t: t.scale_batch_size(kit.Model(memory=kit.Memory(0))),
        ConfigurationError,
        "found no batch size: memory runs out for a single sample too, after 2 trials",
    ),
}


@pytest.mark.filterwarnings("ignore:.*returned None")
@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_answered_in_sentences(kit, make_trainer, tmp_path, name):
    call, kind, words = WRONG[name]
    trainer = make_trainer()
    before = kit.everything(trainer, root=tmp_path)
    del before["rng"]  # the models are made inside
    with pytest.raises(kind, match=words) as caught:
        call(kit, Tuner(trainer))
    assert isinstance(caught.value, MisconfigurationException)
    assert str(caught.value).count(". ") >= 1
    assert str(caught.value).endswith((".", ")"))
    after = kit.everything(trainer, root=tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("call", ["lr_find", "scale_batch_size"])
def test_a_trainer_that_cannot_tune(kit, make_trainer, call):
    finder = {"lr_find": LearningRateFinder, "scale_batch_size": BatchSizeFinder}[call]
    with pytest.raises(ConfigurationError, match=f"{call} was called with Trainer\\(fast_dev_run=True\\)"):
        getattr(Tuner(make_trainer(fast_dev_run=True)), call)(kit.Model())
    with pytest.raises(ValueError, match=f"callbacks=\\[{finder.__name__}"):
        getattr(Tuner(make_trainer(callbacks=[finder()])), call)(kit.Model())
    with pytest.raises(TypeError, match="Tuner\\(trainer='cpu'\\)"):
        Tuner("cpu")


def test_errors_of_the_user_are_the_users(kit, make_trainer):
    def fails(self, batch):
        raise KeyError("mine")

    for call in (Tuner.lr_find, Tuner.scale_batch_size):
        with pytest.raises(KeyError, match="mine"):
            call(Tuner(make_trainer()), variant(kit, step=fails))
