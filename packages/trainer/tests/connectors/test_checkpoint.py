import os

import pytest

from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel


@pytest.fixture
def listed(monkeypatch):
    """The folders that were looked through."""
    found = set()

    def listen(name, real):
        def listing(path=".", *given):
            if isinstance(path, (str, os.PathLike)):
                found.add(os.path.realpath(path))
            return real(path, *given)

        monkeypatch.setattr(os, name, listing)

    listen("listdir", os.listdir)
    listen("scandir", os.scandir)
    return found


@pytest.mark.parametrize("ckpt_path", [None, "last", "auto"])
def test_the_root_is_looked_through_only_for_requeued_jobs(ckpt_path, quick, tmp_path, listed):
    # It may be anybody's folder, such as that of all temporary files.
    trainer = quick(enable_checkpointing=True, limit_train_batches=1)
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    assert str(tmp_path / "checkpoints") in listed
    assert (str(tmp_path) in listed) == (ckpt_path == "auto")


def test_what_killed_runs_left_goes_from_the_folder_of_checkpoints_even_if_it_is_the_root(quick, tmp_path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    left = tmp_path / f".a.ckpt.{child}-01234567.tmp"
    left.touch()
    quick(limit_train_batches=1).fit(BoringModel())
    assert left.exists()
    quick(enable_checkpointing=True, callbacks=ModelCheckpoint(tmp_path), limit_train_batches=1).fit(BoringModel())
    assert not left.exists()
