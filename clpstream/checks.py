"""What keeps two checkpoints from being converted, and what is odd about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from clpstream.checkpoint import (
    HASHED,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    VocabularyTensor,
    sizes_in,
    stated_sizes,
    unread_heads,
    vocabulary_role,
)
from clpstream.errors import CheckpointError
from clpstream.inputs import read_json_if_there
from clpstream.origins import NO_ROW, Origins
from clpstream.output.shards import NewTensor, TargetShard
from clpstream.transfer import Method
from clpstream.vocabulary import Vocabulary

_OWN_TOKENIZER = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "siglip2")
"""Model types whose tokenizer class transformers 5 takes from the type, whatever the files say."""
_MOST_BEHIND = 0.1
"""The part of a source's tokens that may have no row."""
_TOKENS_NAMED = 10


def check_configs(source: Checkpoint) -> None:
    """Refuse a source without a config.json, or with a generation_config.json that is no JSON."""
    if not (source.directory / "config.json").exists():
        raise CheckpointError(f"{source.directory}: no config.json in it; the target needs one")
    read_json_if_there(source.directory / "generation_config.json")


def check_source(tensors: Collection[VocabularyTensor], vocabulary: Vocabulary) -> None:
    """Refuse a tokenizer that is not the source's, and tables that can't be of one vocabulary.

    A few ids without a row are no rarity. Rows that only some tables have are for images, or a
    prompt, and no token of the tokenizer's own vocabulary is among them.
    """
    text = [token for token, text in enumerate(vocabulary.text) if text is not None]
    most = max(tensor.rows for tensor in tensors)
    behind = sum(token >= most for token in text)
    if behind > _MOST_BEHIND * len(text):
        raise CheckpointError(
            f"{vocabulary.path}: {behind:,} of its {len(text):,} tokens have no row in the source, "
            f"whose vocabulary tensors have {most}; the tokenizer does not belong to this source"
        )
    for tensor in tensors:
        lost = next((token for token in text if tensor.rows <= token < most), None)
        if lost is not None:
            raise CheckpointError(
                f"{tensor.span}: {tensor.rows} rows, where others have {most} and the tokenizer "
                f"has {vocabulary.describe(lost)} at {lost}; if it is not indexed by token id, use "
                f"--pass-through {tensor.name}"
            )


def check_helper(embeddings: VocabularyTensor, vocabulary: Vocabulary) -> None:
    """Refuse a tokenizer that is not the helper's.

    Some models have special tokens behind their rows: gemma-3's for images, which its text model
    never sees.
    """
    for token in range(embeddings.rows, vocabulary.size):
        if vocabulary.text[token] is not None:
            raise CheckpointError(
                f"{embeddings.span}: {embeddings.rows} rows, but {vocabulary.path} has token ids "
                f"up to {vocabulary.size - 1} ({vocabulary.describe(token)} is {token}); the "
                "tokenizer does not belong to this helper"
            )


def vocabulary_warnings(
    old: Vocabulary, new: Vocabulary, source_rows: int, origins: Origins
) -> list[str]:
    """What is odd about the two vocabularies and how their special tokens match."""
    warnings = [*old.notes, *new.notes]
    if old.size > source_rows:
        warnings.append(
            f"{old.path}: token ids from {source_rows} to {old.size - 1} have no row in the "
            "source; they are not shared"
        )
    warnings += absent_roles(new)
    for token in dict.fromkeys(new.roles.values()):
        row = int(origins.copied[token])
        named = [role for role, own in new.roles.items() if own == token and role in old.roles]
        if row != NO_ROW and len({old.roles[role] for role in named}) > 1:
            warnings.append(
                f"{new.describe(token)} is {' and '.join(named)} in the target, which are several "
                f"tokens in the source; it has the row of {old.describe(row)}"
            )
    return warnings


def absent_roles(vocabulary: Vocabulary) -> list[str]:
    """A warning for each special token that is named and has no id."""
    return [
        f"{vocabulary.path}: the {role} token {piece!r} of tokenizer_config.json is not in the "
        "tokenizer; transformers gives it an id without a row"
        for role, piece in vocabulary.absent.items()
    ]


def helper_warnings(helper: Checkpoint, embeddings: VocabularyTensor) -> list[str]:
    """Output heads of a helper that are of no use, where there is no other."""
    return [
        f"{span}: {span.dtype} {list(span.shape)}, and the input embeddings are "
        f"{embeddings.span.dtype} {list(embeddings.span.shape)}: the helper's output head is not "
        "used, and its input embeddings stand for it"
        for span in unread_heads(helper, embeddings)
    ]


