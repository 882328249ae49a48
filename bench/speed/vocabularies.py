"""Tokenizers for workloads: generated ones with a chosen overlap, or copies of real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

END = "<|endoftext|>"
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
BYTES = [chr(b) if b in _SEEN else chr(256 + _HIDDEN.index(b)) for b in range(256)]
"""The 256 bytes as GPT-2 writes them; the space is Ġ."""


def generate(source: Path, helper: Path, sizes: tuple[int, int], overlap: float) -> None:
    """Write a byte-level tokenizer.json into each directory.

    Of the helper's words the part `overlap` are words of the source, spread evenly over both. The
    end of the text and the 256 bytes are shared besides.
    """
    ours, theirs = (size - 257 for size in sizes)
    if min(ours, theirs) < 1:
        raise SystemExit("a generated tokenizer has 257 tokens and at least one word")
    shared = min(round(overlap * theirs), ours)
    numbers = list(range(ours, ours + theirs))
    for place in range(shared):
        numbers[place * theirs // shared] = place * ours // shared
    _write(source, range(ours))
    _write(helper, numbers)


def copy(tokenizer: Path, directory: Path) -> None:
    """Copy the files of a real tokenizer: those of its directory that are not weights."""
    files = [*tokenizer.glob("*.json"), *tokenizer.glob("*.model"), *tokenizer.glob("*.t*")]
    for file in files:
        if (
            file.name not in ("config.json", "generation_config.json")
            and ".index." not in file.name
        ):
            shutil.copyfile(file, directory / file.name)


def _write(directory: Path, words) -> None:
    pieces = [END, *BYTES, *(f"Ġ{_word(number)}" for number in words)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = True
    end = {"id": 0, "content": END, "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"vocab": {piece: token for token, piece in enumerate(pieces)}, "merges": []}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end]}
    tokenizer |= {"normalizer": None, "pre_tokenizer": level, "post_processor": None}
    tokenizer |= {"decoder": level, "model": model}
    text = json.dumps(tokenizer, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def _word(number: int) -> str:
    """Another word for each number: its digits are syllables."""
    syllables = []
    while number or not syllables:
        number, digit = divmod(number, 100)
        syllables.append(_CONSONANTS[digit // 5] + _VOWELS[digit % 5])
    return "".join(syllables)
