import pytest
import torch

from fulmen.trainer.checkpoint import restore
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError


class Stateful(Callback):
    def __init__(self):
        self.loaded = None

    def state_dict(self):
        return {"n": 1}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict


@pytest.fixture
def saved(quick, tmp_path):
    """The path of a checkpoint, and what is in it."""
    trainer = quick(limit_train_batches=2, limit_val_batches=0, callbacks=[Stateful()])
    trainer.fit(BoringModel())
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    return path, torch.load(path)


def changed(saved, change):
    path, checkpoint = saved
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def resumed(quick, path, module=None, **flags):
    trainer = quick(max_epochs=2, limit_train_batches=2, limit_val_batches=0, **flags)
    trainer.fit(module or BoringModel(), ckpt_path=path)
    return trainer


def test_module_callbacks_and_optimizers_get_back_what_they_saved(quick, saved):
    path, checkpoint = saved
    callback = Stateful()

    class Looking(BoringModel):
        def on_train_start(self):
            self.weights = {name: value.clone() for name, value in self.state_dict().items()}

    module = Looking()
    trainer = resumed(quick, path, module, callbacks=[callback])
    assert callback.loaded == {"n": 1}
    assert all(torch.equal(module.weights[name], value) for name, value in checkpoint["state_dict"].items())
    assert trainer.global_step == 4
    assert trainer.ckpt_path == str(path)


def test_callbacks_that_are_gone_are_named(quick, saved):
    with pytest.warns(UserWarning, match=r"callbacks that this Trainer does not have: \['Stateful'\]"):
        resumed(quick, saved[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: it.pop("optimizer_states"), "holds no state of optimizers and schedulers"),
        (lambda it: it["optimizer_states"].append({}), r"the state of 2 optimizers; configure_optimizers\(\) made 1"),
        (lambda it: it["lr_schedulers"].clear(), "the state of 0 LR schedulers"),
        (lambda it: it.pop("state_dict"), "the key 'state_dict' is missing"),
        (lambda it: it["loops"].pop("fit_loop"), "holds no position of a fit"),
        (lambda it: it["loops"]["fit_loop"].pop("epoch_progress"), "holds no position of a fit"),
        (lambda it: it["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-1), "holds no position of a fit"),
        (lambda it: it["loops"].update(fit_loop=3), "holds no position of a fit"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(change, says, quick, saved):
    with pytest.raises(CheckpointError, match=says):
        resumed(quick, changed(saved, change))


def test_what_is_not_there_or_cut_short_says_so(quick, saved, tmp_path):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointDamagedError, match=r"saved\.ckpt"):
        resumed(quick, path)
    with pytest.raises(CheckpointNotFoundError, match=r"Trainer\.fit\(ckpt_path='.*nowhere\.ckpt'\)"):
        resumed(quick, tmp_path / "nowhere.ckpt")
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere\.ckpt"):
        restore.read(quick().context, str(tmp_path / "nowhere.ckpt"))


def test_random_numbers_go_on_where_they_were_if_as_many_processes_run(quick):
    trainer = quick()
    from fulmen.fabric.seeding import collect_rng_state

    state = {"rng": [collect_rng_state()]}
    expected = torch.rand(3)
    restore.restore_rng(trainer.context, state)
    assert torch.equal(torch.rand(3), expected)
    for other in ({}, {"rng": state["rng"] * 2}):
        before = torch.get_rng_state()
        restore.restore_rng(trainer.context, other)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_of_the_reference_has_nothing_of_ours():
    assert restore.own_state({"state_dict": {}}) == {}
