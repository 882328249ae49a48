"""What a conversion will do, known before a byte is written: from headers and tokenizers alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import (
    FLOATS,
    INDEX_FILE,
    Checkpoint,
    VocabularyTensor,
    embeddings_and_all,
    helper_tables_names,
    input_embeddings,
    is_tied,
    open_checkpoint,
    own_head,
    vocabulary_size,
)
from clpstream.checks import (
    check_configs,
    check_helper,
    check_source,
    helper_warnings,
    link_warnings,
    method_warnings,
    model_warnings,
    origin_warnings,
    vocabulary_warnings,
)
from clpstream.errors import CheckpointError, TransferError
from clpstream.hub import in_cache
from clpstream.inputs import read_json, read_json_if_there, refuse_lfs_pointer
from clpstream.origins import Origins, find_origins
from clpstream.output.config import Retarget
from clpstream.output.copying import LinkMode
from clpstream.output.files import json_bytes
from clpstream.output.shards import NewTensor, TargetShard, index_of, plan_shards
from clpstream.output.side_files import side_files
from clpstream.output.writing import writing_bytes
from clpstream.transfer import (
    METHODS,
    Clp,
    Method,
    Subword,
    agreement_bytes,
    gathering_bytes,
)
from clpstream.transfer.held_out import judging_bytes
from clpstream.vocabulary import (
    Match,
    Vocabulary,
    of_another_language,
    read_vocabulary,
    tokenizer_class,
)

Shared = Literal["auto", "copy", "map"]
Pieces = Literal["mean", "ends", "first"]
AUTO = "auto"
CHOICES = ("align", "procrustes", "ridge", "knn", "clp")
"""Methods among which "auto" chooses. `omp` takes the longest, and has to be asked for; the others
that are not here are to compare with."""

_SPARE_ROWS = 1024
_MOST_PADDING = 1 << 16
_MOST_WORDS = 3000


@dataclass(frozen=True)
class Sharing:
    """How it was decided which shared tokens keep their rows.

    threshold: cosine from which a token's rows in both models agreed; None where none was asked.
    """

    threshold: float | None


@dataclass(frozen=True)
class Plan:
    """Two opened checkpoints, and everything that follows from them for the target.

    new: the vocabulary tensors by name. source_embeddings: the one with the source's input
    embeddings, or the head that stands for both, or what a user named.
    helper: None if its rows don't matter, and then so is embeddings, its input embeddings; or its
    output head, if it has one of its own where the source has one table for both, and beside its
    input embeddings, which then only tell what tokens mean.
    head: its output head, where it and the source have their own.
    words: ids of the source's most frequent words, the most frequent first.
    method: to be chosen among CHOICES if `automatic`. mrr: what it was chosen by, once it is: the
    mean reciprocal rank by method (see `clpstream.evaluate`).
    spare: source ids that no token has. base_rows: rows of the source's vocabulary tensors, but
    for those that a model keeps behind the vocabulary (for images, for a prompt).
    sharing: None until it is decided, and where shared tokens are all copied.
    written: JSON files of the target by name. copied_files: files copied byte for byte.
    """

    source: Checkpoint
    helper: Checkpoint | None
    source_vocabulary: Vocabulary
    helper_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    new: Mapping[str, NewTensor]
    source_embeddings: VocabularyTensor
    embeddings: VocabularyTensor | None
    head: VocabularyTensor | None
    beside: VocabularyTensor | None
    tied: bool
    origins: Origins
    spare: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    base_rows: int
    method: Method
    shared: Shared
    pieces: Pieces
    options: Mapping[str, Any]
    shards: tuple[TargetShard, ...]
    link_mode: LinkMode
    written: Mapping[str, dict[str, Any]]
    copied_files: Mapping[str, Path]
    warnings: tuple[str, ...]
    automatic: bool = False
    mrr: Mapping[str, float] | None = None
    sharing: Sharing | None = None

    def with_method(self, method: Method) -> Plan:
        """The plan with a method. Rows of `clp` follow the helper's input embeddings, as in the
        paper, where those of others follow its head."""
        if isinstance(method, Clp) and self.beside is not None:
            return replace(self, method=method, embeddings=self.beside, beside=None)
        return replace(self, method=method)

    @property
    def source_head(self) -> VocabularyTensor | None:
        """The source's output head, if it has one of its own whose rows can be combined; of several
        (multi-token prediction), the one with the shortest name."""
        tensors = [] if self.tied else [new.tensor for new in self.new.values()]
        heads = (t for t in tensors if t.role == "output head" and t.span.dtype in FLOATS)
        return min(heads, key=lambda head: (len(head.name), head.name), default=None)

    @property
    def helper_tables(self) -> list[VocabularyTensor]:
        """Those of the helper's that are read."""
        tables = (self.embeddings, self.head, self.beside)
        return [table for table in tables if table is not None]

    @property
    def inputs(self) -> list[Path]:
        """Directories that are read."""
        tokenizer = self.target_vocabulary.path.parent
        return [self.source.directory, self.helper_vocabulary.path.parent, tokenizer]

    @property
    def shard_bytes(self) -> int:
        """Size of the target's shards."""
        return sum(shard.size for shard in self.shards)

    @cached_property  # a large model's index is longer than its tokenizer
    def bytes_to_write(self) -> int:
        """Size of the target's shards and other files, but for those that are linked."""
        return (
            sum(shard.size for shard in self.shards if not shard.linked)
            + sum(len(json_bytes(content)) for content in self.written.values())
            + sum(path.stat().st_size for path in self.copied_files.values())
        )

    @property
    def working_bytes(self) -> int:
        """Estimate of the memory that making the rows takes, above what the plan itself holds."""
        origins, width = self.origins, max(new.tensor.width for new in self.new.values())
        # those that are going to be made at most, by a method that is prepared on each table
        made = len(origins.combined) + (0 if self.shared == "copy" else len(origins.words))
        sizes = (
            len(origins.anchors),
            made * max(1, len(self.helper_tables)),
            self.embeddings.width if self.embeddings else 0,
            width,
        )
        most = self.method.working_bytes(*sizes)
        if self.automatic:
            most = max(METHODS[name]().working_bytes(*sizes) for name in CHOICES)
            most += judging_bytes(self.source_embeddings.width)
        if self.shared == "auto" and self.embeddings is not None:
            judged = self.source_head or self.source_embeddings
            most = max(most, agreement_bytes(self.embeddings.width, judged.width))
        most += gathering_bytes(len(origins.pieces), origins.pieces_in_all, width)
        return most + writing_bytes()


