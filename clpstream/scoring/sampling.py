"""Text that a language model makes up: something to score on where there is no text."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clpstream.checkpoint import open_checkpoint
from clpstream.errors import ScoringError
from clpstream.hub import local_directory
from clpstream.inputs import read_json_if_there
from clpstream.output.report import REPORT_FILE
from clpstream.progress import Progress
from clpstream.scoring.language_model import Dtype, LanguageModel, load
from clpstream.scoring.libraries import import_torch, import_transformers, quiet
from clpstream.vocabulary import Vocabulary, read_vocabulary

_AT_ONCE = 16
_LONGEST = 1024


def sample_documents(
    model: str | Path,
    tokens: int = 20_000,
    seed: int = 0,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> list[str]:
    """Documents of about `tokens` tokens together, drawn from a causal language model.

    Each begins after the bos token and ends at the eos token, or when it is as long as the model's
    context (1024 tokens at most). Tokens are drawn from the model's whole distribution, at
    temperature 1, so that the text is what the model takes for its language; what the model's
    generation_config.json says is not used. Bytes that are no UTF-8 are left out. The same seed,
    from 0 to 2**64 - 1, gives the same text on the same machine.

    Raises a ClpstreamError for a number out of range, and if the model can't be loaded or begins no
    text.
    """
    if tokens < 1:
        raise ScoringError("the number of tokens to sample has to be 1 or more")
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise ScoringError(f"seed is {seed!r}; it must be a number from 0 to 2**64 - 1")
    import_transformers()  # before anything is fetched
    progress = progress or Progress()
    directory = local_directory(model, "source", progress)
    open_checkpoint(directory)  # says better than transformers what is wrong with its shards
    with quiet():
        vocabulary = read_vocabulary(directory)
        loaded = load(directory, dtype, device)
        drawn = _draw(loaded, vocabulary, tokens, seed, progress)
        del loaded
        gc.collect()
    documents = [text for ids in drawn if (text := _text(vocabulary, ids).strip("\r\n"))]
    if not documents:
        raise ScoringError(f"{directory}: no text comes from it; sample from another model")
    return documents


def helper_of(model: str | Path) -> str | None:
    """The name of the helper whose vocabulary a model has, if clpstream made the model here."""
    made = read_json_if_there(Path(model) / REPORT_FILE)
    helper = made.get("helper")
    return str(helper["name"]) if isinstance(helper, dict) and "name" in helper else None


def _draw(
    model: LanguageModel, vocabulary: Vocabulary, tokens: int, seed: int, progress: Progress
) -> list[list[int]]:
    """Ids of documents, `tokens` of them together or as few more as the last document has."""
    torch = import_torch()
    eos = vocabulary.roles.get("eos")
    first = vocabulary.roles.get("bos", eos)
    if first is None or first >= model.rows:
        raise ScoringError(
            f"{vocabulary.path}: no bos and no eos token for a text to begin with; sample from "
            "another model"
        )
    found: list[list[int]] = []
    count = 0
    begin = torch.full((_AT_ONCE, 1), first, device=model.model.device)
    devices = [model.model.device] if model.device == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(),
        progress.task("sampling", tokens, "tokens") as update,
    ):
        torch.manual_seed(seed)
        while count < tokens:
            drawn = _generate(model, begin, eos)
            for row in drawn[:, 1:].tolist():
                ids = row[: row.index(eos)] if eos in row else row
                if count < tokens:
                    found.append(ids)
                    update(min(len(ids) + 1, tokens - count))
                count += len(ids) + 1
    return found


def _generate(model: LanguageModel, begin: Any, eos: int | None) -> Any:
    """One batch of documents with their first token: int64 [documents, length]."""
    plain = import_transformers().GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_beams=1,
        max_length=min(model.positions or _LONGEST, _LONGEST),
        eos_token_id=eos,
        pad_token_id=eos,
    )
    model.model.generation_config = plain  # or what the model's own says would fill the gaps
    return model.model.generate(begin, generation_config=plain)


def _text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    texts = (vocabulary.text[token] if token < vocabulary.size else None for token in ids)
    return b"".join(text or b"" for text in texts).decode(errors="ignore")
