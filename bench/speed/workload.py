"""Build a workload: a source and a helper of any shape, the same ones every time.

The source is a whole llama, the helper a whole GPT-2; both load in transformers. Their vocabulary
tensors are structured (embeddings.py), all others hold the same few random values again and again.
Tensors are written block by block, so that building takes little memory.

    python bench/speed/workload.py DIR --source-rows 50000 --width 1024 --body-bytes 300M

writes DIR/source and DIR/helper. With real tokenizers, and a 671B model's shape (its body a hole,
which takes no disk):

    python bench/speed/workload.py DIR --source-tokenizer DIR --helper-tokenizer DIR
    python bench/speed/workload.py DIR --source-rows 129280 --width 7168 --intermediate 150000 \\
        --body-bytes 1300G --shards 163 --sparse
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import vocabularies
from embeddings import LATENTS, table_blocks
from sizes import size

from clpstream.checkpoint.safetensors_file import header_bytes
from clpstream.vocabulary import Vocabulary, match, read_vocabulary

DTYPES = {
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype("f2")),
    "float32": ("F32", np.dtype("f4")),
}
FALSE_FRIENDS = 0.25
"""The part of the shared words that mean something else in the helper."""
_FILLER_VALUES = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. rows: float32 blocks of it; None for one whose values don't matter."""

    name: str
    shape: tuple[int, ...]
    rows: Iterable[np.ndarray] | None = None


def main() -> None:
    args = parse_args()
    source, helper = args.directory / "source", args.directory / "helper"
    source.mkdir(parents=True)
    helper.mkdir()
    if args.source_tokenizer and args.helper_tokenizer:
        vocabularies.copy(args.source_tokenizer, source)
        vocabularies.copy(args.helper_tokenizer, helper)
    else:
        sizes = (args.source_rows or 32_000, args.helper_rows or 16_000)
        vocabularies.generate(source, helper, sizes, args.overlap)
    words = read_vocabulary(source), read_vocabulary(helper)
    source_rows, helper_rows = args.source_rows or words[0].size, args.helper_rows or words[1].size
    for rows, vocabulary in ((source_rows, words[0]), (helper_rows, words[1])):
        if rows < vocabulary.size:
            raise SystemExit(f"{rows} rows are too few for {vocabulary.size} tokens")
    concepts = np.arange(source_rows), helper_concepts(*words, source_rows, helper_rows)
    write_llama(source, args, concepts[0], words[0])
    write_gpt2(helper, args, concepts[1], words[1])


def helper_concepts(
    source: Vocabulary, helper: Vocabulary, source_rows: int, helper_rows: int
) -> np.ndarray:
    """What the helper's rows stand for: shared tokens for what they are in the source, others for
    concepts of their own. So do some of the shared words, as "die" of English and German does."""
    concepts = source_rows + np.arange(helper_rows)
    found = match(source, helper).source_of
    alike = np.random.default_rng(0).random(len(found)) >= FALSE_FRIENDS
    alike |= [not helper.is_word(token) for token in range(helper.size)]
    shared = np.flatnonzero((found >= 0) & alike)
    concepts[shared] = found[shared]
    return concepts


def write_llama(
    directory: Path, args: argparse.Namespace, concepts: np.ndarray, words: Vocabulary
) -> None:
    """The source; as many layers as come closest to --body-bytes."""
    width, inner, rows = args.width, args.intermediate or 4 * args.width, len(concepts)
    latents = min(LATENTS, width, args.helper_width)
    shapes = {
        "input_layernorm": (width,),
        **{f"self_attn.{part}_proj": (width, width) for part in "qkvo"},
        "post_attention_layernorm": (width,),
        **{f"mlp.{part}_proj": (inner, width) for part in ("gate", "up")},
        "mlp.down_proj": (width, inner),
    }
    layer_bytes = DTYPES[args.dtype][1].itemsize * sum(map(math.prod, shapes.values()))
    layers = max(1, round(args.body_bytes / layer_bytes))
    table = table_blocks(concepts, width, latents, args.seed)
    tensors = [Tensor("model.embed_tokens.weight", (rows, width), table)]
    for layer in range(layers):
        tensors += [
            Tensor(f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items()
        ]
    tensors.append(Tensor("model.norm.weight", (width,)))
    if not args.tied:
        table = table_blocks(concepts, width, latents, args.seed + 1)
        tensors.append(Tensor("lm_head.weight", (rows, width), table))
    write_checkpoint(directory, tensors, args.dtype, args.shards, args.sparse)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads(width),
        "num_key_value_heads": heads(width),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "tie_word_embeddings": args.tied,
    }
    write_config(directory, config, args.dtype, rows, words)


