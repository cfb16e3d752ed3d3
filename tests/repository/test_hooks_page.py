"""docs/hooks.md says what the table of hooks says, and tells the order of a real run."""

import runpy
from pathlib import Path

import pytest

from fulmen.trainer import Trainer
from fulmen.trainer.hooks.table import HOOKS
from tests.support.hook_recorder import Recording

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(REPOSITORY / "tools" / "hooks_page.py"))


def test_the_page_is_what_the_tool_writes(tool):
    assert (REPOSITORY / "docs" / "hooks.md").read_text() == tool["page"](), "python tools/hooks_page.py --write"


def test_an_old_page_is_noticed(tool, tmp_path):
    main = tool["main"]
    main.__globals__["PAGE"] = tmp_path / "hooks.md"
    with pytest.raises(SystemExit, match="--write"):
        main(["--check"])
    main(["--write"])
    main(["--check"])
    (tmp_path / "hooks.md").write_text("old")
    with pytest.raises(SystemExit, match="--write"):
        main(["--check"])


def test_every_hook_is_on_the_page(tool):
    assert [name for name in HOOKS if f"| `{name}` |" not in tool["page"]()] == []


def test_the_order_on_the_page_is_that_of_a_fit(tool, tmp_path):
    recording = Recording()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[recording.callback()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    # The sanity check is a validation before its time: it comes from a run of its own.
    trainer.fit(recording.module(interval="step"))
    heard = [line.lstrip(". ").partition(".")[2].partition("(")[0] for line in recording.recorder.lines]
    told = [name for name in tool["names_in_order"]() if "sanity_check" not in name]
    assert set(told) <= set(heard)
    # Validation loaders are made before training begins; the page names them where they are used.
    told.remove("val_dataloader")
    assert sorted(told, key=heard.index) == told
