"""Names, shapes and types as checkpoints on hubs have them, where models of a family differ.

The tensors are numpy's, and which rows must be copies follows from the two word lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make import (
    SOURCE_WORDS,
    TARGET_WORDS,
    random_rows,
    read_json,
    read_tensors,
    write_checkpoint,
    write_helper,
    write_json,
    write_tokenizer,
)
from plain import convert
from safetensors import deserialize

import clpstream

FILE = "model.safetensors"
WIDTH = 16
OLD_WORDS = [*SOURCE_WORDS, *(f" old{number}" for number in range(100))]
NEW_WORDS = [*TARGET_WORDS, *(f" new{number}" for number in range(110))]
SOURCE_IDS = {word: token for token, word in enumerate(["</s>", *OLD_WORDS])}
TARGET_IDS = {word: token for token, word in enumerate(["</s>", *NEW_WORDS])}
ROWS, TARGET_ROWS = len(SOURCE_IDS), len(TARGET_IDS)
PADDED = 136
assert PADDED - 8 < ROWS < PADDED
SHARED = [word for word in SOURCE_IDS if word in TARGET_IDS]

BODY = {
    "model.layers.0.self_attn.q_proj.weight": np.ones((WIDTH, WIDTH), np.float32),
    "model.norm.weight": np.arange(WIDTH, dtype=np.float32),
}

ODDITIES: dict[str, dict[str, int | str]] = {
    "gpt2 without its prefix": {"wte.weight": WIDTH},
    "falcon, tied and both in the file": {
        "transformer.word_embeddings.weight": WIDTH,
        "lm_head.weight": "transformer.word_embeddings.weight",
    },
    "deepseek v3, with the copies of multi-token prediction": {
        "model.embed_tokens.weight": WIDTH,
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": WIDTH,
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    },
    "gpt-neox": {"gpt_neox.embed_in.weight": WIDTH, "embed_out.weight": WIDTH},
    "phi": {"model.embed_tokens.weight": WIDTH, "lm_head.weight": WIDTH, "lm_head.bias": "bias"},
    "old phi": {
        "transformer.embd.wte.weight": WIDTH,
        "lm_head.linear.weight": WIDTH,
        "lm_head.linear.bias": "bias",
    },
    "llava": {
        "language_model.model.embed_tokens.weight": WIDTH,
        "language_model.lm_head.weight": WIDTH,
    },
    "names of transformers 5": {
        "model.language_model.embed_tokens.weight": WIDTH,
        "lm_head.weight": WIDTH,
    },
    "bart": {"model.shared.weight": WIDTH, "final_logits_bias": "row"},
    "bart with aliases": {
        "model.shared.weight": WIDTH,
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
        "final_logits_bias": "row",
    },
    "t5 with a head of its own": {
        "shared.weight": WIDTH,
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": WIDTH,
    },
    "internlm2": {"model.tok_embeddings.weight": WIDTH, "output.weight": WIDTH},
    "deepseek's own": {"embed.weight": WIDTH, "head.weight": WIDTH},
    "openelm": {"transformer.token_embeddings.weight": WIDTH},
    "moondream's own": {
        "model.text.wte": WIDTH,
        "model.text.lm_head.weight": WIDTH,
        "model.text.lm_head.bias": "bias",
    },
    "moshi's own": {"text_emb.weight": WIDTH, "text_linear.weight": WIDTH},
    "stripedhyena": {"backbone.embedding_layer.weight": WIDTH, "backbone.unembed.weight": WIDTH},
    "chatglm": {
        "transformer.embedding.word_embeddings.weight": WIDTH,
        "transformer.output_layer.weight": WIDTH,
    },
    "rwkv": {"rwkv.embeddings.weight": WIDTH, "head.weight": WIDTH},
    "mamba": {"backbone.embedding.weight": WIDTH, "lm_head.weight": "backbone.embedding.weight"},
    "bert with a tied pair of biases": {
        "bert.embeddings.word_embeddings.weight": WIDTH,
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias": "bias",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "whisper": {"model.decoder.embed_tokens.weight": WIDTH, "proj_out.weight": WIDTH},
    "albert, narrow": {"albert.embeddings.word_embeddings.weight": 8, "predictions.bias": "bias"},
    "mobilebert, whose head lies on its side": {
        "mobilebert.embeddings.word_embeddings.weight": WIDTH,
        "cls.predictions.dense.weight": "columns",
        "cls.predictions.bias": "bias",
    },
}
"""Vocabulary tensors by name: a width, a shape, or the name of the tensor that it is equal to."""


def tensors_of(kinds: Mapping[str, int | str]) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for seed, (name, kind) in enumerate(kinds.items()):
        if isinstance(kind, int):
            made[name] = random_rows(ROWS, kind, seed)
        elif kind in made:
            made[name] = made[kind].copy()
        else:
            values = random_rows(ROWS, 3 if kind == "columns" else 1, seed)
            made[name] = {"bias": values[:, 0], "row": values.T, "columns": values.T}[kind].copy()
    return made


def write(
    directory: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[Path, Path, Path]:
    """A source with these tensors, and a helper; the third place is the target's."""
    source, helper, target = (directory / part for part in ("source", "helper", "target"))
    write_tokenizer(source, OLD_WORDS)
    write_checkpoint(source, tensors, config or {"model_type": "some", "vocab_size": ROWS})
    write_helper(helper, NEW_WORDS)
    return source, helper, target