def write_gpt2(
    directory: Path, args: argparse.Namespace, concepts: np.ndarray, words: Vocabulary
) -> None:
    """The helper: one layer, since nothing but its embeddings is read."""
    width, rows, positions = args.helper_width, len(concepts), 64
    latents = min(LATENTS, width, args.width)
    table = table_blocks(concepts, width, latents, args.seed + 2)
    linear = {"attn.c_attn": 3 * width, "attn.c_proj": width, "mlp.c_fc": 4 * width}
    tensors = [
        Tensor("transformer.wte.weight", (rows, width), table),
        Tensor("transformer.wpe.weight", (positions, width)),
    ]
    for part, outputs in linear.items():
        tensors.append(Tensor(f"transformer.h.0.{part}.weight", (width, outputs)))
        tensors.append(Tensor(f"transformer.h.0.{part}.bias", (outputs,)))
    tensors.append(Tensor("transformer.h.0.mlp.c_proj.weight", (4 * width, width)))
    tensors.append(Tensor("transformer.h.0.mlp.c_proj.bias", (width,)))
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors += [Tensor(f"transformer.{norm}.{kind}", (width,)) for kind in ("weight", "bias")]
    write_checkpoint(directory, tensors, args.helper_dtype, 1, sparse=False)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": 1,
        "n_head": heads(width),
        "n_positions": positions,
        "tie_word_embeddings": True,
    }
    write_config(directory, config, args.helper_dtype, rows, words)


def heads(width: int) -> int:
    """Attention heads of 64 columns, where that goes."""
    return width // 64 if width % 64 == 0 else 1


def write_config(
    directory: Path, config: dict[str, Any], dtype: str, rows: int, words: Vocabulary
) -> None:
    ids = {f"{role}_token_id": words.roles.get(role) for role in ("bos", "eos")}
    write_json(directory / "config.json", {**config, **ids, "vocab_size": rows, "dtype": dtype})


# --- safetensors -------------------------------------------------------------------------------


def write_checkpoint(
    directory: Path, tensors: list[Tensor], dtype: str, shards: int, sparse: bool
) -> None:
    """Write the tensors in their order into about equal files, with an index if there are several.

    sparse: leave holes for tensors whose values don't matter.
    """
    itemsize = DTYPES[dtype][1].itemsize
    sizes = [itemsize * math.prod(tensor.shape) for tensor in tensors]
    total, shards = sum(sizes), min(shards, len(tensors))
    ends = np.cumsum(sizes)
    parts = np.minimum((ends - 1) * shards // total, shards - 1)
    used, parts = np.unique(parts, return_inverse=True)
    weight_map = {}
    for part in range(len(used)):
        name = f"model-{part + 1:05}-of-{len(used):05}.safetensors"
        name = name if len(used) > 1 else "model.safetensors"
        chosen = [tensors[place] for place in np.flatnonzero(parts == part)]
        with (directory / name).open("wb") as file:
            write_tensors(file, chosen, dtype, sparse)
        weight_map |= {tensor.name: name for tensor in chosen}
    if len(used) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_tensors(file: BinaryIO, tensors: list[Tensor], dtype: str, sparse: bool) -> None:
    code, kind = DTYPES[dtype]
    lengths = [kind.itemsize * math.prod(tensor.shape) for tensor in tensors]
    described = [(t.name, code, t.shape, n) for t, n in zip(tensors, lengths, strict=True)]
    file.write(header_bytes(described, {"format": "pt"}))
    filler = np.random.default_rng(0).standard_normal(_FILLER_VALUES, np.float32) * 0.02
    filled = filler.astype(kind).tobytes()
    for tensor, length in zip(tensors, lengths, strict=True):
        if tensor.rows is not None:
            for block in tensor.rows:
                file.write(block.astype(kind).tobytes())
        elif sparse:
            file.seek(length, 1)
        else:
            for part in repeated(filled, length):
                file.write(part)
    file.truncate()


def repeated(data: bytes, length: int) -> Iterator[memoryview]:
    """`length` bytes: the data again and again."""
    for start in range(0, length, len(data)):
        yield memoryview(data)[: length - start]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")


# --- command line ------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where source and helper go")
    parser.add_argument("--source-rows", type=int, help="(the tokenizer's size, or 32000)")
    parser.add_argument("--helper-rows", type=int, help="(the tokenizer's size, or 16000)")
    parser.add_argument("--width", type=int, default=512, help="of the source")
    parser.add_argument("--helper-width", type=int, default=256)
    parser.add_argument("--intermediate", type=int, help="width inside the source's layers (4 x)")
    parser.add_argument("--body-bytes", type=size, default=size("100M"), help="of layers, about")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the source")
    parser.add_argument("--helper-dtype", choices=DTYPES, default="float32")
    parser.add_argument("--shards", type=int, default=4, help="of the source")
    parser.add_argument("--tied", action="store_true", help="a source without an output head")
    parser.add_argument("--sparse", action="store_true", help="leave holes for the layers")
    parser.add_argument("--overlap", type=float, default=0.3, help="of generated vocabularies")
    parser.add_argument("--source-tokenizer", type=Path, metavar="DIR", help="a real one")
    parser.add_argument("--helper-tokenizer", type=Path, metavar="DIR", help="a real one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.source_tokenizer) != bool(args.helper_tokenizer):
        parser.error("--source-tokenizer and --helper-tokenizer go together")
    return args


if __name__ == "__main__":
    main()
