"""Bring old checkpoints into the current form, in place.

    python -m fulmen.trainer.upgrade_checkpoint last.ckpt            # one file
    python -m fulmen.trainer.upgrade_checkpoint runs --extension .ckpt  # all such files below a folder

A run does the same whenever it reads an old checkpoint; this saves the work, and the messages, for the next time. Code
in a file is not run: such a file stays as it is.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.trainer.checkpoint.migrate import migrate_checkpoint
from fulmen.trainer.errors import CheckpointError


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a checkpoint, or a folder of them")
    parser.add_argument("--extension", "-e", default=".ckpt", help="of the files in a folder (default: %(default)s)")
    parser.add_argument("--map-to-cpu", action="store_true", help="put tensors on the CPU, if their device is not here")
    parser.add_argument(
        "--trust", action="store_true", help="run code from the files: for those that you made yourself"
    )
    options = parser.parse_args(arguments)
    failed = 0
    found = list(_files(options.path, options.extension))
    for path in found:
        try:
            print(_upgraded(path, map_to_cpu=options.map_to_cpu))
        except (CheckpointError, OSError) as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
    if not found:
        parser.error(f"there is no checkpoint at {str(options.path)!r}, or none that ends in {options.extension!r}")
    if failed:
        sys.exit(f"{failed} of {len(found)} checkpoints are as they were.")


def _files(path: Path, extension: str) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob(f"*{extension}") if file.is_file())
    elif path.exists():
        yield path


def _upgraded(path: Path, *, map_to_cpu: bool) -> str:
    io = TorchCheckpointIO()
    checkpoint = io.load_checkpoint(path, map_location="cpu" if map_to_cpu else None)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{str(path)!r} holds no checkpoint of a run: the key 'state_dict' is missing."
            " It may belong to another program. Leave it out."
        )
    before = checkpoint.get("pytorch-lightning_version", "an unknown version")
    current, steps = migrate_checkpoint(checkpoint)
    if not any(steps.values()):
        return f"{path}: is in the current form"
    io.save_checkpoint(current, path)
    return f"{path}: brought from {before} to {current['pytorch-lightning_version']}"


if __name__ == "__main__":
    main()
