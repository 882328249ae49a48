"""Plain text files: documents, those that are held out, and both as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
HELD_OUT = 0.03
HASH_KEY = b"20240229"
DOCUMENT_CHARACTERS = 2000


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, without the separator lines and without empty ones."""
    text = path.read_text(encoding="utf-8")
    documents = (part.strip("\n") for part in f"\n{text}\n".split(f"\n{SEPARATOR}\n"))
    return [document for document in documents if document]


def hash_of(document: str) -> int:
    """A number below 2^64 that depends on the document's text alone."""
    digest = hashlib.blake2b(document.encode(), key=HASH_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big")


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents, in the order of the file; equal ones go the same way."""
    held_out = [hash_of(document) < HELD_OUT * 2**64 for document in documents]
    training = [d for d, out in zip(documents, held_out, strict=True) if not out]
    validation = [d for d, out in zip(documents, held_out, strict=True) if out]
    if not training or not validation:
        raise SystemExit("too few documents: none left for training or for validation")
    return training, validation


def sample_documents(documents: list[str], size: int) -> list[str]:
    """Beginnings of some documents, about `size` bytes in all: many short ones say more."""
    chosen: list[str] = []
    for document in sorted(documents, key=hash_of):
        if bytes_of(chosen) >= size:
            break
        chosen.append(document[:DOCUMENT_CHARACTERS])
    return chosen


def bytes_of(documents: list[str]) -> int:
    """The size of the documents in UTF-8."""
    return sum(len(document.encode()) for document in documents)


def encode(tokenizer: Tokenizer, documents: list[str], separators: Sequence[str]) -> torch.Tensor:
    """All documents as one row of token ids, the separators' ids between them."""
    between = [tokenizer.token_to_id(token) for token in separators]
    ids = list(between)
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids += encoding.ids
        ids += between
    return torch.tensor(ids, dtype=torch.long)
