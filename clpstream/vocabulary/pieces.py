"""What a piece of a tokenizer's vocabulary stands for: its bytes in running text.

Tokenizer families write the same bytes in different ways. The decoder of tokenizer.json says how
to undo it, step by step; steps that depend on a token's place in the text (Fuse, Strip) don't
change what a single piece stands for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
BYTE_ALPHABET: dict[str, int] = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + place): byte for place, byte in enumerate(_HIDDEN)
}
"""The characters that byte-level BPE (GPT-2) writes for the 256 bytes."""

Step = Callable[[str], "str | bytes"]


def piece_reader(tokenizer: dict[str, Any]) -> Callable[[str], bytes]:
    """A function from pieces to bytes, made from the content of a tokenizer.json."""
    steps = [step for part in _decoders(tokenizer) if (step := _step(part)) is not None]

    def read(piece: str) -> bytes:
        value: str | bytes = piece
        for step in steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")

    return read


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is written as a single byte, `<0x0A>`, for byte fallback."""
    return _BYTE_PIECE.fullmatch(piece) is not None


def _decoders(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoder's parts; where it has none, what the other parts of the pipeline imply."""
    parts = _flatten(tokenizer.get("decoder"), "decoders")
    model = tokenizer["model"] if isinstance(tokenizer.get("model"), dict) else {}
    if not parts:
        parts = _flatten(tokenizer.get("pre_tokenizer"), "pretokenizers")
        if model.get("type") == "WordPiece":
            parts = [{"type": "WordPiece", "prefix": model.get("continuing_subword_prefix")}]
        elif model.get("end_of_word_suffix"):
            parts.append({"type": "BPEDecoder", "suffix": model["end_of_word_suffix"]})
    if model.get("byte_fallback"):
        parts.append({"type": "ByteFallback"})
    return parts


def _flatten(part: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        inner = part.get(key)
        parts = inner if isinstance(inner, list) else []
        return [leaf for part in parts for leaf in _flatten(part, key)]
    return [part]


def _step(part: dict[str, Any]) -> Step | None:
    def setting(key: str, default: str) -> str:
        value = part.get(key)
        return value if isinstance(value, str) and value else default

    kind = part.get("type")
    if kind == "ByteLevel":
        return _byte_level
    if kind == "ByteFallback":
        return _byte_fallback
    if kind == "Metaspace":
        replacement = setting("replacement", "▁")
        return lambda piece: piece.replace(replacement, " ")
    if kind == "Replace" and isinstance(part.get("pattern"), dict):
        old, new = part["pattern"].get("String"), setting("content", "")
        return (lambda piece: piece.replace(old, new)) if isinstance(old, str) and old else None
    if kind == "WordPiece":
        prefix = setting("prefix", "##")
        return lambda piece: _word_piece(piece, prefix)
    if kind == "BPEDecoder":
        suffix = setting("suffix", "</w>")
        return lambda piece: piece.replace(suffix, " ")
    return None


def _byte_level(piece: str) -> str | bytes:
    """A piece with a character outside the alphabet was added as plain text."""
    values = [BYTE_ALPHABET.get(character) for character in piece]
    if any(value is None for value in values):
        return piece
    return bytes(value for value in values if value is not None)


def _byte_fallback(piece: str) -> str | bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _word_piece(piece: str, prefix: str) -> str:
    """A piece without the prefix begins a word, which a space stands before.

    Not so for characters that BERT's pre-tokenizer makes a word each, wherever they stand.
    """
    if piece.startswith(prefix) and len(piece) > len(prefix):
        return piece[len(prefix) :]
    return piece if all(_is_a_word(character) for character in piece) else " " + piece


def _is_a_word(character: str) -> bool:
    """Punctuation by BERT's rule, which counts all ASCII symbols, and Chinese characters."""
    code = ord(character)
    if code < 128:
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P" or any(
        first <= code <= last for first, last in _CHINESE
    )
