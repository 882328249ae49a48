"""A directory on disk -> spans, rows, and which tensors are vocabulary tensors."""

from clpstream.checkpoint.directory import (
    INDEX_FILE,
    WEIGHTS,
    Checkpoint,
    fingerprint,
    open_checkpoint,
    shard_names,
)
from clpstream.checkpoint.dtypes import encode
from clpstream.checkpoint.rows import TensorRows
from clpstream.checkpoint.safetensors_file import Shard, TensorSpan, header_bytes, read_shard
from clpstream.checkpoint.vocabulary_tensors import (
    VocabularyTensor,
    find_vocabulary_tensors,
    input_embeddings,
    input_embeddings_name,
    is_tied,
    known_vocabulary_tensors,
    vocabulary_role,
)

__all__ = [
    "INDEX_FILE",
    "WEIGHTS",
    "Checkpoint",
    "Shard",
    "TensorRows",
    "TensorSpan",
    "VocabularyTensor",
    "encode",
    "find_vocabulary_tensors",
    "fingerprint",
    "header_bytes",
    "input_embeddings",
    "input_embeddings_name",
    "is_tied",
    "known_vocabulary_tensors",
    "open_checkpoint",
    "read_shard",
    "shard_names",
    "vocabulary_role",
]
