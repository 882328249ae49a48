"""Tokenizer files of a model -> its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clpstream.errors import VocabularyError
from clpstream.inputs import LANGUAGE_LEVELS, read_json_if_there
from clpstream.vocabulary.files import TIKTOKEN, Listed, find_tokenizer, is_id
from clpstream.vocabulary.tokens import Vocabulary

MAX_IDS = 1 << 24
"""More ids than any vocabulary has: rows are made for every id up to the largest."""
ROLES = ("eos", "bos", "pad", "unk", "cls", "sep", "mask")
"""In the order in which a token with several roles is matched: generation has to stop."""
_USUAL_NAMES = {
    "eos": ("</s>", "<eos>", "<|endoftext|>"),
    "bos": ("<s>", "<bos>", "<|startoftext|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("<mask>", "[MASK]"),
}
"""By role: what tokenizer classes take by default, for files that don't say what is special."""
_NAMED = 5


def read_vocabulary(directory: str | Path) -> Vocabulary:
    """Read a tokenizer's file and what the files beside it say about special and added tokens.

    Of several files the one is read that transformers would take, tokenizer.json first. Raises
    VocabularyError if there is none or it has no vocabulary, CheckpointError if a JSON file can't
    be read.
    """
    directory = Path(directory)
    path, read = find_tokenizer(directory)
    settings = read_json_if_there(directory / "tokenizer_config.json")
    config = read_json_if_there(directory / "config.json")
    listed = read(path, {**config, **settings})
    found = {**_added_tokens(directory, settings), **(listed.added or {})}
    if listed.kind == TIKTOKEN:
        config = {**read_json_if_there(directory / "generation_config.json"), **config}
        found |= _in_code(listed, found, config)
    own = _Tokens.of(listed.tokens)
    added = _Tokens.of((piece, token) for piece, (token, _) in found.items())
    if not own.pieces:
        raise VocabularyError(f"{path}: its vocabulary is empty; check the file")
    ids, by_id = own.ids | added.ids, own.pieces | added.pieces
    if max(by_id) >= MAX_IDS:
        raise VocabularyError(f"{path}: token id {max(by_id)} can't be real; check the file")
    named = {**read_json_if_there(directory / "special_tokens_map.json"), **settings}
    special = listed.special | _special(named, found, own, added)
    roles, absent = _roles(ids, named, config, special, {} if listed.flagged else _USUAL_NAMES)
    beside = {token for token, piece in added.pieces.items() if own.pieces.get(token) != piece}
    special |= {  # but for a pad of the tokenizer's own vocabulary, which may be any text
        token for role, token in roles.items() if role != "pad" or token in beside
    }
    plain = frozenset(beside - special)

    def text(token: int, piece: str | None) -> bytes | None:
        if piece is None or token in special:
            return None
        return piece.encode("utf-8", "surrogatepass") if token in plain else listed.read(piece)

    pieces = tuple(by_id.get(token) for token in range(max(by_id) + 1))
    return Vocabulary(
        path=path,
        kind=listed.kind,
        pieces=pieces,
        text=tuple(text(token, piece) for token, piece in enumerate(pieces)),
        roles=roles,
        absent=absent,
        added=plain,
        notes=(*_notes(path, named, own, added), *_lost_notes(path, listed, found)),
    )


@dataclass(frozen=True)
class _Tokens:
    """Tokens by id and by piece, for one piece can have several ids: the last is what is used.

    clashes: the pieces that have one id, where there are several.
    """

    pieces: dict[int, str]
    ids: dict[str, int]
    clashes: dict[int, tuple[str, ...]]

    @staticmethod
    def of(tokens: Iterable[tuple[str, int]]) -> _Tokens:
        pieces: dict[int, str] = {}
        ids: dict[str, int] = {}
        clashes: dict[int, tuple[str, ...]] = {}
        for piece, token in tokens:
            other = pieces.setdefault(token, piece)
            if other != piece:
                clashes[token] = (*clashes.get(token, (other,)), piece)
                pieces[token] = piece
            ids[piece] = token
        return _Tokens(pieces, ids, clashes)