def origin_warnings(
    origins: Origins,
    target: Vocabulary,
    helper: Vocabulary,
    embeddings: VocabularyTensor | None,
) -> list[str]:
    """Tokens whose rows don't come from the helper."""
    warnings = []
    rows = helper.size if embeddings is None else embeddings.rows
    behind = [t for t in range(rows, helper.size) if helper.pieces[t] is not None]
    if behind:
        warnings.append(
            f"{helper.path}: tokens without a row in the helper are made as those that it lacks: "
            f"{named_tokens(helper, behind)}"
        )
    if len(origins.unknown):
        warnings.append(
            f"{len(origins.unknown):,} target tokens are in neither vocabulary and can't be split: "
            f"{named_tokens(target, origins.unknown.tolist())}; they get the mean of the anchors' "
            "rows"
        )
    return warnings


def method_warnings(
    origins: Origins,
    method: Method,
    embeddings: VocabularyTensor | None,
    new: Mapping[str, NewTensor],
) -> list[str]:
    """Whether the shared tokens are too few for the method."""
    widest = max(made.tensor.width for made in new.values())
    fewest = method.fewest(embeddings.width if embeddings else 0, widest)
    count = len(origins.anchors)
    if count >= fewest:
        return []
    other = "clp" if method.name == "knn" else "knn"
    return [
        f"too few anchors: {count:,} shared tokens, of which {method.name} wants {fewest:,} or "
        f"more with these models; try another helper, or --method {other}"
    ]


def named_tokens(vocabulary: Vocabulary, tokens: list[int]) -> str:
    """The first ten of some tokens, for people."""
    more = ", ..." if len(tokens) > _TOKENS_NAMED else ""
    return ", ".join(vocabulary.describe(token) for token in tokens[:_TOKENS_NAMED]) + more


def model_warnings(
    source: Checkpoint,
    tokenizer: Path,
    new: Mapping[str, NewTensor],
    tied: bool,
    base_rows: int,
) -> list[str]:
    """What may surprise when the target is loaded."""
    warnings = []
    model_type = source.config.get("model_type")
    its_model = read_json_if_there(tokenizer / "config.json")
    if model_type in _OWN_TOKENIZER and model_type != its_model.get("model_type"):
        warnings.append(
            f"transformers 5's AutoTokenizer takes the tokenizer class of a {model_type} from its "
            "type and may split text wrongly; load the target's tokenizer with "
            "PreTrainedTokenizerFast.from_pretrained"
        )
    for span in source.tensors:
        if span.shape and span.name not in new and vocabulary_role(span.name) is not None:
            warnings.append(
                f"{span.name} passes through with its {span.shape[0]} rows: it is named like a "
                "vocabulary tensor"
            )
    for span in source.tensors:
        if HASHED.search(span.name):
            warnings.append(
                f"{span.name} passes through, but its rows are found by hashes of token ids: "
                "tokens that have another id in the target find others' rows there, until it is "
                "trained"
            )
    for name, made in new.items():
        behind = made.tensor.rows - base_rows
        if behind:
            warnings.append(
                f"{name}: {behind} rows behind the source's vocabulary of {base_rows} stay behind "
                f"the target's, from id {made.rows - behind} on"
            )
    rows = {made.tensor.rows for made in new.values()}
    if not any(size.value in {*rows, base_rows} for size in sizes_in(source.config)):
        warnings += [
            f"config.json says that the vocabulary has {size:,} entries, and the source has "
            f"{base_rows:,} rows for it"
            for size in stated_sizes(source.config)
            if size > max(rows)
        ]
    if source.index is None and (source.directory / INDEX_FILE).exists():
        warnings.append(
            f"{SINGLE_FILE} is the source, as transformers reads it; {INDEX_FILE} beside it is not "
            "looked at"
        )
    flag = source.config.get("tie_word_embeddings")
    if flag is True and not tied:
        warnings.append(
            "config.json says tie_word_embeddings, but the source's head differs from its input "
            "embeddings: each got rows of its own"
        )
    if flag is False and not any(made.tensor.role == "output head" for made in new.values()):
        warnings.append("config.json says that there is an output head, but no shard has one")
    return warnings


def link_warnings(shards: Sequence[TargetShard]) -> list[str]:
    """What hard links were asked for, and what is shared by them."""
    linked = [shard for shard in shards if shard.linked]
    behind = [shard for shard in shards if shard.original is not None and not shard.linked]
    warnings = []
    if linked:
        warnings.append(
            f"hard links: {len(linked):,} of {len(shards):,} shards are the source's own files "
            "under a second name: who changes one in place changes both"
        )
    if behind:
        warnings.append(
            f"{len(behind):,} of {len(shards):,} shards lie in the Hub's cache or behind symbolic "
            "links: copied, not linked, so that nobody writes through to what others use"
        )
    return warnings
