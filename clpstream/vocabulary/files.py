"""The files that hold tokenizers, a reader each, in the order in which transformers looks for them.

A reader takes the file and the settings around it, and gives the tokens that the file itself lists.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clpstream.errors import VocabularyError
from clpstream.inputs import read_json, refuse_lfs_pointer
from clpstream.vocabulary.pieces import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    WORD_PIECE,
    byte_level,
    describe_pieces,
    piece_reader,
)

TIKTOKEN = "tiktoken"
TOKENIZER_FILE, TEKKEN_FILE = "tokenizer.json", "tekken.json"
_STRING = rb'[\s,]*"[^"\\]*(?:\\.[^"\\]*)*"'
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_SOME_MERGES = re.compile(rb"(?:%s|[\s,]*\[(?:%s){2}\s*\]){1,1000}" % (_STRING, _STRING))
_RANKED = re.compile(rb"([A-Za-z0-9+/]*=*) (\d{1,18})")  # "= 50256" is a token of no bytes
_OLD_TEKKEN_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
"""Those of tekken.json files that do not list them."""

_XLMR = (("<s>", "<pad>", "</s>", "<unk>"), 3)
_FAIRSEQ: dict[str, tuple[tuple[str, ...], int]] = {
    "xlmroberta": _XLMR,
    "xlmrobertaxl": _XLMR,
    "camembert": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1),
}
"""Whose ids are not those of the .model: the tokens put first, and the piece that follows them."""
_SHIFTED = (
    *("bartpho", "m2m100", "mbart", "mbart50", "nllb", "pegasus", "bigbirdpegasus", "plbart"),
    *("seamlessm4t", "xglm", "xlmprophetnet"),
)
"""The same, with more tokens that are in the code of their classes alone."""


@dataclass(frozen=True)
class Listed:
    """The tokens that a tokenizer's own file lists.

    kind: what sort of tokenizer it is, for people. tokens: (piece, id). read: the bytes that a
    piece stands for. special: ids that stand for no text. added: tokens outside the tokenizer's
    model, piece -> (id, special).
    flagged: whether the file says itself which tokens are special.
    """

    kind: str
    tokens: Iterable[tuple[str, int]]
    read: Callable[[str], bytes]
    special: frozenset[int] = frozenset()
    added: Mapping[str, tuple[int, bool]] | None = None
    flagged: bool = False


_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
"""What a tokenizer.json can have, in the tokenizers library."""

Reader = Callable[[Path, Mapping[str, Any]], Listed]


def find_tokenizer(directory: Path) -> tuple[Path, Reader]:
    """The tokenizer file that transformers would take. Raises VocabularyError if there is none."""
    for pattern, reader in _FORMATS:
        found = sorted(path for path in directory.glob(pattern) if path.is_file())
        if found:
            return found[0], reader
    names = ", ".join(pattern for pattern, _ in _FORMATS)
    raise VocabularyError(f"{directory}: no tokenizer in it; it can be {names}")


def _without_merges(content: bytes) -> bytes:
    """A tokenizer.json with its merges left out: parsed, they would take half of the memory."""
    begin = _MERGES.search(content)
    if begin is None:
        return content
    end = begin.end()
    while some := _SOME_MERGES.match(content, end):
        end = some.end()
    return content[: begin.end()] + content[end:]


def _tokenizer_json(path: Path, settings: Mapping[str, Any]) -> Listed:
    tokenizer = read_json(path, _without_merges)
    found = tokenizer.get("model")
    model = found if isinstance(found, dict) else {}
    vocabulary = model.get("vocab")
    tokens: Iterable[tuple[str, int]]
    if isinstance(vocabulary, dict):
        _check_ids(path, vocabulary)
        tokens, kind = vocabulary.items(), "BPE"
    elif isinstance(vocabulary, list) and all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocabulary
    ):  # Unigram: [piece, log probability], whose place is its id
        tokens, kind = ((entry[0], token) for token, entry in enumerate(vocabulary)), "Unigram"
    else:
        raise VocabularyError(
            f"{path}: it has no vocabulary under 'model'; check that it is a tokenizer of the "
            "tokenizers library"
        )
    entries = tokenizer.get("added_tokens")
    if not isinstance(entries, list | None):
        raise VocabularyError(f"{path}: its added_tokens are no list; save the tokenizer again")
    stated = model.get("type", kind)
    if stated not in _MODELS:
        raise VocabularyError(
            f"{path}: the tokenizers library knows no model of type {stated!r}; save the tokenizer "
            "again"
        )
    added = {
        str(entry["content"]): (entry["id"], bool(entry.get("special")))
        for entry in entries or []
        if isinstance(entry, dict) and is_id(entry.get("id")) and "content" in entry
    }
    return Listed(stated, tokens, piece_reader(tokenizer), added=added, flagged=True)


def _tekken(path: Path, settings: Mapping[str, Any]) -> Listed:
    """Special tokens come first; entries beyond default_vocab_size are no tokens."""
    content = read_json(path)
    try:
        config = content["config"]
        names = dict(enumerate(_OLD_TEKKEN_SPECIAL))
        if content.get("special_tokens") is not None:
            names = {entry["rank"]: entry["token_str"] for entry in content["special_tokens"]}
        first = config.get("default_num_special_tokens")
        first = len(names) if first is None else first
        entries = content["vocab"]
        size = config.get("default_vocab_size") or first + len(entries)
        tokens = [(names.get(token, f"<SPECIAL_{token}>"), token) for token in range(first)]
        tokens += [
            (byte_level(base64.b64decode(entry["token_bytes"])), first + entry["rank"])
            for entry in entries
            if first <= first + entry["rank"] < size
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VocabularyError(f"{path}: not a tekken file ({error!r}); download it again") from None
    return Listed("tekken", tokens, piece_reader(BYTE_LEVEL), frozenset(range(first)))


def _tiktoken(path: Path, settings: Mapping[str, Any]) -> Listed:
    tokens = []
    for number, line in enumerate(_content(path).splitlines(), start=1):
        match = _RANKED.fullmatch(line.strip())
        if match and len(match[1].rstrip(b"=")) % 4 != 1:  # else it is no base64
            tokens.append((byte_level(base64.b64decode(match[1] + b"==")), int(match[2])))
        elif line.strip():
            raise VocabularyError(
                f"{path}: line {number} is not a token in base64 and its rank; download it again"
            )
    return Listed(TIKTOKEN, tokens, piece_reader(BYTE_LEVEL), flagged=True)


def _vocab_json(path: Path, settings: Mapping[str, Any]) -> Listed:
    ids = read_json(path)
    _check_ids(path, ids)
    merged = (path.parent / "merges.txt").exists()
    kind = "BPE" if merged else "WordLevel"
    return Listed(kind, ids.items(), piece_reader(describe_pieces(ids, merged)))


def _vocab_txt(path: Path, settings: Mapping[str, Any]) -> Listed:
    if (path.parent / "bpe.codes").exists():
        raise VocabularyError(
            f"{path}: with bpe.codes beside it, its ids are made by the code of its class; "
            f"{_SAVE_ANEW}"
        )
    try:
        text = _content(path).decode()
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: not UTF-8: {error}; download it again") from None
    lines = text.removesuffix("\n").split("\n")  # other line breaks can be tokens
    tokens = ((line.removesuffix("\r"), token) for token, line in enumerate(lines))
    return Listed("WordPiece", tokens, piece_reader(WORD_PIECE))


def _model(path: Path, settings: Mapping[str, Any]) -> Listed:
    """Llama 3 and others call a tiktoken file tokenizer.model, the name that sentencepiece has."""
    first_line = _content(path).split(b"\n", 1)[0].strip()
    if _RANKED.fullmatch(first_line):
        return _tiktoken(path, settings)
    return _sentencepiece(path, settings)


def _sentencepiece(path: Path, settings: Mapping[str, Any]) -> Listed:
    model = _load_sentencepiece(path)
    family = _family(settings)
    if family in _SHIFTED or (path.name == "sentencepiece.bpe.model" and not family):
        raise VocabularyError(
            f"{path}: the ids of {family or 'such'} tokenizers are not those of the file, and are "
            f"made by the code of their class; {_SAVE_ANEW}"
        )
    size = len(model)
    first, begin = _FAIRSEQ.get(family, ((), 0))
    shift = len(first) - begin
    pieces = [*first, *(model.id_to_piece(token) for token in range(begin, size))]
    special = {*range(len(first))} | {
        token + shift
        for token in range(begin, size)
        if model.is_control(token) or model.is_unknown(token) or model.is_unused(token)
    }
    mask = "[MASK]" if family == "debertav2" else "<mask>"
    last = [mask] if (first or family == "debertav2") and mask not in pieces else []
    if family == "t5" and not any("<extra_id_" in piece for piece in pieces):
        extra = settings.get("extra_ids", 100)
        last = [f"<extra_id_{number}>" for number in reversed(range(extra if is_id(extra) else 0))]
    special.update(range(len(pieces), len(pieces) + len(last)))
    tokens = [(piece, token) for token, piece in enumerate([*pieces, *last])]
    return Listed("sentencepiece", tokens, piece_reader(SENTENCEPIECE), frozenset(special))


def _load_sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise VocabularyError(
            f"{path}: a sentencepiece model, which needs the sentencepiece package; run "
            "pip install 'clpstream[sentencepiece]'"
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=_content(path))
    except RuntimeError:
        raise VocabularyError(f"{path}: not a sentencepiece model; download it again") from None


def _family(settings: Mapping[str, Any]) -> str:
    """'xlmroberta' from the class XLMRobertaTokenizerFast or the model type xlm-roberta."""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if name in ("", "PreTrained", "PreTrainedTokenizer", "TokenizersBackend"):
        name = str(settings.get("model_type") or "")
    return name.replace("-", "").replace("_", "").lower()


def _content(path: Path) -> bytes:
    try:
        refuse_lfs_pointer(path)
        content = path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"{path}: can't be read: {error.strerror}") from None
    if not content:  # sentencepiece would take it, and log errors later
        raise VocabularyError(f"{path}: the file is empty; download it again")
    return content


def is_id(value: Any) -> bool:
    """Whether a value from a JSON file can be a token id."""
    return type(value) is int and value >= 0


def _check_ids(path: Path, ids: Mapping[str, Any]) -> None:
    for piece, token in ids.items():
        if not is_id(token):
            raise VocabularyError(
                f"{path}: the token {piece!r} has the id {token!r}; ids must be whole numbers from "
                "0 up: save the tokenizer again"
            )


_SAVE_ANEW = (
    "load it with transformers' AutoTokenizer, and save_pretrained it to get a tokenizer.json"
)
_FORMATS: tuple[tuple[str, Reader], ...] = (
    (TOKENIZER_FILE, _tokenizer_json),
    (TEKKEN_FILE, _tekken),
    ("*.tiktoken", _tiktoken),
    ("vocab.json", _vocab_json),
    ("vocab.txt", _vocab_txt),
    ("tokenizer.model", _model),
    ("tiktoken.model", _model),
    ("spiece.model", _model),
    ("spm.model", _model),
    ("sentencepiece.bpe.model", _model),
    ("sentencepiece.model", _model),
    ("tokenizer.model.v*", _model),
)
VOCABULARY_FILES = tuple(pattern for pattern, _ in _FORMATS)
"""A tokenizer that can be read has one of these."""