def check_rows(before: np.ndarray, after: np.ndarray) -> None:
    """The rows of shared tokens are copies, and all rows are finite."""
    if before.ndim == 2 and before.shape[1] == ROWS:
        before, after = before.T, after.T
    assert after.shape == (TARGET_ROWS, *before.shape[1:])
    assert after.dtype == before.dtype
    old, new = ([ids[word] for word in SHARED] for ids in (SOURCE_IDS, TARGET_IDS))
    assert np.array_equal(after[new], before[old])
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", ODDITIES)
def test_a_vocabulary_is_known_by_its_names(name: str, tmp_path: Path) -> None:
    kinds = ODDITIES[name]
    before = tensors_of(kinds) | BODY
    source, helper, target = write(tmp_path, before)
    convert(source, helper, target)
    after = read_tensors(target)
    assert after.keys() == before.keys()
    for tensor, kind in kinds.items():
        check_rows(before[tensor], after[tensor])
        if kind in after:
            assert np.array_equal(after[tensor], after[str(kind)])
    for tensor in BODY:
        assert np.array_equal(after[tensor], before[tensor])


def test_a_table_for_both_may_be_stored_as_a_head(tmp_path: Path) -> None:
    """A bias beside it comes first in the file, and is no table of embeddings."""
    before = tensors_of({"lm_head.bias": "bias", "lm_head.weight": WIDTH}) | BODY
    config = {"model_type": "some", "vocab_size": ROWS, "tie_word_embeddings": True}
    source, helper, target = write(tmp_path, before, config)
    report = convert(source, helper, target).report
    after = read_tensors(target)
    for name in ("lm_head.bias", "lm_head.weight"):
        check_rows(before[name], after[name])
    assert report.tied
    assert not any("head differs" in warning for warning in report.warnings)
    cosines = [word.cosine for example in report.examples for word in example.words]
    assert min(cosines) < 0.99  # those of rows one wide are 1


def test_chatglm_says_its_size_in_padded_vocab_size(tmp_path: Path) -> None:
    config = {"model_type": "chatglm", "padded_vocab_size": ROWS}
    source, helper, target = write(tmp_path, tensors_of(ODDITIES["chatglm"]), config)
    convert(source, helper, target)
    assert read_json(target / "config.json")["padded_vocab_size"] == TARGET_ROWS


def test_rows_after_the_vocabulary_stay_after_it(tmp_path: Path) -> None:
    """Mllama has 8 more embeddings than logits; the model counts them from vocab_size."""
    embeddings, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    before = {embeddings: random_rows(ROWS + 8, WIDTH, 1), head: random_rows(ROWS, WIDTH, 2)}
    config = {"model_type": "mllama", "text_config": {"vocab_size": ROWS}}
    source, helper, target = write(tmp_path, before | BODY, config)
    convert(source, helper, target)
    after = read_tensors(target)
    check_rows(before[head], after[head])
    check_rows(before[embeddings][:ROWS], after[embeddings][:TARGET_ROWS])
    assert after[embeddings].shape == (TARGET_ROWS + 8, WIDTH)
    assert np.array_equal(after[embeddings][TARGET_ROWS:], before[embeddings][ROWS:])
    assert read_json(target / "config.json")["text_config"]["vocab_size"] == TARGET_ROWS


