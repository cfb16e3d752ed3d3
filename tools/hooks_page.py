"""Write docs/hooks.md from the table of hooks.

    python tools/hooks_page.py            # print the page
    python tools/hooks_page.py --write    # write docs/hooks.md
    python tools/hooks_page.py --check    # end with 1 if docs/hooks.md is not what --write would write

A test compares the page with the table, and the order told here with the hooks of a real run.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fulmen.trainer import Callback, LightningDataModule, LightningModule
from fulmen.trainer.hooks.table import SECTIONS, Hook, Listener

PAGE = Path(__file__).parents[1] / "docs" / "hooks.md"

HEAD = """\
# Hooks

A hook is a method that the run calls at a named moment. A `LightningModule`, a `LightningDataModule` and a \
`Callback` have them as methods that do nothing; override those you want. One that nobody overrides costs nothing.

This page is written by `tools/hooks_page.py` from `fulmen/trainer/hooks/table.py`, which is also what a run reads.

## The order of a fit

```text
{order}
```

`validate` and `test` are the middle part alone, between `setup` and `teardown`, with `validation` or `test` in the \
names; so is `predict`. After an exception `on_exception` is called, and then `teardown`.

Callbacks are called in the order of `trainer.callbacks`. Those that monitor metrics (`ModelCheckpoint`, \
`EarlyStopping`) hear the end of a training epoch last, when everybody has logged.
"""

ORDER = """\
prepare_data                              on one process of each machine
setup(stage="fit")
configure_model
configure_optimizers
on_fit_start
on_sanity_check_start                     a few batches of validation
on_sanity_check_end
train_dataloader
on_train_start
for each epoch:
    on_train_epoch_start
    for each batch:
        on_before_batch_transfer
        transfer_batch_to_device
        on_after_batch_transfer
        on_train_batch_start
        optimizer_step                    around all of these, when the window is full
            training_step
            on_before_zero_grad
            optimizer_zero_grad
            on_before_backward
            backward
            on_after_backward
            on_before_optimizer_step
            configure_gradient_clipping
        lr_scheduler_step
        on_train_batch_end
    val_dataloader                        validation, after the epoch or inside it
    on_validation_model_zero_grad
    on_validation_model_eval
    on_validation_start
    on_validation_epoch_start
    for each batch:
        on_validation_batch_start
        validation_step
        on_validation_batch_end
    on_validation_epoch_end
    on_validation_end
    on_validation_model_train
    on_train_epoch_end
on_train_end
on_fit_end
teardown(stage="fit")"""

COLUMNS = """\
*who* hears it, in this order; *self.log* says when a value that is logged there is published. Where nothing stands, \
nothing may be logged; where it says "unless told otherwise", `on_step=` and `on_epoch=` choose.
"""

_OWNER = {"Data": "datamodule, or else module"}


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD.format(order=ORDER), f"## All hooks\n\n{COLUMNS}", *map(section, SECTIONS)])


def section(title: str) -> str:
    """The hooks of one group, as a table."""
    rows = ["| hook | who | self.log | what |", "| --- | --- | --- | --- |"]
    for name, hook in SECTIONS[title].items():
        rows.append(f"| `{name}` | {who(title, hook)} | {hook.log.name if hook.log.allowed else ''} | {what(name)} |")
    return "\n".join([f"### {title}", "", *rows, ""])


def who(title: str, hook: Hook) -> str:
    """Who hears it, in order."""
    named = {Listener.MONITORS: "monitoring callbacks"}
    return ", ".join(named.get(group, group.value) for group in hook.listeners) or _OWNER.get(title, "module")


def what(name: str) -> str:
    """The first line that its class says about it."""
    for cls in (LightningModule, LightningDataModule, Callback):
        method = getattr(cls, name, None)
        if method is not None:
            return (inspect.getdoc(method) or "").partition("\n")[0]
    raise LookupError(f"Nobody has the hook {name!r}")


def names_in_order() -> Iterator[str]:
    """The hooks that `ORDER` names."""
    for line in ORDER.splitlines():
        word = line.split()[0].partition("(")[0]
        if word != "for":
            yield word


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/hooks.md")
    parser.add_argument("--check", action="store_true", help="end with 1 if docs/hooks.md is out of date")
    options = parser.parse_args(arguments)
    if options.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif options.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/hooks.md is out of date: run `python tools/hooks_page.py --write`")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
