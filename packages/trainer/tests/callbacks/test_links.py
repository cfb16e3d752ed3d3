import os

from fulmen.trainer.callbacks.links import link_or_copy


def test_a_link_is_relative_and_replaces_what_was_there(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    link = tmp_path / "last"
    link.write_text("old")
    for name in "ab":
        link_or_copy(str(tmp_path / name), str(link))
        assert os.readlink(link) == name
        assert link.read_text() == name
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]


def test_a_folder_is_replaced_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "last").mkdir()
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "last"))
    assert os.readlink(tmp_path / "last") == "a"


def test_where_links_are_not_allowed_it_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "symlink", refuse)
    (tmp_path / "a").write_text("a")
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "last"))
    assert (tmp_path / "last").read_text() == "a"
    assert not os.path.islink(tmp_path / "last")
