"""Do all processes of a run see the same files under a path?"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.strategies.base import Strategy


def is_shared_filesystem(strategy: Strategy, path: str | Path | None = None, timeout: int = 3) -> bool:
    """Does a file that rank 0 writes under `path` appear in every process? All processes must ask.

    True where there is one process, and for remote paths.

    Args:
        strategy: Of the run that asks.
        path: A folder or file that exists; the working folder by default.
        timeout: How long a file may need to appear elsewhere, in seconds.

    Raises:
        FileNotFoundError: In every process, if the path does not exist in one of them.
        ConfigurationError: In every process, if rank 0 cannot write there.
    """
    if strategy.world_size == 1 or (path is not None and not is_local(path)):
        return True
    place = Path.cwd() if path is None else Path(local_path(path))
    folder = place if place.is_dir() else place.parent
    # All agree to go on, or none does: who raised alone would leave the others waiting.
    if not strategy.reduce_boolean_decision(place.exists()):
        raise FileNotFoundError(
            f"is_shared_filesystem(path={str(path)!r}) was asked about a path that does not exist in every process."
            " A file is written there to see who finds it. Create it first, or pass a folder that exists."
        )
    mark: tempfile._TemporaryFileWrapper[bytes] | None = None
    written: str | None = None
    try:
        if strategy.is_global_zero:
            try:
                mark = tempfile.NamedTemporaryFile(dir=folder, prefix=".fulmen-shared-")  # noqa: SIM115 (see below)
                written = Path(mark.name).name
            except OSError:
                written = None
        written = strategy.broadcast(written)
        if written is None:
            raise ConfigurationError(
                f"is_shared_filesystem(path={str(path)!r}) was asked about a path where rank 0 cannot write."
                " A file is written there to see who finds it. Pass a folder that can be written to."
            )
        return strategy.reduce_boolean_decision(_appears(folder / written, timeout))
    finally:
        if mark is not None:
            mark.close()  # and is gone


def _appears(file: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
