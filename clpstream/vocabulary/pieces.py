"""What a piece of a tokenizer's vocabulary stands for: its bytes in running text.

Tokenizer families write the same bytes in different ways. The decoder of tokenizer.json says how
to undo it, step by step; steps that depend on a token's place in the text (Fuse, Strip) don't
change what a single piece stands for. Files without a decoder are described in the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
BYTE_ALPHABET: dict[str, int] = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + place): byte for place, byte in enumerate(_HIDDEN)
}
"""The characters that byte-level BPE (GPT-2) writes for the 256 bytes."""

_WRITTEN_AS = {byte: character for character, byte in BYTE_ALPHABET.items()}
_NOT_A_BYTE = "\uffff"
_BYTE_OF = dict.fromkeys(_HIDDEN, _NOT_A_BYTE) | {
    ord(character): chr(byte) for character, byte in BYTE_ALPHABET.items()
}
_SPACE = _WRITTEN_AS[0x20]
_ON_SPACES = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")

BYTE_LEVEL: dict[str, Any] = {"decoder": {"type": "ByteLevel"}}
SENTENCEPIECE: dict[str, Any] = {
    "decoder": {"type": "Metaspace"},
    "model": {"byte_fallback": True},
}
WORD_PIECE: dict[str, Any] = {"model": {"type": "WordPiece"}}

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


def describe_pieces(pieces: Collection[str], merged: bool) -> dict[str, Any]:
    """How pieces without a tokenizer.json are written, as its parts; `merged`: by BPE.

    The pieces themselves decide, since classes with one name differ in this and configs often lack
    the class: `▁` is sentencepiece's; the byte alphabet is told by its space in a vocabulary that
    has hardly a character outside it; BPE that marks the ends of words does so in very many pieces.
    """
    few, many = len(pieces) // 100, len(pieces) // 10
    if sum("▁" in piece for piece in pieces) > few:
        return SENTENCEPIECE
    model: dict[str, Any] = {"type": "BPE" if merged else "WordLevel"}
    if merged and sum(piece.endswith("</w>") for piece in pieces) > many:
        model["end_of_word_suffix"] = "</w>"
    foreign = sum(not all(character in BYTE_ALPHABET for character in piece) for piece in pieces)
    if foreign <= few and any(_SPACE in piece for piece in pieces):
        return {**BYTE_LEVEL, "model": model}
    if merged and sum(piece.endswith("@@") for piece in pieces) > many:
        return {"decoder": {"type": "ContinuedBPE", "suffix": "@@"}}
    return {"pre_tokenizer": {"type": "Whitespace"}, "model": model}


def byte_level(text: bytes) -> str:
    """Bytes as GPT-2 writes them: the spelling of pieces whose file gives the bytes alone."""
    return text.decode("latin-1").translate(_WRITTEN_AS)


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is written as a single byte, `<0x0A>`, for byte fallback."""
    return _BYTE_PIECE.fullmatch(piece) is not None


def _decoders(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoder's parts; where it has none, what the other parts of the pipeline imply."""
    parts = _flatten(tokenizer.get("decoder"), "decoders")
    model = tokenizer["model"] if isinstance(tokenizer.get("model"), dict) else {}
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if not parts:
        parts = _flatten(tokenizer.get("pre_tokenizer"), "pretokenizers")
        kinds = [part.get("type") for part in parts]
        if model.get("type") == "WordPiece" or (model.get("type") == "BPE" and prefix):
            parts = [{"type": "WordPiece", "prefix": prefix}]
        elif model.get("type") == "WordLevel" and any(kind in _ON_SPACES for kind in kinds):
            parts = [{"type": "WordLevel"}]
    if suffix and any(part.get("type") == "ByteLevel" for part in parts):
        # CLIP: transformers turns the suffix into a space after the decoder, not tokenizers in it
        parts = [{"type": "Replace", "pattern": {"String": suffix}, "content": _SPACE}, *parts]
    elif suffix and not any(part.get("type") == "BPEDecoder" for part in parts):
        parts.append({"type": "BPEDecoder", "suffix": suffix})
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
    if kind == "WordLevel":
        return _begins_a_word
    if kind == "BPEDecoder":
        suffix = setting("suffix", "</w>")
        return lambda piece: piece.replace(suffix, " ")
    if kind == "ContinuedBPE":
        mark = setting("suffix", "@@")
        return lambda piece: piece.removesuffix(mark) if piece.endswith(mark) else piece + " "
    return None


def _byte_level(piece: str) -> str | bytes:
    """A piece with a character outside the alphabet was added as plain text."""
    try:
        return piece.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return piece


def _byte_fallback(piece: str) -> str | bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _word_piece(piece: str, prefix: str) -> str:
    if piece.startswith(prefix) and len(piece) > len(prefix):
        return piece[len(prefix) :]
    return _begins_a_word(piece)


def _begins_a_word(piece: str) -> str:
    """A piece that begins a word, which a space stands before.

    Not so for characters that BERT's pre-tokenizer makes a word each, wherever they stand.
    """
    return piece if all(_is_a_word(character) for character in piece) else " " + piece


def _is_a_word(character: str) -> bool:
    """Punctuation by BERT's rule, which counts all ASCII symbols, and Chinese characters."""
    code = ord(character)
    if code < 128:
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P" or any(
        first <= code <= last for first, last in _CHINESE
    )
