"""Text files -> documents, and the blocks of bytes that intervals are computed from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clpstream.errors import ScoringError, check_list

SEPARATOR = "<|endoftext|>"
BLOCK_BYTES = 4096
LONGEST = 1 << 20
"""Characters of a document that are tokenized at once: a tokenizer needs 100 times that memory."""

_SEPARATOR_LINE = re.compile(rf"^{re.escape(SEPARATOR)}\r?$", re.MULTILINE)


def read_documents(paths: Iterable[str | Path]) -> list[str]:
    """The documents of UTF-8 text files: a file is one, or several with separator lines between.

    Line breaks at either end of a document do not belong to it; a document without anything else
    is left out.

    Raises ScoringError if a file can't be read or is not UTF-8, or if there is no text at all.
    """
    check_list("paths", paths, "files", ScoringError)
    files = [Path(path) for path in paths]
    found = [document for file in files for document in _documents(file)]
    if not found:
        raise ScoringError(f"{', '.join(map(str, files))}: no text in it; give a file with text")
    return found


def cut(document: str) -> Iterator[str]:
    """A document in parts of at most `LONGEST` characters, at ends of lines where there are any.

    Each part is scored as a document of its own: the same parts for every model.
    """
    begin = 0
    while len(document) - begin > LONGEST:
        line_end = document.rfind("\n", begin, begin + LONGEST) + 1
        end = line_end or begin + LONGEST
        yield document[begin:end]
        begin = end
    yield document[begin:]


def block_edges(size: int) -> npt.NDArray[np.int64]:
    """Where the blocks of a document of `size` bytes begin and end: int64 [blocks + 1].

    They are as long as each other, within a byte, and as near to `BLOCK_BYTES` as that allows; they
    depend on the text alone, so that several models are compared block by block.
    """
    count = max(1, round(size / BLOCK_BYTES))
    return np.arange(count + 1, dtype=np.int64) * size // count


def _documents(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ScoringError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ScoringError(
            f"{path}: not UTF-8 (byte {error.start}); convert it: iconv -t utf-8"
        ) from None
    documents = (part.strip("\r\n") for part in _SEPARATOR_LINE.split(text))
    return [document for document in documents if document]
