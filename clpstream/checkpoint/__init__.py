"""A directory on disk -> spans, rows, and which tensors are vocabulary tensors."""

from clpstream.checkpoint.directory import (
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS,
    Checkpoint,
    fingerprint,
    open_checkpoint,
    shard_names,
)
from clpstream.checkpoint.dtypes import FLOATS
from clpstream.checkpoint.names import HASHED, VOCABULARY_SIZE, vocabulary_role
from clpstream.checkpoint.read_ahead import read_ahead
from clpstream.checkpoint.rows import TensorRows
from clpstream.checkpoint.safetensors_file import Shard, TensorSpan, header_bytes, read_shard
from clpstream.checkpoint.sizes import is_near, sizes_in, stated_sizes, vocabulary_size
from clpstream.checkpoint.strided import c_order_blocks
from clpstream.checkpoint.vocabulary_tensors import (
    VocabularyTensor,
    embeddings_and_all,
    find_vocabulary_tensors,
    helper_tables_names,
    input_embeddings,
    input_embeddings_names,
    is_tied,
    own_head,
    same_bytes,
    unread_heads,
)

__all__ = [
    "FLOATS",
    "HASHED",
    "INDEX_FILE",
    "SINGLE_FILE",
    "VOCABULARY_SIZE",
    "WEIGHTS",
    "Checkpoint",
    "Shard",
    "TensorRows",
    "TensorSpan",
    "VocabularyTensor",
    "c_order_blocks",
    "embeddings_and_all",
    "find_vocabulary_tensors",
    "fingerprint",
    "header_bytes",
    "helper_tables_names",
    "input_embeddings",
    "input_embeddings_names",
    "is_near",
    "is_tied",
    "open_checkpoint",
    "own_head",
    "read_ahead",
    "read_shard",
    "same_bytes",
    "shard_names",
    "sizes_in",
    "stated_sizes",
    "unread_heads",
    "vocabulary_role",
    "vocabulary_size",
]
