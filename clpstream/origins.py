"""Where each row of the target comes from: known from the vocabularies alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from clpstream.errors import VocabularyError
from clpstream.transfer import NO_ANCHOR
from clpstream.vocabulary import MISSING, Match, Overlap, Splitter, Vocabulary, match

Ids = npt.NDArray[np.int64]
NO_ROW = -1


@dataclass(frozen=True)
class Origins:
    """The target's rows by token id; every id is in one of these.

    copied: (rows,) the source row that is copied bit for bit, or NO_ROW.
    combined, helper_rows: tokens whose rows the method makes, and their rows in the helper. own: of
    each the anchor that is the same token, or NO_ANCHOR: a shared token that is not copied.
    pieces: tokens whose rows are made from those of several source tokens.
    unknown: tokens that nothing is known about: the anchors' mean row.
    idle: ids that no token has, gaps and padding: like the source's own.
    anchors, anchor_rows: rows in the source, and in the helper, of the tokens that both have.
    words, words_own: shared tokens that may mean something else in each model, since they are words
    or parts of words (symbols, numbers, bytes and special tokens don't), and their anchors.
    rules: how many tokens are shared, by the rule that found their source row.
    """

    copied: Ids
    combined: Ids
    helper_rows: Ids
    own: Ids
    pieces: Mapping[int, tuple[int, ...]]
    unknown: Ids
    idle: Ids
    anchors: Ids
    anchor_rows: Ids
    words: Ids
    words_own: Ids
    rules: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Rows of the target's vocabulary tensors."""
        return len(self.copied)

    @cached_property  # there may be hundreds of thousands
    def pieces_in_all(self) -> int:
        """How many pieces the tokens are made of, all together."""
        return sum(map(len, self.pieces.values()))

    @property
    def shared(self) -> Ids:
        """Tokens whose rows are copied."""
        return np.flatnonzero(self.copied != NO_ROW)

    @property
    def remade(self) -> Ids:
        """Shared tokens whose rows the method makes."""
        remade: Ids = self.combined[self.own != NO_ANCHOR]
        return remade

    def doubting(self, chosen: npt.NDArray[np.bool_]) -> Origins:
        """The same, but that no other words than those (n_words,) may mean something else."""
        return replace(self, words=self.words[chosen], words_own=self.words_own[chosen])

    def remaking(self, chosen: npt.NDArray[np.bool_]) -> Origins:
        """The same, but for those of the words (n_words,) whose rows the method is to make."""
        tokens, own = self.words[chosen], self.words_own[chosen]
        copied = self.copied.copy()
        copied[tokens] = NO_ROW
        combined = np.concatenate([self.combined, tokens])
        order = np.argsort(combined)
        return replace(
            self,
            copied=copied,
            combined=combined[order],
            helper_rows=np.concatenate([self.helper_rows, self.anchor_rows[own]])[order],
            own=np.concatenate([self.own, own])[order],
        )


def find_origins(
    source: Vocabulary,
    helper: Vocabulary,
    target: Vocabulary,
    *,
    source_rows: int,
    helper_rows: int,
    rule: Match = "bytes",
    mapped: Mapping[str, str] | None = None,
    multiple_of: int = 1,
    splitting: bool = False,
) -> Origins:
    """Find the origin of every row.

    A token of the target that the source has is copied; else, if the helper has it, combined; else
    made from the source tokens that it splits into. `mapped` goes before: target token -> source
    token, or text that the source splits. `target` may be `helper` itself.

    source_rows, helper_rows: rows of the embeddings; ids from there on have none.
    multiple_of: what the number of rows is rounded up to.
    splitting: tokens that the source lacks are made from the source tokens that they split into,
    even if the helper has them.
    Raises VocabularyError if source and helper share no token, or a mapped token is not there.
    """
    split = Splitter(source, source_rows)
    wanted = _wanted(source, target, split, source_rows, mapped) if mapped else {}
    pieces = {token: found for token, found in wanted.items() if len(found) > 1}
    fixed = {token: MISSING if token in pieces else found[0] for token, found in wanted.items()}
    shared = match(source, target, rule, source_rows, fixed)
    own = helper is target
    # a mapped token's row in the helper and its new one are not two rows of one token
    anchors = shared if own and not fixed else match(source, helper, rule, source_rows)
    anchor_rows = anchors.anchors[anchors.anchors < helper_rows]

    helper_of = (
        np.arange(target.size)
        if own
        else match(helper, target, _strict(rule), helper_rows).source_of
    )
    helper_of = np.where(helper_of < helper_rows, helper_of, MISSING)
    missing = [token for token in shared.missing.tolist() if token not in pieces]
    combined, unknown = [], []
    for token in missing:
        known = helper_of[token] >= 0
        found = split(_text(target, token)) if splitting or not known else None
        if found is not None:
            pieces[token] = tuple(found)
        elif known:
            combined.append(token)
        else:
            unknown.append(token)
    words, words_own = _words(target, helper_of, anchors.source_of, anchor_rows, shared, fixed)
    rows = ceil(target.size / multiple_of) * multiple_of
    copied = np.full(rows, NO_ROW)
    copied[shared.shared] = shared.source_of[shared.shared]
    return Origins(
        copied=copied,
        combined=np.array(combined, np.int64),
        helper_rows=helper_of[combined],
        own=np.full(len(combined), NO_ANCHOR),
        pieces=dict(sorted(pieces.items())),
        unknown=np.array(unknown, np.int64),
        idle=np.concatenate([shared.unused, np.arange(target.size, rows)]),
        anchors=anchors.source_of[anchor_rows],
        anchor_rows=anchor_rows,
        words=words,
        words_own=words_own,
        rules=shared.rules,
    )


def _words(
    target: Vocabulary,
    helper_of: Ids,
    source_of: Ids,
    anchor_rows: Ids,
    shared: Overlap,
    fixed: Collection[int],
) -> tuple[Ids, Ids]:
    """See `Origins`: shared tokens of which both models have a row of the same source token."""
    place = {row: index for index, row in enumerate(anchor_rows.tolist())}
    found = [
        (token, place[row])
        for token in shared.shared.tolist()
        if (row := int(helper_of[token])) in place
        and source_of[row] == shared.source_of[token]
        and token not in fixed
        and target.is_word(token)
    ]
    words = np.array(found, np.int64).reshape(-1, 2)
    return words[:, 0], words[:, 1]


def _strict(rule: Match) -> Match:
    """The rule for a token's row in the helper: near is near enough for a copy only."""
    return "bytes" if rule == "fuzzy" else rule


def _wanted(
    source: Vocabulary, target: Vocabulary, split: Splitter, limit: int, mapped: Mapping[str, str]
) -> dict[int, tuple[int, ...]]:
    """By target token: the source token that the user wants for it, or several pieces."""
    in_source, in_target = _finder(source), _finder(target)
    found: dict[int, tuple[int, ...]] = {}
    for text, by in mapped.items():
        token = in_target(text)
        if token is None:
            raise VocabularyError(
                f"{target.path}: it has no token {text!r}, for which a source token was given; "
                "check how it is written"
            )
        if token in found:
            raise VocabularyError(
                f"{target.path}: {text!r} is a token for which a source token was given already, "
                "written in another way; give one"
            )
        old = in_source(by)
        if old is not None and old >= limit:
            raise VocabularyError(
                f"{source.path}: {by!r} is token {old}, and the source has {limit} rows; give "
                "another token"
            )
        pieces = split(_encoded(by), space_before=True) if old is None else [old]
        if not pieces:
            raise VocabularyError(
                f"{source.path}: {by!r} is no token of it, and can't be split into its tokens; "
                "give another text for the target's token"
            )
        found[token] = tuple(pieces)
    return found


def _finder(vocabulary: Vocabulary) -> Callable[[str], int | None]:
    """Finds the token that is written as a text, or else stands for it."""
    names = {piece: token for token, piece in enumerate(vocabulary.pieces) if piece is not None}
    texts = vocabulary.ids_by_text(vocabulary.size)
    return lambda text: names.get(text, texts.get(_encoded(text)))


def _encoded(text: str) -> bytes:
    """Text of the command line, where it need not be UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        return text.encode("utf-8", "surrogatepass")


def _text(vocabulary: Vocabulary, token: int) -> bytes:
    """What a token stands for; of a special token, its name."""
    text = vocabulary.text[token]
    return str(vocabulary.pieces[token]).encode("utf-8", "replace") if text is None else text
