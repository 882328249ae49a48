"""Tokenizer files of a model -> its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clpstream.errors import VocabularyError
from clpstream.inputs import read_json, read_json_if_there
from clpstream.vocabulary.pieces import piece_reader

TOKENIZER_FILE = "tokenizer.json"
MAX_IDS = 1 << 24
"""More ids than any vocabulary has: rows are made for every id up to the largest."""
ROLES = ("eos", "bos", "pad", "unk", "cls", "sep", "mask")
"""In the order in which a token with several roles is matched: generation has to stop."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, by id.

    pieces: the token as the tokenizer writes it; None where no token has the id.
    text: the bytes that the token stands for; None for special tokens, which stand for no text.
    roles: ids of the special tokens that have a role (see ROLES).
    absent: roles whose token tokenizer_config.json names but no file gives an id.
    """

    path: Path
    pieces: tuple[str | None, ...]
    text: tuple[bytes | None, ...]
    roles: Mapping[str, int]
    absent: Mapping[str, str]

    @property
    def size(self) -> int:
        """The largest id + 1: the rows that a vocabulary tensor needs."""
        return len(self.pieces)

    def __len__(self) -> int:
        """How many tokens there are; fewer than `size` if there are ids without one."""
        return sum(piece is not None for piece in self.pieces)

    def describe(self, token: int) -> str:
        """The token for people: what it stands for, or its name if it is special."""
        text = self.text[token]
        if text is None:
            return str(self.pieces[token])
        try:
            return repr(text.decode())
        except UnicodeDecodeError:  # a part of a character
            return "".join(f"<0x{byte:02X}>" for byte in text)


def read_vocabulary(directory: str | Path) -> Vocabulary:
    """Read tokenizer.json and what the files beside it say about special tokens.

    Raises VocabularyError if there is no tokenizer.json or it has no vocabulary, CheckpointError
    if a file can't be read.
    """
    directory = Path(directory)
    path = directory / TOKENIZER_FILE
    if not path.exists():
        raise VocabularyError(
            f"{directory}: no tokenizer in it ({TOKENIZER_FILE}); where there is another tokenizer "
            "file, load it with transformers' AutoTokenizer and save_pretrained it here"
        )
    tokenizer = read_json(path)
    settings = read_json_if_there(directory / "tokenizer_config.json")
    own = _model_ids(path, tokenizer)
    ids = dict(own)
    added = _added_tokens(directory, tokenizer, settings)
    ids.update({piece: token for piece, (token, _) in added.items()})
    config = read_json_if_there(directory / "config.json")
    named = {**read_json_if_there(directory / "special_tokens_map.json"), **settings}
    if max(ids.values()) >= MAX_IDS:
        raise VocabularyError(f"{path}: token id {max(ids.values())} can't be real; check the file")
    special = {token for token, is_special in added.values() if is_special}
    roles, absent = _roles(ids, named, config, special)
    special.update(token for role, token in roles.items() if role != "pad")  # pad may be any text
    read = piece_reader(tokenizer)
    pieces: list[str | None] = [None] * (max(ids.values()) + 1)
    text: list[bytes | None] = [None] * len(pieces)
    for piece, token in ids.items():
        pieces[token] = piece
        if token in special:
            text[token] = None
        elif piece in added and piece not in own:  # matched in the text as it is
            text[token] = piece.encode("utf-8", "surrogatepass")
        else:
            text[token] = read(piece)
    return Vocabulary(path, tuple(pieces), tuple(text), roles, absent)


def _model_ids(path: Path, tokenizer: dict[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and all(_is_id(token) for token in vocabulary.values()):
        ids: dict[str, int] = vocabulary
    elif isinstance(vocabulary, list) and all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocabulary
    ):  # Unigram: [piece, log probability], whose place is its id
        ids = {entry[0]: token for token, entry in enumerate(vocabulary)}
    else:
        raise VocabularyError(
            f"{path}: it has no vocabulary under 'model'; check that it is a tokenizer of the "
            "tokenizers library"
        )
    if not ids:
        raise VocabularyError(f"{path}: its vocabulary is empty; check the file")
    return ids


def _added_tokens(
    directory: Path, tokenizer: dict[str, Any], settings: dict[str, Any]
) -> dict[str, tuple[int, bool]]:
    """Piece -> (id, special) of the tokens added to the model's vocabulary, from any file."""
    found: dict[str, tuple[int, bool]] = {}
    for piece, token in read_json_if_there(directory / "added_tokens.json").items():
        if _is_id(token):
            found[piece] = (token, False)
    listed = [
        {**entry, "id": int(token)}
        for token, entry in _as(dict, settings.get("added_tokens_decoder")).items()
        if isinstance(entry, dict) and token.isdecimal()
    ]
    for entry in (*listed, *_as(list, tokenizer.get("added_tokens"))):
        if isinstance(entry, dict) and _is_id(entry.get("id")) and "content" in entry:
            found[str(entry["content"])] = (entry["id"], bool(entry.get("special")))
    return found


def _roles(
    ids: dict[str, int], named: dict[str, Any], config: dict[str, Any], special: set[int]
) -> tuple[dict[str, int], dict[str, str]]:
    """Ids by role: the tokenizer's files by the token's text, else config.json by its id.

    An id of config.json counts only for a special token: configs often hold the defaults of their
    class, which are somebody else's ids.
    """
    roles: dict[str, int] = {}
    absent: dict[str, str] = {}
    for role in ROLES:
        entry = named.get(f"{role}_token")
        piece = entry.get("content") if isinstance(entry, dict) else entry
        token = _first_id(config, f"{role}_token_id")
        if isinstance(piece, str) and piece in ids:
            roles[role] = ids[piece]
        elif isinstance(piece, str):
            absent[role] = piece
        elif token is not None and token in special:
            roles[role] = token
    return roles, absent


def _first_id(config: dict[str, Any], key: str) -> int | None:
    for level in (config, config.get("text_config")):
        value = level.get(key) if isinstance(level, dict) else None
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and _is_id(token):
                return token
    return None


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else kind()


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0
