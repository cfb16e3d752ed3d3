"""Every value of `precision=` with every strategy that runs on one CPU: it trains, or is refused in three sentences."""

import re
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.precision.catalog import PRECISIONS
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError, MissingPackageError
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.trainer import Trainer

VALUES = (None, *PRECISIONS, 16, 32, 64)
STRATEGIES = ("auto", "ddp", "fsdp", "model_parallel")
# Where the parameters are held in another type than 32 bit.
HELD = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
SENTENCE = re.compile(r"[.!?](?:\s|$)")


class Net(BoringModel):
    def __init__(self):
        super().__init__()
        self.losses, self.held = [], None

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).float().pow(2).mean()
        self.held = next(self.parameters()).dtype
        self.losses.append(loss.detach())
        return loss

    def configure_model(self):
        """Nothing is split: one process."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)  # rows of ones: 0.06 would be too much


@pytest.fixture(scope="module", autouse=True)
def alone():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def trainer(strategy, precision, folder):
    chosen = ModelParallelStrategy(1, 1) if strategy == "model_parallel" else strategy
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*uses bfloat16, since CPUs.*")
        return Trainer(
            accelerator="cpu",
            devices=1,
            strategy=chosen,
            precision=precision,
            max_steps=4,
            default_root_dir=folder,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_precision_trains_or_is_refused(strategy, tmp_path):
    loader = DataLoader(torch.ones(8, 32), batch_size=2)
    for value in VALUES:
        name = PRECISIONS.get(str(value), "32-true")
        if name.startswith("transformer"):
            if not is_installed("transformer_engine"):
                with pytest.raises(MissingPackageError, match="python -m pip install") as caught:
                    trainer(strategy, value, tmp_path)
                assert len(SENTENCE.findall(str(caught.value))) >= 3
            continue
        run, net = trainer(strategy, value, tmp_path), Net()
        if name == "16-true":
            with pytest.raises(ConfigurationError, match=r"Trainer\.fit.* precision='bf16-true'.*deepspeed") as caught:
                run.fit(net, loader)
            assert len(SENTENCE.findall(str(caught.value))) >= 3
            assert net.losses == []
            answers = run.predict(net, loader)
            assert [bool(answer.isfinite().all()) for answer in answers] == [True] * 4
            assert run.precision == name
            assert next(net.parameters()).dtype == torch.float16, strategy
            continue
        run.fit(net, loader)
        assert net.held == HELD.get(name, torch.float32), (strategy, value)
        assert net.losses[-1] < net.losses[0], (strategy, value)
        assert run.precision == (name if name != "16-mixed" else "bf16-mixed"), (strategy, value)


@pytest.mark.skipif(not is_installed("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_refuses_what_its_engine_does_not_compute(tmp_path):
    for value in ("64-true", 64, "transformer-engine", "transformer-engine-float16"):
        for stage in (1, 2, 3):
            with pytest.raises(ConfigurationError, match=rf"precision={value!r}\).*cannot be used with DeepSpeed"):
                trainer(f"deepspeed_stage_{stage}", value, tmp_path)


def test_other_values_are_refused_with_all_that_are_known(tmp_path):
    for value in ("foo", 8, "fp16", True, 16.0):
        with pytest.raises(ConfigurationError, match=re.escape(f"Trainer(precision={value!r})")) as caught:
            trainer("auto", value, tmp_path)
        assert all(repr(name) in str(caught.value) for name in PRECISIONS)
