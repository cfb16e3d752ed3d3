import torch

from fulmen.trainer.checkpoint.dump import FULMEN_KEY, callback_states, dump
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringDataModule, BoringModel


class Stateful(Callback):
    def state_dict(self):
        return {"n": 1}


class Data(BoringDataModule):
    def state_dict(self):
        return {"place": 3}


class Net(BoringModel):
    def __init__(self, width=5):
        super().__init__()
        self.save_hyperparameters()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = sorted(checkpoint)


def dumped(quick, **given):
    trainer = quick(limit_train_batches=2, limit_val_batches=0, callbacks=[Stateful(), Callback()])
    trainer.fit(Net(), datamodule=Data())
    return trainer, dump(trainer.context, loops={"fit_loop": {}}, epoch=1, global_step=2, **given)


def test_a_checkpoint_holds_all_from_which_a_run_goes_on(quick):
    trainer, checkpoint = dumped(quick)
    assert list(checkpoint) == [
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
        "lr_schedulers", FULMEN_KEY, "hparams_name", "hyper_parameters", "Data", "mine",
    ]  # fmt: skip
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 2)
    assert checkpoint["callbacks"] == callback_states(trainer.context) == {"Stateful": {"n": 1}}
    assert checkpoint["Data"] == {"place": 3}
    assert checkpoint["hyper_parameters"] == {"width": 5}
    assert "mine" not in checkpoint["mine"]  # the module hears of it when all else is there


def test_weights_only_leaves_out_what_only_training_needs(quick):
    _, checkpoint = dumped(quick, weights_only=True)
    assert not {"callbacks", "optimizer_states", "lr_schedulers", FULMEN_KEY} & set(checkpoint)
    assert set(checkpoint["state_dict"]) == {"layer.weight", "layer.bias"}


def test_a_checkpoint_is_data_and_no_program(quick, tmp_path):
    trainer, _ = dumped(quick)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert loaded[FULMEN_KEY]["world_size"] == len(loaded[FULMEN_KEY]["rng"]) == 1