def test_every_token_has_per_layer_embeddings_and_images_stay_behind_them(tmp_path: Path) -> None:
    """Gemma3n has none for its last ids, which stand for images and sound, not for text."""
    prefix = "model.language_model."
    embeddings, layers = prefix + "embed_tokens.weight", prefix + "embed_tokens_per_layer.weight"
    before = {embeddings: random_rows(ROWS + 4, WIDTH, 1), layers: random_rows(ROWS, 6, 2)}
    config = {
        "model_type": "gemma3n",
        "image_token_id": ROWS + 1,
        "text_config": {"vocab_size": ROWS + 4, "vocab_size_per_layer_input": ROWS},
        "vision_config": {"vocab_size": 2, "vocab_offset": ROWS},
        "audio_config": {"vocab_size": 2, "vocab_offset": ROWS + 2},
    }
    source, helper, target = write(tmp_path, before, config)
    convert(source, helper, target)
    after = read_tensors(target)
    check_rows(before[embeddings][:ROWS], after[embeddings][:TARGET_ROWS])
    assert np.array_equal(after[embeddings][TARGET_ROWS:], before[embeddings][ROWS:])
    check_rows(before[layers], after[layers])
    made = read_json(target / "config.json")
    assert made["text_config"]["vocab_size"] == TARGET_ROWS + 4
    assert made["text_config"]["vocab_size_per_layer_input"] == TARGET_ROWS
    assert made["vision_config"] == {"vocab_size": 2, "vocab_offset": TARGET_ROWS}
    assert made["audio_config"] == {"vocab_size": 2, "vocab_offset": TARGET_ROWS + 2}
    assert made["image_token_id"] == TARGET_ROWS + 1


def test_ids_after_the_vocabulary_move_with_it(tmp_path: Path) -> None:
    """Where sounds and images have the ids after the text's, configs say where theirs begin."""
    before = {"model.embed_tokens.weight": random_rows(ROWS + 8, WIDTH, 1)}
    config = {
        "model_type": "some",
        "vocab_size": ROWS,
        "audio_pad_token_id": ROWS + 7,
        "audio_config": {"vocab_size": 4, "vocab_offset": ROWS + 4},
    }
    source, helper, target = write(tmp_path, before, config)
    convert(source, helper, target)
    assert read_tensors(target)["model.embed_tokens.weight"].shape == (TARGET_ROWS + 8, WIDTH)
    new = read_json(target / "config.json")
    assert new["vocab_size"] == TARGET_ROWS
    assert new["audio_pad_token_id"] == TARGET_ROWS + 7
    assert new["audio_config"] == {"vocab_size": 4, "vocab_offset": TARGET_ROWS + 4}


def test_a_table_that_every_layer_has_does_not_pass_unseen(tmp_path: Path) -> None:
    tables = {
        f"model.layers.{n}.attn.value_embedding.weight": random_rows(ROWS, 8, n) for n in (1, 2)
    }
    source, helper, target = write(tmp_path, LLAMA | tables)
    with pytest.raises(clpstream.CheckpointError, match=r"value_embedding.*--vocab-tensor"):
        convert(source, helper, target)
    convert(source, helper, target, vocab_tensors=list(tables))
    after = read_tensors(target)
    for name, before in tables.items():
        check_rows(before, after[name])


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": ROWS, "decoder_vocab_size": 40},  # marian
        {"src_vocab_size": ROWS, "tgt_vocab_size": 40},  # fsmt
        {"encoder": {"vocab_size": ROWS}, "decoder": {"vocab_size": 40}},
    ],
)
def test_a_model_with_two_vocabularies_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = {
        "model.encoder.embed_tokens.weight": random_rows(ROWS, WIDTH, 1),
        "model.decoder.embed_tokens.weight": random_rows(40, WIDTH, 2),
    }
    source, helper, target = write(tmp_path, tensors, {"model_type": "some"} | config)
    with pytest.raises(clpstream.CheckpointError, match="two vocabularies"):
        convert(source, helper, target)


