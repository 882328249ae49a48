"""Small checkpoints for tests, made with numpy, the safetensors library and plain JSON.

Nothing here uses clpstream: what the tests hold it against must be independent of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": BFLOAT16}

SOURCE_WORDS = [*"abcdefghijklmnopqrstuvwxyz", "ä", "ü", " the", " and", " in", " house", "ing"]
TARGET_WORDS = [*"abcdefghijklmnopqrstuvwxyz", "ä", "ü", " der", " und", " in", " Haus", "ung"]

FAMILIES: dict[str, tuple[str, str | None]] = {
    "gpt2": ("transformer.wte.weight", None),
    "bloom": ("word_embeddings.weight", None),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "mistral": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen3": ("model.embed_tokens.weight", None),
    "gemma": ("model.embed_tokens.weight", None),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "opt": ("model.decoder.embed_tokens.weight", None),
}
"""Names of the input embeddings and of the head, None where it is tied."""


_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
BYTES_WRITTEN = [chr(b) if b in _SEEN else chr(256 + _HIDDEN.index(b)) for b in range(256)]
"""The 256 bytes as GPT-2 writes them: those that can't be seen are moved to U+0100 and up."""


def byte_level(text: str) -> str:
    """A piece as GPT-2 writes it."""
    return "".join(BYTES_WRITTEN[byte] for byte in text.encode())


def metaspace(text: str) -> str:
    """A piece as sentencepiece writes it."""
    return text.replace(" ", "\u2581")


def write_tokenizer(
    directory: Path,
    words: Iterable[str],
    kind: str = "byte-level",
    special: Mapping[str, str] | None = None,
    byte_pieces: bool = False,
) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json; special tokens (role -> text) come first.

    Returns the ids by piece. `kind` is "byte-level", "metaspace" (BPE with byte fallback),
    "unigram" or "wordpiece".
    """
    directory.mkdir(parents=True, exist_ok=True)
    special = {"eos": "</s>"} if special is None else special
    write = byte_level if kind == "byte-level" else metaspace
    pieces = list(dict.fromkeys(special.values()))
    added = [
        {"id": token, "content": piece, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for token, piece in enumerate(pieces)
    ]  # fmt: skip
    if byte_pieces:
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "wordpiece":
        pieces += [word[1:] if word[0] == " " else "##" + word for word in words]
    else:
        pieces += [write(word) for word in words]
    ids = {piece: token for token, piece in enumerate(pieces)}
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "post_processor": None,
    }  # fmt: skip
    if kind == "wordpiece":
        tokenizer["pre_tokenizer"] = {"type": "BertPreTokenizer"}
        tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        tokenizer["model"] = {
            "type": "WordPiece", "unk_token": pieces[0], "vocab": ids,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        }  # fmt: skip
    elif kind == "unigram":
        tokenizer["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True
        }  # fmt: skip
        tokenizer["decoder"] = dict(tokenizer["pre_tokenizer"])
        vocabulary = [[piece, -float(token)] for token, piece in enumerate(pieces)]
        tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}
    else:
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                 "use_regex": True}  # fmt: skip
        is_bytes = kind == "byte-level"
        tokenizer["pre_tokenizer"] = level if is_bytes else None
        steps = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
        tokenizer["decoder"] = level if is_bytes else {"type": "Sequence", "decoders": steps}
        tokenizer["model"] = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": not is_bytes,
            "vocab": ids, "merges": [],
        }  # fmt: skip
    write_json(directory / "tokenizer.json", tokenizer)
    settings = {f"{role}_token": piece for role, piece in special.items()}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **settings},
    )
    return ids


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> None:
    """Write tensors in one file, or in order into `shards` files with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config or {"model_type": "llama"})
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for place in range(shards):
        file = f"model-{place + 1:05}-of-{shards:05}.safetensors"
        part = names[place * len(names) // shards : (place + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, read by the safetensors library."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def random_rows(rows: int, width: int, seed: int, dtype: str = "F32") -> np.ndarray:
    """Rows like a trained embedding's: normal, with a mean that all share."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, width)) + 0.7 * generator.standard_normal(width)
    return (values / np.sqrt(width)).astype(DTYPES[dtype])


def family_tensors(
    family: str, rows: int, width: int = 16, dtype: str = "F32", untied: bool | None = None
) -> dict[str, np.ndarray]:
    """The vocabulary tensors of a family under its names, and a few tensors that pass through."""
    embeddings, head = FAMILIES[family]
    if untied is None:
        untied = head is not None
    tensors = {
        embeddings: random_rows(rows, width, 1, dtype),
        "layers.0.attention.weight": random_rows(width, width, 2, dtype),
        "layers.0.mlp.packed": np.arange(width * 7, dtype=np.uint8).reshape(7, width),
        "norm.weight": random_rows(1, width, 3)[0],
    }
    if untied:
        tensors[head or "lm_head.weight"] = random_rows(rows, width, 4, dtype)
    return tensors


def write_source(
    directory: Path,
    family: str = "llama",
    words: Iterable[str] = SOURCE_WORDS,
    kind: str = "byte-level",
    special: Mapping[str, str] | None = None,
    padding: int = 0,
    shards: int = 1,
    **tensors: Any,
) -> dict[str, int]:
    """A whole source checkpoint; `padding` rows stand after the tokenizer's. Returns its ids."""
    ids = write_tokenizer(directory, words, kind, special)
    rows = len(ids) + padding
    config = {
        "architectures": ["SomeForCausalLM"],
        "model_type": family,
        "vocab_size": rows,
        "eos_token_id": 0,
        "rms_norm_eps": 1e-06,
    }
    made = family_tensors(family, rows, **tensors)
    write_checkpoint(directory, made, config, shards)
    return ids


def write_helper(
    directory: Path,
    words: Iterable[str] = TARGET_WORDS,
    kind: str = "byte-level",
    special: Mapping[str, str] | None = None,
    padding: int = 0,
    width: int = 8,
    dtype: str = "F32",
    seed: int = 5,
) -> dict[str, int]:
    """A whole helper checkpoint (gpt2's names). Returns its ids."""
    ids = write_tokenizer(directory, words, kind, special)
    rows = len(ids) + padding
    config = {"model_type": "gpt2", "vocab_size": rows, "eos_token_id": 0}
    made = {"transformer.wte.weight": random_rows(rows, width, seed, dtype)}
    write_checkpoint(directory, made, config)
    return ids
