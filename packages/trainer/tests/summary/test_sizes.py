"""Sizes of models whose parameters are split over processes, quantized or packed."""

import os
import traceback
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import DataLoader

from fulmen.trainer.callbacks.model_summary import ModelSummary as ModelSummaryCallback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.strategies.fsdp import FSDPStrategy
from fulmen.trainer.summary.layers import ModelSummary
from fulmen.trainer.summary.sizes import num_bytes_of, num_parameters
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # on a busy machine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says that it will move to torchao
    from torch.ao.quantization import (
        convert,
        float_qparams_weight_only_qconfig,
        get_default_qconfig,
        prepare,
        quantize_dynamic,
    )


class Net(LightningModule):
    def __init__(self, body, example=None):
        super().__init__()
        self.body = body
        self.head = nn.Linear(64, 2)
        self.example_input_array = example

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def linears():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))


WEIGHTS, BIASES = 2 * 64 * 128, 128 + 64
HEAD = 64 * 2 + 2


def dynamic(body, kinds=(nn.Linear,)):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(body, kinds if isinstance(kinds, dict) else set(kinds), dtype=torch.qint8)


def static(*layers, example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stubs = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        body = nn.Sequential(stubs[0], *layers, stubs[1]).eval()
        body.qconfig = get_default_qconfig("x86")
        body = prepare(body)
        body(example)
        return convert(body)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_type_decides_the_size(dtype):
    net = Net(linears()).to(dtype)
    assert ModelSummary(net).model_size == pytest.approx((WEIGHTS + BIASES + HEAD) * dtype.itemsize / 1e6)


def test_packed_weights_count_and_their_flops_too():
    example = torch.randn(4, 64)
    plain = ModelSummary(Net(linears(), example), max_depth=2)
    for body in (dynamic(linears()), static(*linears(), example=example)):
        summary = ModelSummary(Net(body, example), max_depth=2)
        assert summary.total_parameters == plain.total_parameters == WEIGHTS + BIASES + HEAD
        assert summary.trainable_parameters == HEAD
        assert summary.model_size == pytest.approx((WEIGHTS + 4 * BIASES + 4 * HEAD) / 1e6)
        assert summary.total_flops == plain.total_flops
        flops = {name: sum(kinds.values()) for name, kinds in summary.flop_counts.items()}
        assert flops["Net.body"] == 2 * 4 * WEIGHTS
        assert summary.param_nums[0] == WEIGHTS + BIASES
        assert "other params" not in str(summary)


def test_packed_convolutions_embeddings_and_recurrent_layers():
    image = torch.randn(1, 4, 8, 8)
    conv = static(nn.Conv2d(4, 6, 3, groups=2), example=image)
    assert (num_parameters(conv), num_bytes_of(conv)) == (6 * 2 * 9 + 6, 6 * 2 * 9 + 4 * 6)

    class Seen(LightningModule):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv
            self.example_input_array = image

        def forward(self, x):
            return self.conv(x)

    counted = [ModelSummary(Seen(layer)).total_flops for layer in (nn.Conv2d(4, 6, 3, groups=2), conv)]
    assert counted[0] == counted[1] > 0

    lstm = dynamic(nn.Sequential(nn.LSTM(4, 3)), (nn.LSTM,))
    biases = 2 * 12
    assert (num_parameters(lstm), num_bytes_of(lstm)) == (12 * 4 + 12 * 3 + biases, 12 * 4 + 12 * 3 + 4 * biases)
    table = dynamic(nn.Sequential(nn.Embedding(10, 4)), {nn.Embedding: float_qparams_weight_only_qconfig})
    assert (num_parameters(table), num_bytes_of(table)) == (40, 40)


def test_tensors_made_of_tensors_count_their_parts():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight = nn.Parameter(TwoTensor(torch.ones(2, 3), torch.ones(2, 3)))
    assert (num_parameters(layer), num_bytes_of(layer)) == (6, 2 * 6 * 4)


def test_tensors_of_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    body = linears()
    quantization.quantize_(body, quantization.Int8WeightOnlyConfig())
    summary = ModelSummary(Net(body, torch.randn(4, 64)), max_depth=2)
    assert summary.total_parameters == WEIGHTS + BIASES + HEAD
    # A byte for each weight, four for each bias; and scales, one for each row, of at most eight bytes.
    least = WEIGHTS + 4 * (BIASES + HEAD)
    assert least < 1e6 * summary.model_size <= least + 8 * 192
    assert summary.total_flops == 2 * 4 * (WEIGHTS + 128)


def test_layers_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    least = {8: WEIGHTS, 4: WEIGHTS // 2}
    for bits, layer in ((8, bnb.nn.Linear8bitLt), (4, bnb.nn.Linear4bit)):
        options = {"has_fp16_weights": False} if bits == 8 else {}
        body = nn.Sequential(layer(64, 128, **options), nn.ReLU(), layer(128, 64, **options))
        net = Net(body.to("cpu"))
        summary = ModelSummary(net)
        assert summary.total_parameters == WEIGHTS + BIASES + HEAD
        assert summary.trainable_parameters == BIASES + HEAD
        packed = 1e6 * summary.model_size - 4 * (BIASES + HEAD)
        assert least[bits] < packed < 1.2 * least[bits] + 2000  # with the scales, and the tables of the codes


def splits(rank, folder):
    """What a process prints and counts when a fit begins whose parameters are split."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=300)
        )
        # As torchrun starts a process; the group is open already, so that no port is needed.
        names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "1"}
        os.environ |= {"TORCHELASTIC_RESTART_COUNT": "0"}
        found = {}

        class Kept(ModelSummaryCallback):
            @staticmethod
            def summarize(summary_data, *totals, **rest):
                found.update(table=dict(summary_data), totals=totals, **rest)

        net = Net(linears(), torch.randn(4, 64))
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy=FSDPStrategy(auto_wrap_policy={nn.Linear}),
            callbacks=Kept(max_depth=2),
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        trainer.fit(net, DataLoader(torch.randn(8, 64)))
        found["here"] = sum(parameter.to_local().numel() for parameter in net.parameters())
    except BaseException:
        found = {"failed": traceback.format_exc()}
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # a process that failed must not wait for the other one


def test_what_is_split_counts_whole(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=splits, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert "failed" not in first, first["failed"]
    total = WEIGHTS + BIASES + HEAD
    assert first["here"] + second["here"] == total
    assert first["here"] < total
    assert first["totals"] == (total, total, 4 * total / 1e6)
    assert first["table"]["Params"] == ["16.6 K", "8.3 K", "0  ", "8.3 K", "130  "]
    assert first["table"]["In sizes"] == ["[4, 64]", "[4, 64]", "[4, 128]", "[4, 128]", "[4, 64]"]
    assert first["total_flops"] == 2 * 4 * (WEIGHTS + 128)
    assert "table" not in second  # only rank zero shows it
