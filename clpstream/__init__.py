"""clpstream: give a language model a new vocabulary, without loading the model.

    import clpstream

    result = clpstream.convert("source", "helper", "target")
    print(result.report.counts)

The pieces are usable on their own: `open_checkpoint`, `read_vocabulary`, `match`, and the methods,
such as `Clp` and `Knn`, which work on numpy arrays. Names are imported when they are first used, so
that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clpstream.version import __version__

if TYPE_CHECKING:
    from clpstream.checkpoint import Checkpoint as Checkpoint
    from clpstream.checkpoint import Shard as Shard
    from clpstream.checkpoint import TensorRows as TensorRows
    from clpstream.checkpoint import TensorSpan as TensorSpan
    from clpstream.checkpoint import VocabularyTensor as VocabularyTensor
    from clpstream.checkpoint import find_vocabulary_tensors as find_vocabulary_tensors
    from clpstream.checkpoint import open_checkpoint as open_checkpoint
    from clpstream.checkpoint import read_shard as read_shard
    from clpstream.conversion import Conversion as Conversion
    from clpstream.conversion import convert as convert
    from clpstream.errors import CheckpointError as CheckpointError
    from clpstream.errors import ClpstreamError as ClpstreamError
    from clpstream.errors import DeviceError as DeviceError
    from clpstream.errors import OutputError as OutputError
    from clpstream.errors import ScoringError as ScoringError
    from clpstream.errors import TransferError as TransferError
    from clpstream.errors import VocabularyError as VocabularyError
    from clpstream.evaluation import Evaluation as Evaluation
    from clpstream.evaluation import evaluate as evaluate
    from clpstream.inspection import Inspection as Inspection
    from clpstream.inspection import inspect as inspect
    from clpstream.output.report import Report as Report
    from clpstream.progress import Progress as Progress
    from clpstream.scoring import Difference as Difference
    from clpstream.scoring import Score as Score
    from clpstream.scoring import read_documents as read_documents
    from clpstream.scoring import sample_documents as sample_documents
    from clpstream.scoring import score as score
    from clpstream.scoring import score_difference as score_difference
    from clpstream.transfer import Align as Align
    from clpstream.transfer import Clp as Clp
    from clpstream.transfer import Knn as Knn
    from clpstream.transfer import Mean as Mean
    from clpstream.transfer import Omp as Omp
    from clpstream.transfer import Procrustes as Procrustes
    from clpstream.transfer import Random as Random
    from clpstream.transfer import Ridge as Ridge
    from clpstream.transfer import Subword as Subword
    from clpstream.vocabulary import Overlap as Overlap
    from clpstream.vocabulary import Vocabulary as Vocabulary
    from clpstream.vocabulary import match as match
    from clpstream.vocabulary import read_vocabulary as read_vocabulary

_HOMES = {
    "checkpoint": (
        "Checkpoint Shard TensorRows TensorSpan VocabularyTensor find_vocabulary_tensors "
        "open_checkpoint read_shard"
    ),
    "conversion": "Conversion convert",
    "errors": (
        "CheckpointError ClpstreamError DeviceError OutputError ScoringError TransferError "
        "VocabularyError"
    ),
    "evaluation": "Evaluation evaluate",
    "inspection": "Inspection inspect",
    "output.report": "Report",
    "progress": "Progress",
    "scoring": "Difference Score read_documents sample_documents score score_difference",
    "transfer": "Align Clp Knn Mean Omp Procrustes Random Ridge Subword",
    "vocabulary": "Overlap Vocabulary match read_vocabulary",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
