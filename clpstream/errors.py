"""The errors that a user's input can cause. Each message says what is wrong, where, what to do."""

from __future__ import annotations

from pathlib import Path


class ClpstreamError(Exception):
    """Base of every error that clpstream raises on purpose; the command line exits with 2."""


class CheckpointError(ClpstreamError):
    """A checkpoint directory, shard, index or tensor that can't be used."""


class VocabularyError(ClpstreamError):
    """A tokenizer that can't be read, or two vocabularies that have nothing in common."""


class TransferError(ClpstreamError):
    """Rows that can't be made: bad parameters, or values that are not finite."""


class NotFiniteError(TransferError):
    """What can't be computed with in row `row` of a tensor; `token` is set once it is known whose
    row it is."""

    def __init__(
        self, where: str, row: int, what: str = "NaN or Inf", token: str | None = None
    ) -> None:
        whose = "" if token is None else f" (token {token})"
        super().__init__(
            f"{where}: row {row}{whose} has {what}, and it is needed; repair the checkpoint"
        )
        self.where, self.row, self.what = where, row, what


class ScoringError(ClpstreamError):
    """A model or a text that can't be scored, or torch and transformers that are not there."""


class DeviceError(ClpstreamError):
    """A GPU that is not there, that no library can use, or that has too little memory."""


class OutputError(ClpstreamError):
    """A target directory that can't be written."""


def check_list(name: str, given: object, of: str, error: type[ClpstreamError]) -> None:
    """Refuse a single one where several are asked for, which Python would take letter by letter."""
    if isinstance(given, str | Path):
        raise error(f"{name}: give a list of {of}, not a {type(given).__name__}")
