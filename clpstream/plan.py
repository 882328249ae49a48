"""What a conversion will do, known before a byte is written: from headers and tokenizers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clpstream.checkpoint import (
    INDEX_FILE,
    Checkpoint,
    VocabularyTensor,
    find_vocabulary_tensors,
    input_embeddings,
    is_tied,
    known_vocabulary_tensors,
    open_checkpoint,
    vocabulary_role,
)
from clpstream.errors import CheckpointError, TransferError
from clpstream.inputs import read_json, read_json_if_there, refuse_lfs_pointer
from clpstream.output.config import Retarget
from clpstream.output.files import json_bytes
from clpstream.output.shards import TargetShard, index_of, plan_shards
from clpstream.output.side_files import side_files
from clpstream.transfer import METHODS, Method
from clpstream.vocabulary import Match, Overlap, Vocabulary, match, read_vocabulary, tokenizer_class

Shared = Literal["copy"]

_OWN_TOKENIZER = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "siglip2")
"""Model types whose tokenizer class transformers 5 takes from the type, whatever the files say."""
_READING_BYTES = 64 << 20
"""What reading rows, a block of the target and rounding it to its dtype take."""


@dataclass(frozen=True)
class Plan:
    """Two opened checkpoints, and everything that follows from them for the target.

    tensors: the source's vocabulary tensors. embeddings: the helper's input embeddings.
    written: JSON files of the target by name. copied_files: files copied byte for byte.
    """

    source: Checkpoint
    helper: Checkpoint
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    tensors: tuple[VocabularyTensor, ...]
    embeddings: VocabularyTensor
    tied: bool
    overlap: Overlap
    method: Method
    options: Mapping[str, Any]
    shards: tuple[TargetShard, ...]
    written: Mapping[str, dict[str, Any]]
    copied_files: Mapping[str, Path]
    warnings: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows of the target's vocabulary tensors: the largest token id + 1."""
        return self.target_vocabulary.size

    @property
    def vocabulary_names(self) -> set[str]:
        """Names of the source's vocabulary tensors."""
        return {tensor.name for tensor in self.tensors}

    @property
    def shard_bytes(self) -> int:
        """Size of the target's shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def bytes_to_write(self) -> int:
        """Size of the target's shards and other files."""
        return (
            self.shard_bytes
            + sum(len(json_bytes(content)) for content in self.written.values())
            + sum(path.stat().st_size for path in self.copied_files.values())
        )

    @property
    def working_bytes(self) -> int:
        """Estimate of the memory that the rows take, above what the plan itself holds."""
        return _READING_BYTES + self.method.working_bytes(
            len(self.overlap.anchors),
            len(self.overlap.missing),
            self.embeddings.width,
            max(tensor.width for tensor in self.tensors),
        )


def make_plan(
    source: str | Path,
    helper: str | Path,
    *,
    method: str | Method = "knn",
    match_by: Match = "bytes",
    shared: Shared = "copy",
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
) -> Plan:
    """Open both checkpoints and plan the target. Arguments and errors as for `convert`."""
    rule = _method(method)
    if shared not in get_args(Shared):
        raise TransferError(f"shared is {shared!r}; it can be {', '.join(get_args(Shared))}")
    big, small = open_checkpoint(source), open_checkpoint(helper)
    if not (big.directory / "config.json").exists():
        raise CheckpointError(f"{big.directory}: no config.json in it; the target needs one")
    tensors = find_vocabulary_tensors(big, vocab_tensors, pass_through)
    # of the helper only the input embeddings are read, so no sweep over its other tensors
    embeddings = input_embeddings(small, known_vocabulary_tensors(small))
    old, new = read_vocabulary(big.directory), read_vocabulary(small.directory)
    if embeddings.rows < new.size:
        raise CheckpointError(
            f"{embeddings.span}: {embeddings.rows} rows, but {new.path} has token ids up to "
            f"{new.size - 1} ({new.describe(new.size - 1)}); the tokenizer does not belong to "
            "this helper"
        )
    source_rows = min(tensor.rows for tensor in tensors)
    overlap = match(old, new, match_by, source_rows)
    tied = is_tied(tensors)
    files = side_files(big.directory, small.directory)
    for path in files.values():
        refuse_lfs_pointer(path)
    written, notes = _json_files(big, small, new, overlap, tensors)
    return Plan(
        source=big,
        helper=small,
        source_vocabulary=old,
        target_vocabulary=new,
        tensors=tensors,
        embeddings=embeddings,
        tied=tied,
        overlap=overlap,
        method=rule,
        options={
            "method": rule.name,
            **rule.options(),
            "match": match_by,
            "shared": shared,
            "vocab_tensors": sorted(vocab_tensors),
            "pass_through": sorted(pass_through),
        },
        shards=plan_shards(big, {tensor.name for tensor in tensors}, new.size),
        written=written,
        copied_files=files,
        warnings=(
            *_vocabulary_warnings(old, new, source_rows, match_by),
            *_model_warnings(big, small, tensors, tied, new.size),
            *notes,
        ),
    )


