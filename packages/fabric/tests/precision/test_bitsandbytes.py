"""4-bit and 8-bit weights, by bitsandbytes' own kernels for the CPU."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.precision import bitsandbytes as module_under_test
from fulmen.fabric.precision.bitsandbytes import BitsandbytesPrecision

bnb = pytest.importorskip("bitsandbytes")

FOUR_BITS = ("nf4", "nf4-dq", "fp4", "fp4-dq")
FROZEN = (*FOUR_BITS, "int8")
MODES = (*FROZEN, "int8-training")


class Net(nn.Module):
    """Sizes that are no multiples of anything, three axes, and a layer whose fast path reads weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 64)
        self.encoder = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.adapter = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.head(self.adapter(self.encoder(self.embed(tokens_BT))))


TOKENS = torch.arange(10).reshape(2, 5)


def make_net() -> Net:
    torch.manual_seed(0)
    return Net()


def set_up(mode: str, net: nn.Module | None = None) -> tuple[Fabric, Any]:
    fabric = Fabric(accelerator="cpu", plugins=BitsandbytesPrecision(mode))  # type: ignore[arg-type]
    return fabric, fabric.setup(make_net() if net is None else net)


def evaluated(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).float()


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_quantized_and_the_result_is_near(mode: str) -> None:
    expected = evaluated(make_net())
    _, model = set_up(mode)
    held = model.module.head
    assert type(held) is (bnb.nn.Linear8bitLt if mode.startswith("int8") else bnb.nn.Linear4bit)
    assert held.weight.dtype == {"int8": torch.int8, "int8-training": torch.float16}.get(mode, torch.uint8)
    if mode in FOUR_BITS:
        assert held.weight.quant_state.quant_type == mode[:3]
        assert held.weight.quant_state.nested == mode.endswith("-dq")
        assert held.weight.numel() == 64 * 10 / 2
    dtype = torch.float16 if mode.startswith("int8") else torch.bfloat16
    assert model.module.embed.weight.dtype == model.module.adapter.weight.dtype == dtype
    assert type(model.module.encoder.self_attn.out_proj) is not type(held)  # its parent reads the weight
    for is_training in (True, False):
        model.train(is_training)
        output = model(TOKENS)
        assert output.dtype == torch.float32
        assert (output - expected).abs().max() < (0.03 if mode.startswith("int8") else 0.3)


@pytest.mark.parametrize("mode", MODES)
def test_what_trains_trains_with_an_optimizer_that_was_made_before(mode: str) -> None:
    net = make_net()
    fabric = Fabric(accelerator="cpu", plugins=BitsandbytesPrecision(mode))  # type: ignore[arg-type]
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated(model)  # must not change what training does
    model.train()
    losses = []
    for _ in range(4):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"embed.weight", "adapter.weight", "head.bias"} <= changed
    assert ("head.weight" in changed) == ("encoder.linear1.weight" in changed) == (mode == "int8-training")


def test_trained_8_bit_weights_follow_the_gradients_of_full_precision() -> None:
    torch.manual_seed(0)
    layer, twin = nn.Linear(32, 16), nn.Linear(32, 16)
    twin.load_state_dict(layer.state_dict())
    inputs = torch.randn(3, 4, 5, 32)  # bitsandbytes itself takes fewer axes
    fabric = Fabric(accelerator="cpu", plugins=BitsandbytesPrecision("int8-training"))
    model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    for _ in range(3):
        twin.zero_grad()
        twin(inputs).square().mean().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 0.1 * parameter.grad
        optimizer.zero_grad()
        fabric.backward(model(inputs).square().mean())
        assert torch.allclose(model.weight.grad.float(), twin.weight.grad, atol=2e-3)
        optimizer.step()
    model.eval()
    assert torch.allclose(model(inputs), twin(inputs), atol=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_comes_back_bit_by_bit_wherever_it_is_loaded(mode: str, tmp_path: Path) -> None:
    fabric, model = set_up(mode)
    expected = evaluated(model)
    fabric.save(tmp_path / "model.ckpt", {"model": model})
    torch.manual_seed(1)
    _, other = set_up(mode, Net())
    evaluated(other)
    with fabric.init_module():
        made = Net()
    for each in (other, fabric.setup(made)):
        fabric.load(tmp_path / "model.ckpt", {"model": each})
        assert torch.equal(evaluated(each), expected)
    made.load_state_dict(model.state_dict())
    assert made.head.weight.data_ptr() != model.module.head.weight.data_ptr()
    copied = copy.deepcopy(model.module)
    assert torch.equal(evaluated(copied), expected)
    if mode in FROZEN:
        assert torch.equal(evaluated(pickle.loads(pickle.dumps(model.module))), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_full_precision_checkpoint_is_quantized_as_it_is_loaded(mode: str) -> None:
    full = make_net().state_dict()
    kept = {name: value.clone() for name, value in full.items()}
    _, expected = set_up(mode)
    fabric, model = set_up(mode, Net())
    with fabric.init_module(empty_init=True):
        made = Net()
    assert isinstance(made.head, nn.Linear)
    assert type(made.head) is not nn.Linear
    for each in (model, made):
        assert not any(each.load_state_dict(full))
        if mode != "int8":  # 16 bits first, or not: the scales differ in the last bit
            assert torch.equal(evaluated(each), evaluated(expected))
        assert torch.allclose(evaluated(each), evaluated(expected), atol=0.02)
    assert all(torch.equal(full[name], kept[name]) for name in kept)


@pytest.mark.parametrize("mode", FROZEN)
def test_a_wrong_checkpoint_is_answered_by_torch(mode: str) -> None:
    _, model = set_up(mode)
    state = dict(model.state_dict())
    removed = [name for name in state if name.startswith(("head.weight.", "head.SCB"))]
    for name in removed:
        del state[name]
    state["surplus"] = torch.ones(1)
    with pytest.raises(RuntimeError, match="surplus"):
        model.load_state_dict(state)


def _replicas(folder: Path) -> None:
    torch.set_num_threads(1)
    for mode in MODES:
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else os.getpid())  # other weights in each process
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=BitsandbytesPrecision(mode))  # type: ignore[arg-type]
        fabric.launch()
        model: Any = fabric.setup(Net())
        torch.save(evaluated(model), folder / f"{mode}.{fabric.global_rank}")


