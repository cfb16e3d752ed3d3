import pytest

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from fulmen.trainer.checkpoint.paths import choose, gather_offers


def test_a_failed_run_leaves_it_and_a_good_one_removes_it(make_trainer, tmp_path):
    callback = OnExceptionCheckpoint(tmp_path / "x")
    path = tmp_path / "x" / "on_exception.ckpt"
    assert callback.ckpt_path == str(path)
    trainer = make_trainer()
    callback.on_exception(trainer, None, RuntimeError())
    callback.teardown(trainer, None, "fit")
    assert path.exists()
    assert choose(None, gather_offers([callback], root_dir=tmp_path)).path == str(path)
    callback.teardown(trainer, None, "fit")
    assert not path.exists()


def test_an_empty_name_is_refused():
    with pytest.raises(MisconfigurationException, match="filename=''") as caught:
        OnExceptionCheckpoint("x", filename="")
    assert isinstance(caught.value, ValueError)
