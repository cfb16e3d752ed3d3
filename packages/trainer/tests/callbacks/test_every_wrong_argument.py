import math
from fractions import Fraction

import pytest
import torch

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.callbacks.early_stopping import EarlyStopping
from fulmen.trainer.callbacks.lambda_callback import LambdaCallback
from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.trainer.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from fulmen.trainer.callbacks.throughput import ThroughputMonitor
from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar

WRONG = {
    "train_time_interval=1800": lambda: ModelCheckpoint(train_time_interval=1800),
    "every_n_epochs='2'": lambda: ModelCheckpoint(every_n_epochs="2"),
    "save_top_k='3'": lambda: ModelCheckpoint(save_top_k="3"),
    r"monitor=\['val_loss'\]": lambda: ModelCheckpoint(monitor=["val_loss"]),
    "filename=3": lambda: ModelCheckpoint(filename=3),
    "dirpath=None": lambda: OnExceptionCheckpoint(None),
    "patience='3'": lambda: EarlyStopping("val_loss", patience="3"),
    "min_delta='3'": lambda: EarlyStopping("val_loss", min_delta="3"),
    "stopping_threshold='3'": lambda: EarlyStopping("val_loss", stopping_threshold="3"),
    "divergence_threshold='3'": lambda: EarlyStopping("val_loss", divergence_threshold="3"),
    "monitor=None": lambda: EarlyStopping(None),
    "on_fit_start=3": lambda: LambdaCallback(on_fit_start=3),
    "batch_size_fn=3": lambda: ThroughputMonitor(3),
    "length_fn=3": lambda: ThroughputMonitor(len, 3),
    "refresh_rate='fast'": lambda: TQDMProgressBar("fast"),
}


@pytest.mark.parametrize("quoted", WRONG)
def test_what_would_fail_in_the_middle_of_a_run_is_refused_when_the_callback_is_made(quoted):
    with pytest.raises(ArgumentTypeError, match=quoted) as caught:
        WRONG[quoted]()
    assert str(caught.value).count(". ") == 2


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_train_steps", "save_top_k"])
def test_a_part_of_an_epoch_is_no_interval(name):
    with pytest.raises(ConfigurationError, match=rf"ModelCheckpoint\({name}=0.5\) is no whole number"):
        ModelCheckpoint(**{name: 0.5})
    ModelCheckpoint(**{name: 1.0})


def test_what_counts_as_a_number_is_taken():
    EarlyStopping("val_loss", patience=math.inf, min_delta=torch.tensor(0.1), stopping_threshold=Fraction(1, 3))
