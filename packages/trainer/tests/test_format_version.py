import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.rank_zero import PossibleUserWarning
from fulmen.trainer.checkpoint.migrate import migrate_checkpoint
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.format_version import FORMAT_VERSION, VERSION_KEY, as_numbers, is_newer, warn_of_newer

versions = st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 20))


@given(versions, versions)
def test_versions_compare_as_numbers(a, b):
    text_a, text_b = ".".join(map(str, a)), ".".join(map(str, b)) + "rc1"
    assert (as_numbers(text_a) < as_numbers(text_b)) == (a < b)


@given(versions)
def test_only_a_newer_one_is_newer(version):
    text = ".".join(map(str, version))
    assert is_newer({VERSION_KEY: text}) == (version > as_numbers(FORMAT_VERSION))
    assert not is_newer({})


def test_a_newer_one_is_told_of_where_it_is_read(quick, tmp_path, recwarn):
    for version, read in enumerate((warn_of_newer, migrate_checkpoint), 98):
        with pytest.warns(PossibleUserWarning, match=f"form of version {version}.0.0, and this program knows"):
            read({VERSION_KEY: f"{version}.0.0"})
    warn_of_newer({VERSION_KEY: FORMAT_VERSION})
    assert not recwarn.list


def test_a_module_from_a_newer_one(quick, tmp_path):
    class Newer(BoringModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint[VERSION_KEY] = "97.0.0"

    trainer = quick(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(Newer())
    trainer.save_checkpoint(tmp_path / "newer.ckpt")
    with pytest.warns(PossibleUserWarning, match=r"version 97\.0\.0"):
        Newer.load_from_checkpoint(tmp_path / "newer.ckpt")
