"""Bits per byte of a text under a model, and the difference between two models."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import open_checkpoint
from clpstream.errors import ScoringError, check_list
from clpstream.hub import local_directory, model_name
from clpstream.memory import peak_memory
from clpstream.progress import Progress
from clpstream.scoring.documents import BLOCK_BYTES, block_edges, cut
from clpstream.scoring.intervals import FEW_BLOCKS, Interval, interval
from clpstream.scoring.language_model import Dtype, load
from clpstream.scoring.libraries import import_torch, import_transformers, quiet
from clpstream.scoring.token_bits import token_bits
from clpstream.scoring.tokens import Encoder, Tokens

_LONGEST_CONTEXT = 1024


@dataclass(frozen=True)
class Score:
    """What a text costs a model.

    bits_per_byte: the negative log-likelihood of its tokens in bits, per byte of its UTF-8.
    interval: 95 % confidence interval of it; None if the text is a single block.
    blocks: (bits, bytes) of each block of about 4096 bytes, in the order of the text.
    context, stride: tokens of a window, and by how many windows advance. dtype: of the weights.
    seconds: loading included. peak_memory: bytes; on a GPU, of the GPU's memory.
    warnings: why the number may mislead, a sentence each.
    """

    model: str
    bits_per_byte: float
    interval: Interval | None
    bytes: int
    tokens: int
    documents: int
    blocks: tuple[tuple[float, int], ...]
    context: int
    stride: int
    dtype: str
    device: str
    seconds: float
    peak_memory: int
    warnings: tuple[str, ...]

    @property
    def bytes_per_token(self) -> float:
        """How much text a token of its vocabulary stands for on average."""
        return self.bytes / max(self.tokens, 1)

    def to_json(self) -> dict[str, Any]:
        """The score as JSON values, with the number of blocks in place of the blocks."""
        return {
            **vars(self),
            "interval": None if self.interval is None else self.interval._asdict(),
            "bytes_per_token": self.bytes_per_token,
            "blocks": len(self.blocks),
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Difference:
    """By how many bits per byte the second model is worse than the first (negative: better).

    interval: 95 % confidence interval, by blocks of text that both scored; None for one block.
    """

    bits_per_byte: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "interval": None if self.interval is None else self.interval._asdict(),
        }


def score(
    model: str | Path,
    texts: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Score:
    """How many bits a byte of some texts costs a causal language model.

    model: a directory in Hugging Face layout, or as str the id of a model on the Hub.
    texts: documents (`clpstream.read_documents` reads files). The model sees each on its own, after
    its bos token (or eos, if it has no bos).
    context: tokens that the model sees at most; by default what it is made for, but no more than
    1024. stride: by how many tokens windows advance in longer documents, half the context by
    default: then every token is predicted from half a context or more, but for the first ones.
    dtype: of weights and computation; "auto" is the checkpoint's. The loss is in float32.
    device: "cpu"; "cuda" or "cuda:N", a GPU; "auto", a GPU if torch sees one.

    Raises a ClpstreamError that says what is wrong and what to do.
    """
    begin = time.monotonic()
    check_list("texts", texts, "documents", ScoringError)
    documents = [part for text in texts if text for part in cut(text)]
    if not documents:
        raise ScoringError("no text to score")
    import_transformers()  # before anything is fetched
    progress = progress or Progress()
    directory = local_directory(model, "source", progress)
    open_checkpoint(directory)  # says better than transformers what is wrong with its shards
    _forget_peak()
    with quiet(), _saying_what_is_full():
        encoder = Encoder(directory)
        tokens = _encode(encoder, documents, progress)
        loaded = load(directory, dtype, device)
        _check_rows(encoder, tokens, loaded.rows)
        context, stride = _window(context, stride, loaded.positions, directory)
        ids = [some.ids for some in tokens]
        bits = token_bits(loaded, ids, encoder.first, context, stride, progress)
        where, kind, peak = loaded.device, loaded.dtype, _peak(loaded.device)
        del loaded
        _release()
    blocks = _blocks(bits, tokens)
    total = float(blocks[:, 0].sum())
    if not np.isfinite(total):
        raise ScoringError(
            f"{directory}: the model gives NaN or Inf; its weights may be damaged, or {kind} too "
            "narrow: try --dtype float32"
        )
    sizes = blocks[:, 1].astype(np.int64)
    return Score(
        model=model_name(directory),
        bits_per_byte=total / int(sizes.sum()),
        interval=interval(blocks[:, 0], sizes),
        bytes=int(sizes.sum()),
        tokens=sum(map(len, ids)),
        documents=len(documents),
        blocks=tuple(zip(blocks[:, 0].tolist(), sizes.tolist(), strict=True)),
        context=context,
        stride=stride,
        dtype=kind,
        device=where,
        seconds=time.monotonic() - begin,
        peak_memory=peak,
        warnings=_warnings(encoder, tokens, len(blocks)),
    )


def score_difference(first: Score, second: Score) -> Difference:
    """The second score minus the first. Raises ScoringError if they are not of the same text."""
    (one, sizes), (other, same) = (zip(*found.blocks, strict=True) for found in (first, second))
    if sizes != same:
        raise ScoringError("scores of different texts can't be compared")
    more = np.subtract(other, one)
    size = np.asarray(sizes, np.int64)
    return Difference(float(more.sum() / size.sum()), interval(more, size))


def _encode(encoder: Encoder, documents: Sequence[str], progress: Progress) -> list[Tokens]:
    found = []
    with progress.task("tokenizing", len(documents), "documents") as update:
        for document in documents:
            found.append(encoder(document))
            update(1)
    return found


def _check_rows(encoder: Encoder, tokens: Sequence[Tokens], rows: int) -> None:
    ids = [encoder.first or 0, *(int(some.ids.max()) for some in tokens if len(some.ids))]
    if max(ids) >= rows:
        raise ScoringError(
            f"{encoder.vocabulary.path}: the text has token {max(ids)}, and the model has only "
            f"{rows} rows; the tokenizer does not belong to it"
        )


def _window(
    context: int | None, stride: int | None, positions: int | None, directory: Path
) -> tuple[int, int]:
    if context is None:
        context = min(positions or _LONGEST_CONTEXT, _LONGEST_CONTEXT)
    elif positions is not None and context > positions:
        raise ScoringError(
            f"{directory}: it is made for {positions} tokens; use a --context of that"
        )
    if context < 2:
        raise ScoringError("the context has to be 2 tokens or more")
    if stride is None:
        stride = context // 2
    if not 1 <= stride < context:
        raise ScoringError(f"the stride has to be from 1 to {context - 1}, below the context")
    return context, stride


def _blocks(
    bits: Sequence[npt.NDArray[np.float64]], tokens: Sequence[Tokens]
) -> npt.NDArray[np.float64]:
    """(bits, bytes) of each block: float64 [blocks, 2].

    The bits of a token that is in two blocks are shared out by its bytes.
    """
    found = []
    for some, of_each in zip(tokens, bits, strict=True):
        edges = block_edges(some.size)
        read, spent = np.append(0, some.ends), np.append(0.0, np.cumsum(of_each))
        found.append(np.column_stack([np.diff(np.interp(edges, read, spent)), np.diff(edges)]))
    return np.concatenate(found)


def _warnings(encoder: Encoder, tokens: Sequence[Tokens], blocks: int) -> tuple[str, ...]:
    found = []
    unknown, changed = sum(some.unknown for some in tokens), sum(not some.kept for some in tokens)
    if changed:
        found.append(
            f"{unknown:,} tokens are unknown, and {changed:,} of {len(tokens):,} documents do not "
            "come back from their tokens byte for byte: bits per byte are too good"
        )
    if encoder.first is None:
        found.append(
            "the model has neither a bos nor an eos token: the first token of a document counts as "
            "a plain guess"
        )
    if blocks < FEW_BLOCKS:
        found.append(
            f"the text is {blocks} block{'s'[: blocks != 1]} of about {BLOCK_BYTES:,} bytes, or "
            "less: too little to trust an interval"
        )
    return tuple(found)


@contextlib.contextmanager
def _saying_what_is_full() -> Iterator[None]:
    try:
        yield
    except import_torch().cuda.OutOfMemoryError:
        raise ScoringError(
            "the GPU's memory is too small for the model; use --device cpu, or a shorter --context"
        ) from None


def _peak(device: str) -> int:
    cuda = import_torch().cuda
    if device != "cuda":
        return peak_memory()
    return max(int(cuda.max_memory_allocated(gpu)) for gpu in range(cuda.device_count()))


def _forget_peak() -> None:
    """Let the peak of memory count from here, so that a second model has its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    cuda = import_torch().cuda
    for gpu in range(cuda.device_count()):
        cuda.reset_peak_memory_stats(gpu)


def _release() -> None:
    """Free what a model left behind; weights in reference cycles stay otherwise."""
    gc.collect()
    import_torch().cuda.empty_cache()
