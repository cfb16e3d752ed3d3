import os

from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.trainer.profilers.report_files import action_file


def test_the_parts_that_are_there(tmp_path):
    path = action_file(tmp_path / "new", ["fit", "p", None, "[LightningModule]M.setup"], ".prof")
    assert path == str(tmp_path / "new" / "fit-p-[LightningModule]M.setup.prof")
    assert os.listdir(tmp_path) == ["new"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), min_size=1))
def test_any_label_is_a_file_in_the_folder(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("labels")
    for label in labels:
        path = action_file(folder, ["fit", label], ".txt")
        assert os.path.dirname(path) == str(folder)
        with open(path, "w"):
            pass


def test_long_labels_stay_apart(tmp_path):
    long = "x" * 300
    assert action_file(tmp_path, [long + "a"], ".txt") != action_file(tmp_path, [long + "b"], ".txt")