def make_plan(
    source: str | Path,
    helper: str | Path,
    *,
    tokenizer: str | Path | None = None,
    method: str | Method = "align",
    match_by: Match = "bytes",
    shared: Shared = "auto",
    map_tokens: Mapping[str, str] | None = None,
    pieces: Pieces | None = None,
    pad_to_multiple_of: int = 1,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
    link_mode: LinkMode = "auto",
) -> Plan:
    """Open both checkpoints and plan the target. Arguments and errors as for `convert`."""
    rule = _method(method)
    _check_choice("shared", shared, get_args(Shared))
    splitting = isinstance(rule, Subword)
    pieces = pieces or ("first" if splitting else "mean")
    _check_choice("pieces", pieces, get_args(Pieces))
    _check_choice("link_mode", link_mode, get_args(LinkMode))
    if not rule.reads_helper and shared == "map":
        raise TransferError(f"{rule.name} reads no helper to map shared tokens from; copy them")
    if type(pad_to_multiple_of) is not int or not 1 <= pad_to_multiple_of <= _MOST_PADDING:
        raise TransferError(
            f"pad_to_multiple_of is {pad_to_multiple_of!r}; it must be a number from 1 to "
            f"{_MOST_PADDING}"
        )
    big = open_checkpoint(source)
    small = open_checkpoint(helper, only=helper_tables_names) if rule.reads_helper else None
    check_configs(big)
    table, tensors = embeddings_and_all(big, vocab_tensors, pass_through)
    old, known = read_vocabulary(big.directory), read_vocabulary(helper)
    tied = is_tied(tensors)
    follow = _NO_TABLES if small is None else _helper_tables(small, known, tied)
    new = known if tokenizer is None else read_vocabulary(tokenizer)
    source_rows = min(tensor.rows for tensor in tensors)
    check_source(tensors, old)
    origins = find_origins(
        old,
        known,
        new,
        source_rows=source_rows,
        helper_rows=known.size if follow.embeddings is None else follow.embeddings.rows,
        rule=match_by,
        mapped=map_tokens,
        multiple_of=pad_to_multiple_of,
        splitting=splitting,
    )
    if not rule.reads_helper:
        shared = "copy"
    if shared == "auto":
        source_of = origins.copied[: new.size]
        origins = origins.doubting(of_another_language(old, new, source_of, origins.words))
        if not len(origins.words):
            shared = "copy"
    tokenizer_directory = Path(helper) if tokenizer is None else Path(tokenizer)
    files = _copied_files(big.directory, tokenizer_directory)
    base_rows = _base_rows(big, old, source_rows)
    made = {t.name: NewTensor(t, origins.rows + t.rows - base_rows) for t in tensors}
    linking = link_mode == "hardlink" and not in_cache(big.directory)
    shards = plan_shards(big, made, hard_links=linking)
    written, notes = _json_files(big, tokenizer_directory, new, origins, made, base_rows)
    return Plan(
        source=big,
        helper=small,
        source_vocabulary=old,
        helper_vocabulary=known,
        target_vocabulary=new,
        new=made,
        source_embeddings=made[table.name].tensor,
        embeddings=follow.embeddings,
        head=follow.head,
        beside=follow.beside,
        tied=tied,
        origins=origins,
        spare=_spare(old, base_rows),
        words=frequent_words(old, source_rows),
        base_rows=base_rows,
        method=rule,
        automatic=method == AUTO,
        shared=shared,
        pieces=pieces,
        options={
            **({"method": AUTO} if method == AUTO else {"method": rule.name, **rule.options()}),
            "match": match_by,
            "shared": shared,
            "map_tokens": dict(sorted((map_tokens or {}).items())),
            "pieces": pieces,
            "pad_to_multiple_of": pad_to_multiple_of,
            "vocab_tensors": sorted(vocab_tensors),
            "pass_through": sorted(pass_through),
        },
        shards=shards,
        link_mode=link_mode,
        written=written,
        copied_files=files,
        warnings=(
            *vocabulary_warnings(old, new, source_rows, origins),
            *follow.warnings,
            *origin_warnings(origins, new, known, follow.embeddings),
            *method_warnings(origins, rule, follow.embeddings, made),
            *model_warnings(big, tokenizer_directory, made, tied, base_rows),
            *notes,
            *(link_warnings(shards) if link_mode == "hardlink" else ()),
        ),
    ).with_method(rule)


