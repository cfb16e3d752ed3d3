"""A file from the web, kept on this machine."""

import hashlib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import atomic_open
from fulmen.fabric.rank_zero import rank_zero_info

_CHUNK_NUM_BYTES = 1 << 20
_TIMEOUT_S = 60  # of silence
# As torch.hub writes it: the begin of the SHA-256 of the content, before the extension.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]*$")


def is_url(path: object) -> bool:
    """Does `path` name something that is fetched by HTTP?"""
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def kept_path(url: str) -> Path:
    """Where the file of `url` is kept: under the name of the whole URL, for many servers call their files alike."""
    name = PurePosixPath(urlsplit(url).path).name or "file"
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}-{name[-100:]}"


def download(url: str) -> Path:
    """The file of `url`, fetched unless it is kept already; it is there whole or not at all.

    If the name of the file ends in `-<digest>` as torch.hub has it, the content must have that SHA-256.

    Raises:
        CheckpointNotFoundError: If the server has no such file.
        CheckpointDamagedError: If what came is less than was announced, or has another digest.
        CheckpointError: If the server cannot be reached.
    """
    path = kept_path(url)
    if path.exists():
        return path
    rank_zero_info(f"Downloading {url} to {path}")
    try:
        # The scheme is one of two: `is_url`.
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, atomic_open(path, "wb") as file:
            _copy(url, answer, file)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise CheckpointNotFoundError(
                f"There is no file at {url!r}. The server answered {error.code}: {error.reason}. Check the address."
            ) from error
        raise CheckpointError(
            f"{url!r} could not be fetched. The server answered {error.code}: {error.reason}."
            " Check that you may read it, or fetch the file yourself and pass its path."
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(
            f"{url!r} could not be fetched: {reason}. The server cannot be reached from this machine."
            " Check the network, or fetch the file elsewhere and pass its path."
        ) from error
    return path


def _copy(url: str, answer: Any, file: Any) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := answer.read(_CHUNK_NUM_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
        file.write(chunk)
    announced = answer.headers.get("Content-Length")
    if announced is not None and num_bytes != int(announced):
        raise CheckpointDamagedError(
            f"{url!r} was cut short: {num_bytes} of {announced} bytes came. The connection broke, and nothing was"
            " kept. Try again."
        )
    named = _DIGEST_IN_NAME.search(os.path.basename(urlsplit(url).path))
    if named and not digest.hexdigest().startswith(named[1]):
        raise CheckpointDamagedError(
            f"{url!r} has the SHA-256 {digest.hexdigest()}. Its name promises one that begins with {named[1]}, so the"
            " content was changed, and nothing was kept. Ask who offers the file."
        )
