"""What a model directory is, and what would stop a conversion with it: from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from clpstream.checkpoint import (
    VocabularyTensor,
    embeddings_and_all,
    input_embeddings,
    is_tied,
    same_bytes,
    sizes_in,
)
from clpstream.checks import absent_roles, check_configs, check_helper, check_source
from clpstream.errors import ClpstreamError
from clpstream.hub import model_name, open_headers
from clpstream.progress import Progress
from clpstream.vocabulary import Vocabulary, read_vocabulary

Found = TypeVar("Found")


@dataclass(frozen=True)
class InspectedTensor:
    """A vocabulary tensor. why: what tells that it is one. same_as: one with the same bytes."""

    name: str
    role: str
    why: str
    dtype: str
    shape: tuple[int, ...]
    same_as: str | None


@dataclass(frozen=True)
class InspectedTokenizer:
    """A tokenizer. file: the one read. size: its largest id + 1. special: tokens that stand for no
    text, by id. roles: ids by role."""

    file: str
    kind: str
    tokens: int
    size: int
    special: Mapping[int, str]
    roles: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """A model directory, as far as headers and small files tell.

    bytes: of its shards. dtypes: elements by dtype. quantisation: its method, of config.json.
    tied: whether the head is the input embeddings; None if that can't be known.
    config_sizes: the sizes of vocabularies in config.json, by key.
    as_source, as_helper: what would stop a conversion; None if nothing would.
    """

    model: str
    model_type: str | None
    architectures: tuple[str, ...]
    parameters: int
    bytes: int
    shards: int
    dtypes: Mapping[str, int]
    quantisation: str | None
    vocabulary_tensors: tuple[InspectedTensor, ...]
    tied: bool | None
    config_sizes: Mapping[str, int]
    tokenizer: InspectedTokenizer | None
    as_source: str | None
    as_helper: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        return asdict(self)


def inspect(model: str | Path, progress: Progress | None = None) -> Inspection:
    """Look at a model: a directory, or as str the id of a model on the Hub, of which only headers
    and small files are fetched.

    Raises CheckpointError if it can't be opened at all; what else is wrong is in the result.
    """
    checkpoint = open_headers(model, progress or Progress())
    here = all(shard.data_start for shard in checkpoint.shards)
    found, no_tensors = _attempt(lambda: embeddings_and_all(checkpoint))
    table, tensors = found or (None, None)
    no_table = None
    if table is None:
        table, no_table = _attempt(lambda: input_embeddings(checkpoint))
    vocabulary, no_vocabulary = _attempt(lambda: read_vocabulary(checkpoint.directory))
    behind = None
    if table is not None and vocabulary is not None:
        _, behind = _attempt(lambda: check_helper(table, vocabulary))
    unfit = None
    if tensors is not None and vocabulary is not None:
        _, unfit = _attempt(lambda: check_source(tensors, vocabulary))
    tied = is_tied(tensors) if tensors and here else None
    _, no_config = _attempt(lambda: check_configs(checkpoint))
    config = checkpoint.config
    architectures = config.get("architectures")
    quantisation = config.get("quantization_config")
    dtypes: Counter[str] = Counter()
    for span in checkpoint.tensors:
        dtypes[span.dtype] += prod(span.shape)
    return Inspection(
        model=model_name(checkpoint.directory),
        model_type=config.get("model_type"),
        architectures=tuple(map(str, architectures if isinstance(architectures, list) else ())),
        parameters=dtypes.total(),
        bytes=sum(shard.size for shard in checkpoint.shards),
        shards=len(checkpoint.shards),
        dtypes=dict(dtypes.most_common()),
        quantisation=quantisation.get("quant_method") if isinstance(quantisation, dict) else None,
        vocabulary_tensors=_inspected(tensors or (), here),
        tied=tied,
        config_sizes={".".join((*s.path, s.key)): s.value for s in sizes_in(config)},
        tokenizer=None if vocabulary is None else _tokenizer(vocabulary),
        as_source=no_config or no_tensors or no_vocabulary or unfit,
        as_helper=no_table or no_vocabulary or behind,
        warnings=() if vocabulary is None else _warnings(config, tensors or (), tied, vocabulary),
    )


def _attempt(step: Callable[[], Found]) -> tuple[Found | None, str | None]:
    try:
        return step(), None
    except ClpstreamError as error:
        return None, str(error)


def _inspected(tensors: tuple[VocabularyTensor, ...], here: bool) -> tuple[InspectedTensor, ...]:
    return tuple(
        InspectedTensor(
            tensor.name,
            tensor.role,
            tensor.why,
            tensor.span.dtype,
            tensor.span.shape,
            next((t.name for t in tensors[:place] if here and same_bytes(t, tensor)), None),
        )
        for place, tensor in enumerate(tensors)
    )


def _tokenizer(vocabulary: Vocabulary) -> InspectedTokenizer:
    special = (t for t, text in enumerate(vocabulary.text) if text is None)
    return InspectedTokenizer(
        file=vocabulary.path.name,
        kind=vocabulary.kind,
        tokens=len(vocabulary),
        size=vocabulary.size,
        special={t: vocabulary.describe(t) for t in special if vocabulary.pieces[t] is not None},
        roles=vocabulary.roles,
    )


def _warnings(
    config: Mapping[str, Any],
    tensors: tuple[VocabularyTensor, ...],
    tied: bool | None,
    vocabulary: Vocabulary,
) -> tuple[str, ...]:
    found = [*vocabulary.notes, *absent_roles(vocabulary)]
    rows = min((tensor.rows for tensor in tensors), default=vocabulary.size)
    if vocabulary.size > rows:
        found.append(
            f"token ids from {rows} to {vocabulary.size - 1} have no row; as a source, they are "
            "not shared"
        )
    flag = config.get("tie_word_embeddings")
    if tied is not None and isinstance(flag, bool) and flag != tied:
        found.append(
            f"config.json says tie_word_embeddings {str(flag).lower()}, the tensors say otherwise"
        )
    return tuple(found)
