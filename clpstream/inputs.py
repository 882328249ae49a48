"""Small input files: what may be wrong with any of them is said here, once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clpstream.errors import CheckpointError

LANGUAGE_LEVELS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Levels of config.json that describe the language model of a model with several parts."""

_LFS_POINTER = b"version https://git-lfs"


def refuse_lfs_pointer(path: Path) -> None:
    """Raise CheckpointError if `path` is a Git LFS pointer and not the file it stands for."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(
                f"{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its "
                "repository, or download the file again"
            )


def read_json(path: Path, shorten: Callable[[bytes], bytes] = bytes) -> dict[str, Any]:
    """Read a JSON object; `shorten` takes from the file what need not be parsed.

    Raises CheckpointError if the file can't be read, is a Git LFS pointer, is not UTF-8 JSON, or
    holds anything but an object.
    """
    try:
        refuse_lfs_pointer(path)
        content = json.loads(shorten(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply to be real; download it again") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}; download it again") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not a JSON object; download it again")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Like `read_json`, but a file that does not exist gives an empty object."""
    return read_json(path) if os.path.lexists(path) else {}  # a dangling link is an error