def _method(method: str | Method) -> Method:
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise TransferError(f"method is {method!r}; it can be {', '.join(METHODS)}")
    return METHODS[method]()


def _json_files(
    source: Checkpoint,
    helper: Checkpoint,
    target: Vocabulary,
    overlap: Overlap,
    tensors: tuple[VocabularyTensor, ...],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The JSON files that are made from the source's, and warnings."""
    targets_of: dict[int, tuple[int, ...]] = {}
    for token in overlap.shared.tolist():
        old = int(overlap.source_of[token])
        targets_of[old] = (*targets_of.get(old, ()), token)
    retarget = Retarget(
        rows=target.size,
        old_sizes=frozenset(tensor.rows for tensor in tensors),
        roles=target.roles,
        targets_of=targets_of,
        special={token for token in range(target.size) if target.text[token] is None},
    )
    settings = read_json_if_there(helper.directory / "tokenizer_config.json")
    class_name, notes = None, []
    if "tokenizer_class" not in settings:
        class_name = tokenizer_class(target, helper.config)
        if class_name is None:
            notes.append(
                f"{target.path}: no file says which class of transformers reads it, and "
                "AutoTokenizer may take the wrong one; name it when you load the target's"
            )
    generation = source.directory / "generation_config.json"
    alone = not generation.exists()
    files = {"config.json": retarget.config(source.config, class_name, alone)}
    if not alone:
        files["generation_config.json"] = retarget.generation_config(read_json(generation))
    index = index_of(source, {tensor.name: target.size for tensor in tensors})
    if index is not None:
        files[INDEX_FILE] = index
    return files, [*notes, *retarget.warnings]


def _vocabulary_warnings(
    old: Vocabulary, new: Vocabulary, source_rows: int, match_by: Match
) -> list[str]:
    """What is odd about the two vocabularies and how their special tokens match."""
    warnings = [*old.notes, *new.notes]
    if old.size > source_rows:
        warnings.append(
            f"{old.path}: token ids from {source_rows} to {old.size - 1} have no row in the "
            "source; they are not shared"
        )
    for role, piece in new.absent.items():
        warnings.append(
            f"{new.path}: the {role} token {piece!r} of tokenizer_config.json is not in the "
            "tokenizer; transformers gives it an id without a row"
        )
    for token in dict.fromkeys(new.roles.values()) if match_by != "exact" else ():
        named = [role for role, own in new.roles.items() if own == token and role in old.roles]
        if len({old.roles[role] for role in named}) > 1:
            warnings.append(
                f"{new.describe(token)} is {' and '.join(named)} in the target, which are several "
                f"tokens in the source; it has the row of {old.describe(old.roles[named[0]])}"
            )
    return warnings


def _model_warnings(
    source: Checkpoint,
    helper: Checkpoint,
    tensors: tuple[VocabularyTensor, ...],
    tied: bool,
    rows: int,
) -> list[str]:
    """What may surprise when the target is loaded."""
    warnings = []
    model_type = source.config.get("model_type")
    if model_type in _OWN_TOKENIZER and model_type != helper.config.get("model_type"):
        warnings.append(
            f"transformers 5's AutoTokenizer takes the tokenizer class of a {model_type} from its "
            "type and may split text wrongly; load the target's tokenizer with "
            "PreTrainedTokenizerFast.from_pretrained"
        )
    rewritten = {tensor.name for tensor in tensors}
    for span in source.tensors:
        passes = span.name not in rewritten and vocabulary_role(span.name) is not None
        if passes and span.shape[:1] not in ((), (rows,)):
            warnings.append(
                f"{span.name} passes through with {span.shape[0]} rows, and the target has {rows}: "
                "it may not load"
            )
    flag = source.config.get("tie_word_embeddings")
    if flag is True and not tied:
        warnings.append(
            "config.json says tie_word_embeddings, but the source's head differs from its input "
            "embeddings: each got rows of its own"
        )
    if flag is False and not any(tensor.role == "output head" for tensor in tensors):
        warnings.append("config.json says that there is an output head, but no shard has one")
    return warnings
