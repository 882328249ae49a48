"""What a conversion did, or would do: the content of clpstream.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clpstream.transfer import SearchReport

REPORT_FILE = "clpstream.json"


@dataclass(frozen=True)
class Input:
    """A checkpoint that was read.

    name: of its directory, or for a model of the Hub ID@COMMIT. fingerprint: SHA-256 of its config,
    and of every opened shard's name, size, header and first and last 64 KiB of data. tokenizer:
    SHA-256 of its tokenizer's file. tokens: in its vocabulary. parameters: elements of the tensors
    in opened shards. bytes: of these shards. shards: how many were opened, of_shards: of how many;
    of a helper those with its input embeddings and its output head.
    """

    name: str
    model_type: str | None
    fingerprint: str
    tokenizer: str
    tokens: int
    parameters: int
    bytes: int
    shards: int
    of_shards: int


@dataclass(frozen=True)
class TargetTokenizer:
    """The target's tokenizer: the helper's if no other was given.

    name: as of an Input. sha256: of its file. tokens: in its vocabulary.
    """

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Counts:
    """Target tokens: how many there are, and where their rows come from.

    shared: those that the source has too. Of these, copied: with the source's rows; remade: with
    rows by the method, since source and helper don't agree on them; None in a dry run, which does
    not look. missing: made by the method. split: made from the source tokens
    that they split into. unknown: the mean row. unused: ids that no token has.
    anchors: tokens that source and helper share, from which the missing ones are made.
    rules: shared tokens by the rule that matched them. guarded: missing tokens whose row the
    method's formula did not make, by the reason why. not_carried: source tokens that the target
    does not have.
    """

    target: int
    shared: int
    copied: int | None
    remade: int | None
    missing: int
    split: int
    unknown: int
    unused: int
    anchors: int
    not_carried: int
    rules: Mapping[str, int]
    guarded: Mapping[str, int]


@dataclass(frozen=True)
class Sharing:
    """Shared tokens that are words, where not all of them are copied.

    threshold: with this cosine or more, between its row in the source and its row in the helper
    turned into the source's space by the other tokens, a token was copied; None if none was.
    remade: the first of those that were not.
    """

    threshold: float | None
    remade: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The method that "auto" stands for. mrr: by which it was chosen, by method; the mean
    reciprocal rank of hidden tokens' rows, see `clpstream.evaluate`."""

    method: str
    options: Mapping[str, Any]
    mrr: Mapping[str, float]


@dataclass(frozen=True)
class RewrittenTensor:
    """A vocabulary tensor, with its shape before and after. why: what tells that it is one."""

    name: str
    role: str
    why: str
    dtype: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]


@dataclass(frozen=True)
class PassThrough:
    """The tensors that did not change."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class SpecialToken:
    """A special token of the target, its roles, and where its row comes from."""

    id: int
    token: str
    roles: tuple[str, ...]
    row: str


@dataclass(frozen=True)
class Word:
    """A frequent word of the source, and the cosine of its row with a new one, less their mean."""

    token: str
    cosine: float


@dataclass(frozen=True)
class Example:
    """A missing token, and the words of the source whose input embeddings are nearest to it."""

    id: int
    token: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Report:
    """Everything that clpstream.json holds. The same inputs and options give the same report.

    device: "cpu", or the GPU that was used, and by what. helper: None if the method did not read
    it. sharing: None if shared tokens were copied whatever their rows are, and of a dry run, which
    reads none. chosen: None if the method was named, and of a dry run.
    search: by the helper's table ("input", "head") how its nearest rows were found; empty if all
    were compared.
    """

    versions: Mapping[str, str]
    device: str
    options: Mapping[str, Any]
    source: Input
    helper: Input | None
    tokenizer: TargetTokenizer
    tied: bool
    chosen: Chosen | None
    sharing: Sharing | None
    counts: Counts
    search: Mapping[str, SearchReport]
    vocabulary_tensors: tuple[RewrittenTensor, ...]
    pass_through: PassThrough
    special_tokens: tuple[SpecialToken, ...]
    files: tuple[str, ...]
    left_behind: tuple[str, ...]
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def versions() -> dict[str, str]:
    """Versions of clpstream and of the libraries that the rows' values depend on."""
    import faiss
    import ml_dtypes
    import numpy as np

    from clpstream.version import __version__

    modules = {"numpy": np, "faiss": faiss, "ml_dtypes": ml_dtypes}
    return {"clpstream": __version__} | {
        name: module.__version__ for name, module in modules.items()
    }
