"""Text -> the tokens of a model's own tokenizer, and where in the text each of them ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clpstream.errors import ScoringError
from clpstream.scoring.libraries import import_transformers, quiet, reason
from clpstream.vocabulary import Vocabulary, load_tokenizer, read_vocabulary
from clpstream.vocabulary.files import TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a document: their ids, int32 [n], and how many of its bytes are read with each
    token, int64 [n], not falling and up to `size`, the bytes of the document.

    unknown: how many stand for no text. kept: whether they give the document's bytes back.
    """

    ids: npt.NDArray[np.int32]
    ends: Places
    size: int
    unknown: int
    kept: bool


class Encoder:
    """A model's tokenizer, without the tokens that it puts around a text.

    The tokenizer.json is read by the tokenizers library, whatever class tokenizer_config.json
    names: transformers takes another tokenizer's class for some model types. Text that looks like
    a special token (`</s>` in a manual) is text.
    """

    def __init__(self, directory: Path) -> None:
        """Raises ClpstreamError if there is no tokenizer, or it can't be read."""
        self.vocabulary: Vocabulary = read_vocabulary(directory)
        self._tokenizer = _load(directory, self.vocabulary)
        self._tokenizer.encode_special_tokens = True

    @property
    def first(self) -> int | None:
        """The token before a document: bos, else eos, which ends the document before; or None."""
        roles = self.vocabulary.roles
        return roles.get("bos", roles.get("eos"))

    def __call__(self, document: str) -> Tokens:
        """The tokens of a document. Raises ScoringError if the tokenizer has no way to write it."""
        try:
            encoding = self._tokenizer.encode(document, add_special_tokens=False)
        except Exception as error:  # of any text with an unknown part, where there is no <unk>
            raise ScoringError(
                f"{self.vocabulary.path}: the text can't be tokenized: {reason(error)}"
            ) from None
        content, ids = document.encode(), np.asarray(encoding.ids, np.int32)
        texts = [self._text(token) for token in encoding.ids]
        read = b"".join(text or b"" for text in texts)
        # many tokenizers put a space before a text, or after its last word
        kept = read in (content, b" " + content, content + b" ")
        if kept:
            ends = np.cumsum([len(text or b"") for text in texts], dtype=np.int64)
            ends -= int(read.startswith(b" ") and not content.startswith(b" "))
        else:
            ends = _ends(encoding, document)
        ends = np.clip(np.maximum.accumulate(ends), 0, len(content))
        ends[-1:] = len(content)
        unknown = sum(text is None for text in texts)
        return Tokens(ids, ends, len(content), unknown, kept and not unknown)

    def _text(self, token: int) -> bytes | None:
        texts = self.vocabulary.text
        return texts[token] if token < len(texts) else None


def _load(directory: Path, vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.path.name == TOKENIZER_FILE:
        return load_tokenizer(vocabulary.path)
    transformers = import_transformers()
    try:
        with quiet():
            made: Any = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise ScoringError(
            f"{vocabulary.path}: transformers can't make a tokenizer of it: {reason(error)}; score "
            "a model with a tokenizer.json"
        ) from None
    if not getattr(made, "is_fast", False):
        raise ScoringError(
            f"{vocabulary.path}: its class {type(made).__name__} does not use the tokenizers "
            "library; score a model with a tokenizer.json"
        )
    tokenizer: Tokenizer = made.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ends(encoding: Encoding, document: str) -> Places:
    """Where tokens end by the tokenizer's own account, in characters -> in bytes."""
    code = np.frombuffer(document.encode("utf-32-le"), np.uint32)
    width = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(width)])
    ends: Places = bytes_before[np.asarray([end for _, end in encoding.offsets], np.int64)]
    return ends
