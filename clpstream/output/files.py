"""Small files of the target. Mode bits follow the umask; every file is on the disk on return."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_file(path: Path, content: bytes) -> None:
    """Write a file and fsync it; its directory is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as Hugging Face libraries write it: two spaces, a newline at the end."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, or a file name that is not UTF-8
        return (json.dumps(content, indent=2) + "\n").encode()