def test_a_part_with_a_vocabulary_of_its_own_keeps_its_table(tmp_path: Path) -> None:
    """InstructBLIP's Q-Former has BERT's, which may be nearly as long as the language model's."""
    tensors = {
        "qformer.embeddings.word_embeddings.weight": random_rows(ROWS - 3, 8, 1),
        "language_model.model.embed_tokens.weight": random_rows(ROWS, WIDTH, 2),
    }
    config = {"qformer_config": {"vocab_size": ROWS - 3}, "text_config": {"vocab_size": ROWS}}
    source, helper, target = write(tmp_path, tensors, {"model_type": "some"} | config)
    convert(source, helper, target)
    after = read_tensors(target)
    table = "language_model.model.embed_tokens.weight"
    check_rows(tensors[table], after[table])
    assert np.array_equal(
        *(t["qformer.embeddings.word_embeddings.weight"] for t in (tensors, after))
    )
    sizes = read_json(target / "config.json")
    assert sizes["qformer_config"]["vocab_size"] == ROWS - 3


@pytest.mark.parametrize("name", ["decoder.weight", "output.weight", "proj_out.weight"])
def test_a_head_with_a_general_name_and_fewer_rows_is_not_guessed_at(
    name: str, tmp_path: Path
) -> None:
    source, helper, target = write(tmp_path, LLAMA | {name: random_rows(ROWS - 5, WIDTH, 3)})
    with pytest.raises(clpstream.CheckpointError, match=f"{name}.*--pass-through"):
        convert(source, helper, target)
    convert(source, helper, target, pass_through=[name])


@pytest.mark.parametrize("name", ["shared.weight", "lm_head.bias"])
def test_a_single_number_is_no_vocabulary_tensor(name: str, tmp_path: Path) -> None:
    tied = {"model.embed_tokens.weight": random_rows(ROWS, WIDTH, 1)}
    source, helper, target = write(tmp_path, tied | {name: np.array(0.5, np.float32)})
    assert clpstream.inspect(source).as_source is None
    for decided in ([], [name]):
        found = convert(source, helper, target, pass_through=decided, overwrite=True).report
        assert read_tensors(target)[name] == 0.5
        assert not any(name in warning for warning in found.warnings)
    with pytest.raises(clpstream.CheckpointError, match=r"shape is \[\].*check --vocab-tensor"):
        convert(source, helper, target, vocab_tensors=[name], overwrite=True)


def test_what_the_user_names_goes_before_every_rule(tmp_path: Path) -> None:
    name = "depth_decoder.model.embed_tokens.weight"  # of sound, as far as its name tells
    tensors = LLAMA | {name: random_rows(ROWS, 8, 5)}
    source, helper, target = write(tmp_path, tensors)
    convert(source, helper, target)
    assert np.array_equal(read_tensors(target)[name], tensors[name])
    convert(source, helper, target, vocab_tensors=[name], overwrite=True)
    check_rows(tensors[name], read_tensors(target)[name])
    write_checkpoint(source, tensors | {"x.wte.weight": random_rows(40, 8, 6)})
    with pytest.raises(clpstream.CheckpointError, match=r"\[40, 8\].*check --vocab-tensor"):
        convert(source, helper, target, vocab_tensors=["x.wte.weight"], overwrite=True)


