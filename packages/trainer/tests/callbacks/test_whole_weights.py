import pytest
from torch import nn

from fulmen.fabric.strategies import Pipeline
from fulmen.trainer import Trainer
from fulmen.trainer.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies import DDPStrategy, ModelParallelStrategy


def in_two_stages():
    return ModelParallelStrategy(pipeline=Pipeline(["layer.1"], micro_batches=2))


@pytest.mark.parametrize("callback", [EMAWeightAveraging(), StochasticWeightAveraging(0.1)], ids=["ema", "swa"])
@pytest.mark.parametrize("make_strategy", [lambda: "fsdp", in_two_stages], ids=["fsdp", "pipeline"])
def test_a_split_model_is_refused_before_processes_start(tmp_path, callback, make_strategy, monkeypatch):
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=make_strategy(),
        callbacks=callback,
        logger=False,
        default_root_dir=tmp_path,
    )
    monkeypatch.setattr("fulmen.trainer.trainer.launch", lambda *_: pytest.fail("processes were started"))
    module = BoringModel()
    module.layer = nn.Sequential(module.layer, nn.Identity())
    name = type(callback).__name__
    with pytest.raises(ConfigurationError, match=f"{name} cannot be used with {type(trainer.strategy).__name__}"):
        trainer.fit(module)


def test_a_whole_model_is_not():
    EMAWeightAveraging().check_strategy(DDPStrategy())