def test_replicas_have_the_scales_of_the_first(tmp_path: Path) -> None:
    SpawnLauncher(LightningEnvironment(), 2, 1, "fork").launch(_replicas, tmp_path)
    for mode in MODES:
        one, other = (torch.load(tmp_path / f"{mode}.{rank}") for rank in range(2))
        assert torch.equal(one, other), mode


def test_what_belongs_to_weights_and_is_no_parameter() -> None:
    for mode, count in {"nf4": 1, "nf4-dq": 3, "int8": 1, "int8-training": 0}.items():
        precision = BitsandbytesPrecision(mode)  # type: ignore[arg-type]
        layer = precision.convert_module(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)))
        assert len(precision.beside_parameters(layer)) == count
        layer(torch.ones(1, 64, dtype=precision.dtype))
        assert len(precision.beside_parameters(layer)) == count


def test_with_a_gpu_in_the_machine_it_waits_for_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for mode in ("nf4", "int8"):
        precision = BitsandbytesPrecision(mode, dtype=torch.float16)  # type: ignore[arg-type]
        waiting = precision.convert_module(nn.Sequential(nn.Linear(8, 8)))
        assert waiting[0].weight.is_floating_point()
        moved = copy.deepcopy(waiting).to("cpu")
        assert not moved[0].weight.is_floating_point()
        inputs = torch.ones(1, 8, dtype=torch.float16)
        assert torch.equal(waiting(inputs), moved(inputs))  # or for the first forward
        assert not waiting[0].weight.is_floating_point()


def test_layers_can_be_left_out() -> None:
    precision = BitsandbytesPrecision("nf4", ignore_modules={"encoder", "head"})
    assert precision.ignore_modules == {"encoder", "head"}
    with pytest.warns(UserWarning, match="quantizes nothing in this Net"):
        net = precision.convert_module(make_net())
    assert type(net.head) is type(net.encoder.linear1) is nn.Linear
    assert net.head.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match="Make the module outside"):
        precision.module_init_context()


def test_what_is_quantized_already_is_left() -> None:
    net = make_net()
    net.head = bnb.nn.LinearNF4(64, 10)
    converted = BitsandbytesPrecision("fp4", dtype=torch.float16).convert_module(net)
    assert converted.head is net.head
    assert net.head.compute_dtype == torch.float16
    assert type(converted.encoder.linear1) is nn.Linear


def test_it_computes_in_16_bits_and_asks_the_gpu_only_when_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    precision = BitsandbytesPrecision("nf4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert precision.dtype == precision.compute_dtype == torch.float16
    with precision.forward_context(), precision.tensor_init_context():
        assert torch.ones(1).dtype == torch.float16
    assert BitsandbytesPrecision("nf4", dtype=torch.float32).dtype == torch.float32
    assert BitsandbytesPrecision("int8").dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"mode": "nf5"}, "mode='nf5'"),
        ({"mode": "nf4", "dtype": torch.float64}, "torch.float64"),
        ({"mode": "int8", "dtype": torch.bfloat16}, "torch.bfloat16"),
        ({"mode": "nf4", "ignore_modules": "head"}, "ignore_modules='head'"),
    ],
)
def test_bad_arguments_are_answered_at_once(arguments: dict[str, Any], quoted: str) -> None:
    with pytest.raises((ConfigurationError, ArgumentTypeError), match=quoted):
        BitsandbytesPrecision(**arguments)


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="Conv1d without linear layers"):
        BitsandbytesPrecision("nf4").convert_module(nn.Conv1d(1, 1, 1))


def test_a_parameter_that_is_in_use_is_refused() -> None:
    layer = nn.Linear(4, 4)
    output = layer(torch.ones(1, 4))
    with pytest.raises(ConfigurationError, match="whose parameters are in use"):
        BitsandbytesPrecision("int8-training").convert_module(nn.Sequential(layer))
    del output


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *, purpose: str) -> None:
        raise ModuleNotFoundError(f"{purpose} needs {name}")

    monkeypatch.setattr(module_under_test, "require", missing)
    with pytest.raises(ModuleNotFoundError, match=r"BitsandbytesPrecision\('nf4'\) needs bitsandbytes"):
        BitsandbytesPrecision("nf4")