@dataclass(frozen=True)
class _HelperTables:
    """See `Plan`."""

    embeddings: VocabularyTensor | None
    head: VocabularyTensor | None
    beside: VocabularyTensor | None
    warnings: list[str]


_NO_TABLES = _HelperTables(None, None, None, [])


def _helper_tables(helper: Checkpoint, vocabulary: Vocabulary, tied: bool) -> _HelperTables:
    """What rows follow. No more of the helper is read, so there is no sweep over other tensors."""
    embeddings = input_embeddings(helper)
    head = own_head(helper, embeddings)
    check_helper(embeddings, vocabulary)
    if head is None:
        return _HelperTables(embeddings, None, None, helper_warnings(helper, embeddings))
    if tied:  # one table is head and input: what it says as a head counts more
        return _HelperTables(head, None, embeddings, [])
    return _HelperTables(embeddings, head, None, [])


def _copied_files(source: Path, tokenizer: Path) -> dict[str, Path]:
    """See `side_files`. Raises CheckpointError for one that can't be read, or is no file yet."""
    files = side_files(source, tokenizer)
    for path in files.values():
        try:
            refuse_lfs_pointer(path)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    return files


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TransferError(f"{name} is {value!r}; it can be {', '.join(choices)}")


def _base_rows(source: Checkpoint, vocabulary: Vocabulary, rows: int) -> int:
    """How many rows of the source's tables are for its vocabulary, padding included."""
    size = vocabulary_size(source.config, rows)
    if any(text is not None for text in vocabulary.text[size:rows]):
        return rows  # config.json was not changed when tokens were added
    return size