def _in_code(
    listed: Listed, found: Mapping[str, tuple[int, bool]], config: dict[str, Any]
) -> dict[str, tuple[int, bool]]:
    """Special tokens that only the code of a tokenizer's class names, as far as configs tell."""
    size = 1 + max((token for _, token in listed.tokens), default=-1)
    known = {token for token, _ in found.values()}
    new: dict[int, str] = {}
    for role in ROLES:
        token = _first_id(config, f"{role}_token_id")
        if token is not None and token >= size and token not in known:
            new.setdefault(token, f"<|{role}|>")
    return {piece: (token, True) for token, piece in new.items()}


def _added_tokens(directory: Path, settings: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    """Piece -> (id, special) of the tokens that the files beside the tokenizer add to it."""
    found: dict[str, tuple[int, bool]] = {}
    for piece, token in read_json_if_there(directory / "added_tokens.json").items():
        if is_id(token):
            found[piece] = (token, False)
    for token, entry in _as(dict, settings.get("added_tokens_decoder")).items():
        if isinstance(entry, dict) and _is_number(token) and "content" in entry:
            found[str(entry["content"])] = (int(token), bool(entry.get("special")))
    return found


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 19


def _special(
    named: dict[str, Any], found: Mapping[str, tuple[int, bool]], own: _Tokens, added: _Tokens
) -> set[int]:
    """Ids of the tokens that are flagged as special, or listed as such beside the roles."""
    pieces = {piece for piece, (_, is_special) in found.items() if is_special}
    pieces.update(_listed_special(named))
    return {ids[piece] for ids in (own.ids, added.ids) for piece in pieces if piece in ids}


def _listed_special(named: dict[str, Any]) -> list[str]:
    pieces = []
    for key in ("additional_special_tokens", "extra_special_tokens"):  # since transformers 5
        entries = named.get(key)
        for entry in entries.values() if isinstance(entries, dict) else _as(list, entries):
            piece = entry.get("content") if isinstance(entry, dict) else entry
            pieces += [piece] if isinstance(piece, str) else []
    return pieces


def _notes(path: Path, named: dict[str, Any], own: _Tokens, added: _Tokens) -> list[str]:
    notes = []
    taken = {
        token: (piece, added.pieces[token])
        for token, piece in own.pieces.items()
        if added.pieces.get(token, piece) != piece
    }
    for token, pieces in {**own.clashes, **added.clashes, **taken}.items():
        names = " and ".join(map(repr, pieces))
        notes.append(f"{path}: {names} have one id, {token}, and so one row")
    nowhere = [
        piece for piece in _listed_special(named) if piece not in own.ids and piece not in added.ids
    ]
    if nowhere:
        some = ", ".join(map(repr, nowhere[:_NAMED])) + (", ..." if len(nowhere) > _NAMED else "")
        notes.append(
            f"{path}: no file gives an id to the special tokens {some}; transformers gives them "
            "ids without a row"
        )
    return notes


def _lost_notes(path: Path, listed: Listed, found: Mapping[str, tuple[int, bool]]) -> list[str]:
    if listed.kind != TIKTOKEN or len(found) > len(ROLES):  # somebody listed them beside it
        return []
    return [
        f"{path}: a tiktoken file lists no special tokens; but for those that the files beside it "
        "name, those of the code of its class are not known here"
    ]


def _roles(
    ids: dict[str, int],
    named: dict[str, Any],
    config: dict[str, Any],
    special: Set[int],
    usual: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, int], dict[str, str]]:
    """Ids by role: the tokenizer's files by the token's text, else config.json by its id.

    An id of config.json counts only for a special token: configs often hold the defaults of their
    class, which are somebody else's ids. Roles that no file mentions go to the usual names.
    """
    roles: dict[str, int] = {}
    absent: dict[str, str] = {}
    for role in ROLES:
        entry = named.get(f"{role}_token")
        piece = entry.get("content") if isinstance(entry, dict) else entry
        token = _first_id(config, f"{role}_token_id")
        candidates = [name for name in usual.get(role, ()) if name in ids]
        if isinstance(piece, str) and piece in ids:
            roles[role] = ids[piece]
        elif isinstance(piece, str):
            absent[role] = piece
        elif token is not None and (token in special or token in roles.values()):
            roles[role] = token
        elif candidates and f"{role}_token" not in named:
            roles[role] = ids[candidates[0]]
    return roles, absent


def _first_id(config: dict[str, Any], key: str) -> int | None:
    for level in (config, *(config.get(key) for key in LANGUAGE_LEVELS)):
        value = level.get(key) if isinstance(level, dict) else None
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and is_id(token):
                return token
    return None


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else kind()
