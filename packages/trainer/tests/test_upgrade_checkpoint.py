import argparse

import pytest
import torch

from fulmen.trainer.format_version import FORMAT_VERSION, VERSION_KEY
from fulmen.trainer.upgrade_checkpoint import main


def old():
    return {"state_dict": {"weight": torch.ones(2)}, "epoch": 1, "global_step": 2, VERSION_KEY: "1.5.0"}


def test_files_of_a_folder_are_brought_into_the_current_form(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    for name in ("a.ckpt", "deep/b.ckpt", "c.other"):
        torch.save(old(), tmp_path / name)
    main([str(tmp_path)])
    assert capsys.readouterr().out.count(f"brought from 1.5.0 to {FORMAT_VERSION}") == 2
    for name, version in (("a.ckpt", FORMAT_VERSION), ("deep/b.ckpt", FORMAT_VERSION), ("c.other", "1.5.0")):
        found = torch.load(tmp_path / name, weights_only=True)
        assert found[VERSION_KEY] == version
        assert torch.equal(found["state_dict"]["weight"], torch.ones(2))
    content = (tmp_path / "a.ckpt").read_bytes()
    main([str(tmp_path / "a.ckpt"), "--map-to-cpu"])
    assert "is in the current form" in capsys.readouterr().out
    assert (tmp_path / "a.ckpt").read_bytes() == content


def test_a_file_with_code_or_of_another_program_stays_as_it_is(tmp_path, capsys):
    torch.save({**old(), "code": argparse.Namespace}, tmp_path / "code.ckpt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.ckpt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="2 of 2"):
        main([str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    err = capsys.readouterr().err
    assert "argparse.Namespace" in err
    assert "the key 'state_dict' is missing" in err


def test_nothing_found_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    assert "no checkpoint at" in capsys.readouterr().err
