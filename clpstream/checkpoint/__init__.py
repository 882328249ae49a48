"""A directory on disk -> spans, rows, and which tensors are vocabulary tensors."""

from clpstream.checkpoint.directory import INDEX_FILE, Checkpoint, fingerprint, open_checkpoint
from clpstream.checkpoint.dtypes import encode
from clpstream.checkpoint.rows import TensorRows
from clpstream.checkpoint.safetensors_file import Shard, TensorSpan, header_bytes, read_shard
from clpstream.checkpoint.strided import c_order_blocks
from clpstream.checkpoint.vocabulary_tensors import (
    VocabularyTensor,
    find_vocabulary_tensors,
    input_embeddings,
    is_tied,
    known_vocabulary_tensors,
    vocabulary_role,
)

__all__ = [
    "INDEX_FILE",
    "Checkpoint",
    "Shard",
    "TensorRows",
    "TensorSpan",
    "VocabularyTensor",
    "c_order_blocks",
    "encode",
    "find_vocabulary_tensors",
    "fingerprint",
    "header_bytes",
    "input_embeddings",
    "is_tied",
    "known_vocabulary_tensors",
    "open_checkpoint",
    "read_shard",
    "vocabulary_role",
]
