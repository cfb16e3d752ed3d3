"""Which layers go, what they get, and in which contexts forward runs; with a small fake of the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.precision.catalog import make_precision
from fulmen.fabric.precision.transformer_engine import TransformerEnginePrecision
from fulmen.fabric.selection import select

BF16 = torch.bfloat16

FAKE = {
    "__init__.py": "",
    "common/__init__.py": "",
    "common/recipe.py": """
from dataclasses import dataclass
from enum import Enum
class Format(Enum):
    E4M3 = 1
    HYBRID = 2
@dataclass
class DelayedScaling:
    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1024
""",
    "pytorch.py": """
import contextlib, torch
running = []
@contextlib.contextmanager
def fp8_autocast(enabled, fp8_recipe):
    running.append((enabled, fp8_recipe))
    yield
    running.pop()
class Linear(torch.nn.Module):
    def __init__(self, in_features, out_features, bias, params_dtype, device):
        super().__init__()
        self.made_in = (params_dtype, device)
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        self.bias = torch.nn.Parameter(torch.empty(out_features, device=device)) if bias else None
    def forward(self, rows):
        assert running, "not in fp8"
        return torch.nn.functional.linear(rows, self.weight, self.bias)
class LayerNorm(torch.nn.Module):
    def __init__(self, size, eps, params_dtype, device):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(size, dtype=params_dtype, device=device))
        self.bias = torch.nn.Parameter(torch.empty(size, dtype=params_dtype, device=device))
    def forward(self, rows):
        return torch.nn.functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.eps)
""",
}


@pytest.fixture
def te(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, text in FAKE.items():
        path = tmp_path / "transformer_engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    import transformer_engine.pytorch as te  # type: ignore[import-not-found]

    yield te
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"]:
        del sys.modules[name]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, eps=1e-3), nn.Linear(16, 32, bias=False), nn.ReLU())


def test_linear_and_norm_become_the_packages_and_keep_their_parameters(te: Any) -> None:
    net = make_net()
    parameters = list(net.parameters())
    precision = TransformerEnginePrecision(weights_dtype=BF16)
    converted = precision.convert_module(net)
    assert converted is net
    assert [type(layer) for layer in net] == [te.Linear, te.LayerNorm, te.Linear, nn.ReLU]
    assert net[0].made_in == (BF16, torch.device("cpu"))
    assert net[1].eps == 1e-3
    assert net[2].bias is None
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
    assert {parameter.dtype for parameter in parameters} == {BF16}
    twin = make_net().to(BF16).state_dict()
    assert all(torch.equal(value, twin[name]) for name, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_forward_runs_in_fp8_and_the_rest_in_16_bits(te: Any) -> None:
    precision = TransformerEnginePrecision(weights_dtype=BF16, recipe={"fp8_format": "E4M3", "amax_history_len": 3})
    net = precision.convert_module(make_net())
    with precision.forward_context():
        ((enabled, recipe),) = te.running
        assert enabled
        assert (recipe.fp8_format.name, recipe.amax_history_len) == ("E4M3", 3)
        assert torch.ones(1).dtype == BF16
        output = net(precision.convert_input(torch.ones(2, 8)))
    assert te.running == []
    assert torch.get_default_dtype() == precision.convert_output(output).dtype == torch.float32
    assert precision.compute_dtype == torch.float8_e4m3fn
    assert precision.fallback_compute_dtype == BF16


def test_while_a_module_is_made(te: Any) -> None:
    with TransformerEnginePrecision(weights_dtype=BF16).module_init_context():
        made = make_net()
    assert [type(layer) for layer in made] == [te.Linear, te.LayerNorm, te.Linear, nn.ReLU]
    assert made[0].weight.dtype == BF16
    with TransformerEnginePrecision(weights_dtype=BF16, replace_layers=False).module_init_context():
        assert type(make_net()[0]) is nn.Linear


def test_layers_stay_when_told_so_or_when_the_user_has_some_of_the_packages(te: Any) -> None:
    kept = TransformerEnginePrecision(weights_dtype=torch.float16, replace_layers=False).convert_module(make_net())
    assert type(kept[0]) is nn.Linear
    assert kept[0].weight.dtype == torch.float16
    own = nn.Sequential(te.LayerNorm(8, 1e-5, BF16, "cpu"), nn.Linear(8, 16))
    for replace_layers in (None, True):
        precision = TransformerEnginePrecision(weights_dtype=BF16, replace_layers=replace_layers)
        assert type(precision.convert_module(own)[1]) is nn.Linear


def test_layers_that_cannot_be_computed_in_fp8_stay(te: Any) -> None:
    net = nn.Sequential(nn.Linear(7, 16), nn.Linear(8, 15), nn.LayerNorm((2, 8)), nn.LayerNorm(8, bias=False))
    with pytest.warns(UserWarning, match="multiples of 8 and 16"):
        TransformerEnginePrecision(weights_dtype=BF16).convert_module(net)
    assert [type(layer) for layer in net] == [nn.Linear, nn.Linear, nn.LayerNorm, nn.LayerNorm]


def test_its_names(te: Any) -> None:
    for name, dtype in {"transformer-engine": BF16, "transformer-engine-float16": torch.float16}.items():
        made = make_precision(name, "cuda")
        assert isinstance(made, TransformerEnginePrecision)
        assert (made.precision, made.weights_dtype, made.replace_layers, made.recipe) == (name, dtype, None, None)


def test_mistakes_are_answered(te: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"weights_dtype=torch\.float32"):
        TransformerEnginePrecision(weights_dtype=torch.float32)
    with pytest.raises(ConfigurationError, match="It has 'E4M3', 'HYBRID'"):
        TransformerEnginePrecision(weights_dtype=BF16, recipe={"fp8_format": "E9"})
    with pytest.raises(ConfigurationError, match=r"recipe=\{'length': 3\}"):
        TransformerEnginePrecision(weights_dtype=BF16, recipe={"length": 3})
    with pytest.raises(ConfigurationError, match=r"cannot use TransformerEnginePrecision on devices of type 'cpu'"):
        select(accelerator="cpu", precision="transformer-engine")


def test_without_the_package_it_says_what_to_install() -> None:
    with pytest.raises(MissingPackageError, match=r'pip install "transformer-engine\[pytorch\]"'):
        TransformerEnginePrecision(weights_dtype=BF16)