@pytest.mark.parametrize("rows", [ROWS, ROWS // 8 + 5])
def test_a_head_quantised_in_an_unknown_way_is_refused_by_name(tmp_path: Path, rows: int) -> None:
    """As by HQQ and AQLM, with parts of any length."""
    parts = {"lm_head.W_q": np.ones((rows, 8), np.uint8), "lm_head.scale": np.ones((rows, 1), "f4")}
    tensors = {name: tensor for name, tensor in LLAMA.items() if name != "lm_head.weight"}
    source, helper, target = write(tmp_path, tensors | parts)
    with pytest.raises(clpstream.CheckpointError, match=r"lm_head\.weight' is quantised"):
        convert(source, helper, target)


@pytest.mark.parametrize("shape", [(PADDED, WIDTH), (PADDED,)])
def test_a_padded_table_of_unknown_name_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    name = "model.text_out.weight"
    source, helper, target = write(tmp_path, LLAMA | {name: np.ones(shape, np.float32)})
    with pytest.raises(clpstream.CheckpointError, match=f"{name}.*about as long.*--pass-through"):
        convert(source, helper, target)
    convert(source, helper, target, pass_through=[name])


def test_a_tied_table_may_be_stored_as_the_head(tmp_path: Path) -> None:
    tensors = {"lm_head.weight": random_rows(ROWS, WIDTH, 1)}
    source, helper, target = write(tmp_path, tensors | BODY)
    convert(source, helper, target)
    check_rows(tensors["lm_head.weight"], read_tensors(target)["lm_head.weight"])


def test_two_tables_for_one_vocabulary_are_refused(tmp_path: Path) -> None:
    tables = ["model.transformer.wte.embedding", "model.transformer.wte.new_embedding"]
    tensors = {
        tables[0]: random_rows(ROWS, WIDTH, 1),
        tables[1]: random_rows(8, WIDTH, 2),
        "model.transformer.ff_out.weight": random_rows(ROWS, WIDTH, 3),
    }
    source, helper, target = write(tmp_path, tensors, {"model_type": "molmo"})
    with pytest.raises(clpstream.ClpstreamError) as caught:
        convert(source, helper, target)
    assert all(table in str(caught.value) for table in tables)
    assert not target.exists()


LLAMA = tensors_of({"model.embed_tokens.weight": WIDTH, "lm_head.weight": WIDTH})
PROJECTION = "model.layers.0.self_attn.q_proj."
QUANTISED = {
    "gptq": {
        PROJECTION + "qweight": np.arange(32, dtype=np.int32).reshape(2, 16),
        PROJECTION + "qzeros": np.arange(2, dtype=np.int32).reshape(1, 2),
        PROJECTION + "scales": np.ones((1, 16), np.float16),
        PROJECTION + "g_idx": np.zeros(16, np.int32),
    },
    "fp8": {
        PROJECTION + "weight": np.ones((WIDTH, WIDTH), ml_dtypes.float8_e4m3fn),
        PROJECTION + "weight_scale_inv": np.ones((1, 1), np.float32),
    },
}


@pytest.mark.parametrize("body", QUANTISED)
def test_a_quantised_body_passes(body: str, tmp_path: Path) -> None:
    source, helper, target = write(tmp_path, LLAMA | QUANTISED[body])
    convert(source, helper, target)
    old, new = (dict(deserialize((part / FILE).read_bytes())) for part in (source, target))
    assert new.keys() == old.keys()
    for name in QUANTISED[body]:
        assert new[name] == old[name]
    for name, tensor in LLAMA.items():
        check_rows(tensor, np.frombuffer(new[name]["data"], np.float32).reshape(-1, WIDTH))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("model.embed_tokens.weight", np.ones((ROWS, WIDTH), np.int8)),
        ("model.embed_tokens.qweight", np.ones((ROWS, WIDTH // 8), np.int32)),
        ("lm_head.qweight", np.ones((WIDTH // 8, ROWS), np.int32)),
        ("lm_head.weight", np.ones((ROWS, WIDTH), ml_dtypes.float8_e4m3fn)),
    ],
)
def test_a_quantised_vocabulary_tensor_is_refused(
    name: str, table: np.ndarray, tmp_path: Path
) -> None:
    part = name.rpartition(".")[0]
    kept = {other: tensor for other, tensor in LLAMA.items() if not other.startswith(part)}
    source, helper, target = write(tmp_path, kept | {name: table})
    with pytest.raises(clpstream.ClpstreamError, match=name):
        convert(source, helper, target)
    assert not target.exists()


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 3), (3, ROWS)])
def test_an_unexplained_tensor_as_long_as_the_vocabulary_stops(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    source, helper, target = write(tmp_path, LLAMA | {"some.table": np.ones(shape, np.float32)})
    with pytest.raises(clpstream.ClpstreamError) as caught:
        convert(source, helper, target)
    for part in ("some.table", "--vocab-tensor", "--pass-through"):
        assert part in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 4), (4, ROWS)])
def test_a_length_inside_a_layer_may_be_the_vocabularys_by_accident(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """config.json tells; without it, the tensor could be a table that every layer has."""
    name = "model.layers.0.self_attn.relative_bias"
    inside = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    config = {"model_type": "some", "vocab_size": ROWS}
    source, helper, target = write(tmp_path, LLAMA | inside, config)
    with pytest.raises(clpstream.CheckpointError, match=f"{name}.*--vocab-tensor"):
        convert(source, helper, target)
    write_json(source / "config.json", config | {"max_position_embeddings": ROWS})
    convert(source, helper, target)
    assert np.array_equal(read_tensors(target)[name], inside[name])
