import pytest
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.callbacks.model_summary import ModelSummary
from fulmen.trainer.core.module import LightningModule


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)


def test_it_is_printed_once_on_rank_zero(make_trainer, capsys):
    ModelSummary().on_fit_start(make_trainer(is_global_zero=False), Net())
    assert capsys.readouterr().out == ""
    ModelSummary().on_fit_start(make_trainer(), Net())
    out = capsys.readouterr().out
    assert "layer | Linear" in out
    assert "Total params" in out


def test_what_deepspeed_has_split_is_shown_per_device(make_trainer, capsys):
    net = Net()
    for parameter in net.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.partition_numel = lambda: 7
    ModelSummary().on_fit_start(make_trainer(), net)
    assert "Params per Device" in capsys.readouterr().out
    ModelSummary().on_fit_start(make_trainer(), Net())
    assert "Params per Device" not in capsys.readouterr().out


def test_depth_0_prints_nothing(make_trainer, capsys):
    ModelSummary(max_depth=0).on_fit_start(make_trainer(), Net())
    assert capsys.readouterr().out == ""


def test_a_subclass_shows_it_in_its_own_way(make_trainer):
    shown = {}

    class Mine(ModelSummary):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, model_size, **rest):
            shown.update(names=dict(summary_data)["Name"], total=total_parameters, **rest)

    Mine(color="red").on_fit_start(make_trainer(), Net())
    assert shown == {
        "names": ["layer"],
        "total": 15,
        "total_training_modes": {"train": 1, "eval": 0},
        "total_flops": 0,
        "color": "red",
    }


def test_a_depth_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="max_depth=-2"):
        ModelSummary(max_depth=-2)