def _spare(vocabulary: Vocabulary, rows: int) -> npt.NDArray[np.int64]:
    """Some ids below `rows` that no token has: gaps and padding."""
    gaps = [token for token, piece in enumerate(vocabulary.pieces[:rows]) if piece is None]
    return np.array([*gaps, *range(vocabulary.size, rows)][:_SPARE_ROWS], np.int64)


def frequent_words(vocabulary: Vocabulary, rows: int) -> npt.NDArray[np.int64]:
    """Up to 3,000 ids of words with a row, the most frequent first."""
    return np.fromiter(islice(vocabulary.words(rows), _MOST_WORDS), np.int64)


def _method(method: str | Method) -> Method:
    if method == AUTO:
        return METHODS["knn"]()  # which wants the fewest anchors, until one is chosen
    return method_of(method, [*METHODS, AUTO])


def method_of(method: str | Method, names: Collection[str]) -> Method:
    """The method of one of the names, or the object given.

    Raises TransferError for another name, or for a class in place of its object.
    """
    if isinstance(method, type):
        name = method.__name__
        raise TransferError(f"method is the class {name}; give an object: {name}()")
    if not isinstance(method, str):
        return method
    if method not in names:
        raise TransferError(f"method is {method!r}; it can be {', '.join(names)}")
    return METHODS[method]()


def reads_helper(method: str | Method) -> bool:
    """Whether a method, or the one of that name, needs the helper's weights."""
    return _method(method).reads_helper


def _json_files(
    source: Checkpoint,
    tokenizer: Path,
    target: Vocabulary,
    origins: Origins,
    new: Mapping[str, NewTensor],
    base_rows: int,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The JSON files that are made from the source's, and warnings."""
    targets_of: dict[int, tuple[int, ...]] = {}
    for token in origins.shared.tolist():
        old = int(origins.copied[token])
        targets_of[old] = (*targets_of.get(old, ()), token)
    retarget = Retarget(
        rows=origins.rows,
        old_rows=base_rows,
        sizes={made.tensor.rows: made.rows for made in new.values()},
        roles=target.roles,
        targets_of=targets_of,
        special={token for token in range(target.size) if target.text[token] is None},
        largest=target.size - 1,
    )
    class_name, notes = None, []
    if "tokenizer_class" not in read_json_if_there(tokenizer / "tokenizer_config.json"):
        class_name = tokenizer_class(target, read_json_if_there(tokenizer / "config.json"))
        if class_name is None:
            notes.append(
                f"{target.path}: no file says which class of transformers reads it, and "
                "AutoTokenizer may take the wrong one; name it when you load the target's"
            )
    generation = source.directory / "generation_config.json"
    alone = not os.path.lexists(generation)
    files = {"config.json": retarget.config(source.config, class_name, alone)}
    if not alone:
        files["generation_config.json"] = retarget.generation_config(
            read_json(generation), source.config
        )
    index = index_of(source, new)
    if index is not None:
        files[INDEX_FILE] = index
    return files, [*notes, *retarget.warnings]
