"""Where the files of one action go: `fit-p-[Strategy]DDPStrategy.training_step.prof`."""

import os
import re
from pathlib import Path
from zlib import crc32

from fulmen.fabric.filesystem import join, local_path, make_dirs

_LONGEST = 180  # most file systems take 255 bytes, and a suffix follows


def action_file(folder: str | Path, parts: list[str | None], suffix: str) -> str:
    """The path of the file that `parts` name (stage, file name, rank, action; those that are there), in `folder`.

    Labels of callbacks hold what their arguments hold: separators of paths become "_", and long names are cut, with
    a checksum in place of the rest, so that they stay apart. The folder is made.
    """
    name = re.sub(r"[/\\\0]", "_", "-".join(part for part in parts if part))
    if len(os.fsencode(name)) > _LONGEST:
        name = f"{os.fsencode(name)[:_LONGEST].decode(errors='ignore')}~{crc32(name.encode()):08x}"
    make_dirs(folder)
    return local_path(join(folder, name + suffix))
