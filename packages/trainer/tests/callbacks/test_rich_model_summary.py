import sys

import pytest
import torch
from torch import nn

from fulmen.trainer.callbacks.rich_model_summary import RichModelSummary
from fulmen.trainer.core.module import LightningModule

pytest.importorskip("rich")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        self.head = nn.Linear(3, 1)
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        return self.head(self.body(x))


def test_it_prints_a_table_and_totals(make_trainer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    RichModelSummary(max_depth=2, title="The net").on_fit_start(make_trainer(), Net())
    out = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    assert lines[0] == "The net"
    assert "0 body Sequential 15 train 48 [2, 4] [2, 3]" in lines
    assert "1 body.0 Linear 15 train 48 [2, 4] [2, 3]" in lines
    assert "3 head Linear 4 train 12 [2, 3] [2, 1]" in lines
    assert {"19 Trainable params", "0 Non-trainable params", "60 Total FLOPs"} <= set(lines)
    RichModelSummary().on_fit_start(make_trainer(is_global_zero=False), Net())
    RichModelSummary(max_depth=0).on_fit_start(make_trainer(), Net())
    assert capsys.readouterr().out == ""


def test_without_rich_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ModuleNotFoundError, match=r"RichModelSummary needs .*'fulmen-trainer\[rich\]'"):
        RichModelSummary()


def test_on_a_narrow_screen_no_name_is_cut_short(make_trainer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    RichModelSummary(max_depth=2).on_fit_start(make_trainer(), Net())
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 50
