"""A whole conversion, held against numpy and the safetensors library."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from make import (
    FAMILIES,
    SOURCE_WORDS,
    TARGET_WORDS,
    family_tensors,
    random_rows,
    read_json,
    read_tensors,
    write_checkpoint,
    write_helper,
    write_json,
    write_source,
    write_tokenizer,
)
from plain import convert

import clpstream
from clpstream import Clp, Knn, TransferError
from clpstream.memory import limited_to
from clpstream.output import stream

SHARED = ["</s>", *(word for word in TARGET_WORDS if word in SOURCE_WORDS)]
MISSING = [word for word in TARGET_WORDS if word not in SOURCE_WORDS]
SOURCE_IDS = [["</s>", *SOURCE_WORDS].index(word) for word in SHARED]
TARGET_IDS = [["</s>", *TARGET_WORDS].index(word) for word in SHARED]
MISSING_IDS = [["</s>", *TARGET_WORDS].index(word) for word in MISSING]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expected_rows(helper, source, method):
    """The missing rows by the method's formula, in float64, from all rows of two matrices."""
    anchors = helper[TARGET_IDS].astype(np.float64)
    missing = helper[MISSING_IDS].astype(np.float64)
    rows = source[SOURCE_IDS].astype(np.float64)
    if method == "clp":
        weights = unit(missing) @ unit(anchors).T
        weights /= weights.sum(axis=1, keepdims=True)
        return weights @ rows
    mean = anchors.mean(axis=0)
    scores = unit(missing - mean) @ unit(anchors - mean).T
    weights = np.exp(scores / 0.1)
    weights[scores < np.sort(scores, axis=1)[:, -10][:, None]] = 0
    return weights / weights.sum(axis=1, keepdims=True) @ rows


def words(array):
    """The bits of an array."""
    return array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("method", ["knn", "clp"])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize(
    ("family", "untied"),
    [(family, head is not None) for family, (_, head) in FAMILIES.items()]
    + [("gpt2", True), ("llama", False)],
)
def test_every_family_in_every_dtype(tmp_path, family, untied, dtype, method):
    write_source(tmp_path / "source", family, dtype=dtype, untied=untied, padding=5, shards=2)
    write_helper(tmp_path / "helper", kind="metaspace", dtype="BF16", padding=2)
    result = convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target", method=method)
    source, target = read_tensors(tmp_path / "source"), read_tensors(tmp_path / "target")
    helper = read_tensors(tmp_path / "helper")["transformer.wte.weight"]
    embeddings, head = FAMILIES[family]
    vocabulary = {embeddings, head or "lm_head.weight"} & set(source)
    assert {t.name for t in result.report.vocabulary_tensors} == vocabulary
    assert len(vocabulary) == (2 if untied else 1)
    assert result.report.tied == (not untied)
    assert list(target) == list(source)
    for name, before in source.items():
        after = target[name]
        assert after.dtype == before.dtype
        if name not in vocabulary:
            assert after.shape == before.shape
            assert after.tobytes() == before.tobytes()
            continue
        assert after.shape == (1 + len(TARGET_WORDS), before.shape[1])
        assert np.array_equal(words(after[TARGET_IDS]), words(before[SOURCE_IDS]))
        expected = expected_rows(helper, before, method)
        rounded = expected.astype(before.dtype).astype(np.float64)
        step = np.abs(rounded) * 2 * float(ml_dtypes.finfo(before.dtype).eps) + 1e-6
        assert (np.abs(after[MISSING_IDS].astype(np.float64) - expected) <= step).all()
    assert read_json(tmp_path / "target" / "config.json")["vocab_size"] == 1 + len(TARGET_WORDS)


@pytest.mark.parametrize("method", [Clp(), Knn(weights="sparsemax"), Knn()], ids=str)
def test_two_runs_give_the_same_bytes(pair, tmp_path, method):
    for name in ("one", "two"):
        convert(pair.source, pair.helper, tmp_path / name, method=method)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two")
    )
    assert first == second
    assert len(first) == 7


def test_a_copied_row_keeps_every_bit(tmp_path):
    """Also where a float would not: negative zeros and subnormal numbers."""
    write_source(tmp_path / "source")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    row = np.array([0x80000000, 1, 0x807FFFFF, 0x00400000] * 4, np.uint32).view(np.float32)
    tensors["model.embed_tokens.weight"][SOURCE_IDS[3]] = row
    write_checkpoint(tmp_path / "source", tensors, read_json(tmp_path / "source" / "config.json"))
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    after = read_tensors(tmp_path / "target")["model.embed_tokens.weight"][TARGET_IDS[3]]
    assert after.tobytes() == row.tobytes()


def test_a_shard_without_vocabulary_tensors_is_copied_whole(tmp_path):
    write_source(tmp_path / "source", "gpt2", shards=4)
    write_helper(tmp_path / "helper")
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    for place in (2, 3, 4):
        name = f"model-{place:05}-of-00004.safetensors"
        assert (tmp_path / "target" / name).read_bytes() == (
            tmp_path / "source" / name
        ).read_bytes()


def test_the_index_counts_bytes_and_parameters(pair):
    convert(*pair)
    index = read_json(pair.output / "model.safetensors.index.json")
    tensors = read_tensors(pair.output)
    assert index["metadata"] == {
        "total_parameters": sum(prod(t.shape) for t in tensors.values()),
        "total_size": sum(t.nbytes for t in tensors.values()),
    }
    source = read_json(pair.source / "model.safetensors.index.json")
    assert index["weight_map"] == source["weight_map"]


def test_a_stated_number_of_parameters_changes_by_the_new_rows_only(pair):
    """Packed weights hold more parameters than elements: the source's own count is kept."""
    where = pair.source / "model.safetensors.index.json"
    index = read_json(where)
    index["metadata"] |= {"total_parameters": 10**9, "made_by": "somebody"}
    write_json(where, index)
    convert(*pair)
    metadata = read_json(pair.output / "model.safetensors.index.json")["metadata"]
    more = len(TARGET_WORDS) - len(SOURCE_WORDS)
    assert metadata["total_parameters"] == 10**9 + 2 * 16 * more
    assert metadata["made_by"] == "somebody"


def test_ids_without_a_token_get_the_mean_of_the_anchors(pair):
    tokenizer = read_json(pair.helper / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["ung"] = len(vocabulary) + 2
    write_json(pair.helper / "tokenizer.json", tokenizer)
    rows = random_rows(len(vocabulary) + 3, 8, 6)
    write_checkpoint(pair.helper, {"transformer.wte.weight": rows}, {"model_type": "gpt2"})
    result = convert(*pair)
    assert result.report.counts.unused == 3
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = read_tensors(pair.source)[name], read_tensors(pair.output)[name]
        assert np.allclose(after[-4:-1], before[SOURCE_IDS].mean(axis=0), atol=1e-6)


def test_both_tied_tensors_in_the_file_stay_equal(tmp_path):
    write_source(tmp_path / "source", "llama", untied=False)
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "llama"})
    result = convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    target = read_tensors(tmp_path / "target")
    assert result.report.tied
    assert np.array_equal(target["lm_head.weight"], target["model.embed_tokens.weight"])
    assert len(target["lm_head.weight"]) == 1 + len(TARGET_WORDS)


def test_a_head_bias_gets_the_same_combination(tmp_path):
    write_source(tmp_path / "source", "llama")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["lm_head.bias"] = random_rows(1 + len(SOURCE_WORDS), 1, 9)[:, 0]
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "llama"})
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    bias = read_tensors(tmp_path / "target")["lm_head.bias"]
    helper = read_tensors(tmp_path / "helper")["transformer.wte.weight"]
    expected = expected_rows(helper, tensors["lm_head.bias"][:, None], "knn")
    assert np.allclose(bias[MISSING_IDS], expected[:, 0], atol=1e-6)
    assert np.array_equal(bias[TARGET_IDS], tensors["lm_head.bias"][SOURCE_IDS])


def test_weights_of_layers_and_positions_are_not_taken_for_vocabulary(tmp_path):
    """Although they are as long as it by accident."""
    rows = write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["h.0.mlp.c_fc.weight"] = random_rows(16, len(rows), 7)
    tensors["h.0.mlp.c_proj.weight"] = random_rows(len(rows), 16, 7)
    tensors["transformer.wpe.weight"] = random_rows(len(rows), 16, 8)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    target = read_tensors(tmp_path / "target")
    for name in ("h.0.mlp.c_fc.weight", "transformer.wpe.weight"):
        assert np.array_equal(target[name], tensors[name])


def test_a_table_with_a_known_name_for_something_shorter_is_not_guessed_at(tmp_path):
    write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["speech.codes.embed_tokens.weight"] = random_rows(20, 16, 7)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    both = tmp_path / "source", tmp_path / "helper"
    with pytest.raises(clpstream.CheckpointError, match=r"speech.*20 rows.*--pass-through"):
        convert(*both, tmp_path / "target")
    convert(*both, tmp_path / "target", pass_through=["speech.codes.embed_tokens.weight"])


@pytest.mark.parametrize("method", ["knn", "clp"])
def test_blocks_of_rows_that_are_all_shared_or_all_missing(tmp_path, method):
    """Tokens of another script stand together in a vocabulary."""
    words = [*SOURCE_WORDS[:10], *(f"{a}{b}" for a in "äöü" for b in "äöüß"), *SOURCE_WORDS[10:]]
    write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper", words)
    both = tmp_path / "source", tmp_path / "helper"
    convert(*both, tmp_path / "whole", method=method)
    with limited_to(32 * 3 * 4 * 16):
        convert(*both, tmp_path / "blocks", method=method)
    name = FAMILIES["gpt2"][0]
    whole, blocks = (read_tensors(tmp_path / n)[name] for n in ("whole", "blocks"))
    assert np.allclose(whole, blocks, atol=1e-6)


def test_a_table_in_one_layer_only_is_not_taken_for_the_body(tmp_path):
    """As the extra layers for multi-token prediction have."""
    rows = write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors |= {f"h.{n}.mlp.weight": random_rows(4, 16, n) for n in range(3)}
    tensors["h.3.head_table"] = random_rows(len(rows), 16, 7)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    with pytest.raises(clpstream.CheckpointError, match=r"h\.3\.head_table.*--vocab-tensor"):
        convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")


@pytest.mark.parametrize(
    "name", ["value_embeds.{}.weight", "medusa_head.{}.1.weight", "lm_heads.{}.weight"]
)
def test_numbered_tables_outside_layers_are_not_taken_for_the_body(tmp_path, name):
    rows = write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors |= {name.format(n): random_rows(len(rows), 16, n) for n in range(3)}
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    with pytest.raises(clpstream.CheckpointError, match=r"0\.(1\.)?weight.*--vocab-tensor"):
        convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")


def test_a_layer_that_is_like_no_other_is_the_body_all_the_same(tmp_path):
    """One layer only; a first layer that is dense where the others have experts."""
    rows = write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["model.layers.0.mlp.up_proj.weight"] = random_rows(len(rows), 16, 7)
    tensors["model.layers.0.mlp.down_proj.weight"] = random_rows(16, len(rows), 7)
    tensors["model.layers.0.self_attn.q_proj.weight"] = random_rows(len(rows), 16, 8)
    for expert in range(3):
        tensors[f"model.layers.1.mlp.experts.{expert}.w"] = random_rows(4, 16, expert)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    assert len(read_tensors(tmp_path / "target")["model.layers.0.mlp.up_proj.weight"]) == len(rows)


def test_a_vocabulary_tensor_that_passes_through_all_the_same_is_warned_about(pair):
    words = [*TARGET_WORDS, "new"]
    write_helper(pair.helper, words)
    result = convert(*pair, pass_through=["lm_head.weight"])
    assert any("lm_head.weight" in warning for warning in result.report.warnings)
    with pytest.raises(clpstream.CheckpointError, match="both"):
        decided = ["lm_head.weight"]
        convert(*pair, pass_through=decided, vocab_tensors=decided, overwrite=True)


def test_float64_embeddings_convert_and_what_float32_can_not_hold_is_refused(tmp_path):
    """The original script writes float64."""
    write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    both = tmp_path / "source", tmp_path / "helper"
    tensors = read_tensors(tmp_path / "source")
    name = FAMILIES["gpt2"][0]
    tensors[name] = tensors[name].astype(np.float64) * (1 + 2**-40)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    convert(*both, tmp_path / "target")
    after = read_tensors(tmp_path / "target")[name]
    assert after[TARGET_IDS].tobytes() == tensors[name][SOURCE_IDS].tobytes()
    large, nan = "has a number too large for float32", "has NaN or Inf"
    for value, what in ((1e200, large), (np.nan, nan), (-np.inf, nan)):
        tensors[name][SOURCE_IDS[5]] = value
        write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
        with pytest.raises(clpstream.TransferError, match=rf"row {SOURCE_IDS[5]} \(.*\) {what}"):
            convert(*both, tmp_path / "other", method="clp")


def test_rows_of_a_tensor_are_indexed_like_those_of_an_array(pair):
    """Slices with steps, masks, negative numbers and all."""
    tensor = clpstream.find_vocabulary_tensors(clpstream.open_checkpoint(pair.source))[0]
    rows, array = clpstream.TensorRows(tensor.span), read_tensors(pair.source)[tensor.name]
    mask = np.arange(len(array)) % 3 == 0
    for index in (slice(2, 9), slice(0, 10, 2), slice(9, 2), mask, np.array([5, 4, 4, -1]),
                  np.array([], np.int64), slice(None)):  # fmt: skip
        assert np.array_equal(rows[index], array[index])
    with pytest.raises(IndexError):
        rows[np.array([len(array)])]


def test_the_user_decides_about_a_tensor_that_is_not_known(tmp_path):
    rows = write_source(tmp_path / "source", "gpt2")
    write_helper(tmp_path / "helper")
    tensors = read_tensors(tmp_path / "source")
    tensors["extra.table"] = random_rows(len(rows), 3, 7)
    write_checkpoint(tmp_path / "source", tensors, {"model_type": "gpt2"})
    both = tmp_path / "source", tmp_path / "helper"
    with pytest.raises(clpstream.CheckpointError, match=r"extra\.table.*--vocab-tensor"):
        convert(*both, tmp_path / "target")
    convert(*both, tmp_path / "passed", pass_through=["extra.table"])
    convert(*both, tmp_path / "rewritten", vocab_tensors=["extra.table"])
    assert np.array_equal(read_tensors(tmp_path / "passed")["extra.table"], tensors["extra.table"])
    rewritten = read_tensors(tmp_path / "rewritten")["extra.table"]
    assert np.array_equal(rewritten[TARGET_IDS], tensors["extra.table"][SOURCE_IDS])


def test_the_target_has_the_helpers_tokenizer_and_the_sources_code_and_licence(pair):
    from_source = {"modeling_x.py", "LICENSE", "license.txt", "preprocessor_config.json"}
    stale = {"tokenization_x.py", "vocab.json", "chat_template.jinja", "README.md", "model.bin"}
    for name in from_source | stale:
        (pair.source / name).write_text(f"source {name}")
    for name in ("added_tokens.json", "special_tokens_map.json"):
        write_json(pair.helper / name, {})
    for name in ("chat_template.jinja", "merges.txt", "LICENSE", "README.md"):
        (pair.helper / name).write_bytes(f"helper\r\n{name} \xe4".encode("latin-1"))
    result = convert(*pair)
    from_helper = {"tokenizer.json", "tokenizer_config.json", "added_tokens.json",
                   "special_tokens_map.json", "chat_template.jinja", "merges.txt"}  # fmt: skip
    written = {"config.json", "clpstream.json", "model.safetensors.index.json",
               "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}  # fmt: skip
    assert {path.name for path in pair.output.iterdir()} == from_helper | from_source | written
    for name in from_helper:
        assert (pair.output / name).read_bytes() == (pair.helper / name).read_bytes()
    for name in from_source:
        assert (pair.output / name).read_bytes() == (pair.source / name).read_bytes()
    assert set(result.report.left_behind) == (
        stale | {"tokenizer.json", "tokenizer_config.json"}
    ) - (from_helper)


def test_the_report_says_what_was_done(pair):
    result = convert(*pair, method=Knn(neighbors=3))
    report = read_json(pair.output / "clpstream.json")
    assert report == json.loads(json.dumps(result.report.to_json()))
    assert report["versions"]["clpstream"] == clpstream.__version__
    assert report["options"]["neighbors"] == 3
    counts = report["counts"]
    assert (counts["target"], counts["shared"]) == (1 + len(TARGET_WORDS), len(SHARED))
    assert counts["missing"] == len(MISSING)
    assert counts["rules"] == {"role": 1, "bytes": len(SHARED) - 1}
    assert counts["not_carried"] == 1 + len(SOURCE_WORDS) - len(SHARED)
    assert [example["id"] for example in report["examples"]] == MISSING_IDS
    assert all(1 <= len(example["words"]) <= 4 for example in report["examples"])
    assert report["source"]["parameters"] == sum(
        prod(t.shape) for t in read_tensors(pair.source).values()
    )


def test_the_fingerprint_follows_the_values(pair, tmp_path):
    before = convert(*pair).report
    tensors = read_tensors(pair.helper)
    tensors["transformer.wte.weight"][7] += 1
    write_checkpoint(pair.helper, tensors, read_json(pair.helper / "config.json"))
    after = convert(pair.source, pair.helper, tmp_path / "other").report
    assert before.source.fingerprint == after.source.fingerprint
    assert before.helper.fingerprint != after.helper.fingerprint


def test_a_dry_run_writes_nothing_and_knows_the_size(pair):
    before = sorted(pair.source.parent.rglob("*"))
    planned = convert(*pair, dry_run=True)
    assert sorted(pair.source.parent.rglob("*")) == before
    done = convert(*pair)
    written = {path.name: path.stat().st_size for path in pair.output.iterdir()}
    del written["clpstream.json"]
    assert planned.output is None
    assert planned.bytes_to_write == done.bytes_to_write == sum(written.values())
    assert planned.report.counts.shared == done.report.counts.shared


def test_progress_adds_up(pair):
    class Recorder(clpstream.Progress):
        tasks = []  # noqa: RUF012

        def task(self, name, total, unit):
            from contextlib import contextmanager

            @contextmanager
            def record():
                entry = [unit, total, 0]
                self.tasks.append(entry)

                def update(done):
                    entry[2] += done

                yield update

            return record()

    recorder = Recorder()
    convert(*pair, progress=recorder)
    shards = sum(path.stat().st_size for path in pair.output.glob("*.safetensors"))
    assert recorder.tasks == [["B", shards, shards], ["tokens", len(MISSING), len(MISSING)]]


def test_a_config_without_a_vocabulary_size_gets_one(pair):
    write_json(pair.source / "config.json", {"model_type": "llama"})
    convert(*pair)
    assert read_json(pair.output / "config.json") == {
        "model_type": "llama",
        "vocab_size": 1 + len(TARGET_WORDS),
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }


def test_every_other_way_of_copying_gives_the_same_bytes(pair, tmp_path, monkeypatch):
    """In the kernel, without copy_file_range, then without sendfile either."""
    convert(*pair)
    expected = {path.name: path.read_bytes() for path in pair.output.iterdir()}
    monkeypatch.setattr(stream, "_on_disk", lambda fd: False)
    convert(*pair, overwrite=True)
    assert {path.name: path.read_bytes() for path in pair.output.iterdir()} == expected
    for place, call in enumerate(("copy_file_range", "sendfile")):
        monkeypatch.setattr(os, call, refuse)
        output = tmp_path / f"other{place}"
        convert(pair.source, pair.helper, output)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == expected


def refuse(*arguments, **named):
    raise OSError(18, "Invalid cross-device link")


def test_strings_are_paths_too(pair):
    result = convert(*map(str, pair))
    assert result.output == Path(pair.output)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_memory": "512M"}, "max_memory is '512M'; it must be a number of bytes"),
        ({"max_memory": 0}, "max_memory is 0; it must be a number of bytes"),
        ({"method": clpstream.Knn}, r"method is the class Knn; give an object: Knn\(\)"),
        ({"vocab_tensors": "lm_head.weight"}, "vocab_tensors: give a list of names, not a str"),
        ({"pass_through": "lm_head.weight"}, "pass_through: give a list of names, not a str"),
    ],
)
def test_arguments_of_another_kind_are_refused(pair, arguments, says):
    with pytest.raises(TransferError, match=says):
        convert(*pair, **arguments)
    assert not pair.output.exists()


def test_a_source_can_be_its_own_helper(tmp_path):
    """Every token is shared: the target is the source again, without its padding rows."""
    write_source(tmp_path / "source", "gpt2", padding=3)
    result = convert(tmp_path / "source", tmp_path / "source", tmp_path / "target")
    before, after = read_tensors(tmp_path / "source"), read_tensors(tmp_path / "target")
    assert result.report.counts.missing == 0
    name = FAMILIES["gpt2"][0]
    assert after[name].tobytes() == before[name][:-3].tobytes()


def test_a_token_that_is_there_twice_copies_one_row_twice(tmp_path):
    write_tokenizer(tmp_path / "source", ["a", "b"])
    rows = family_tensors("gpt2", 3)
    write_checkpoint(tmp_path / "source", rows, {"model_type": "gpt2"})
    write_tokenizer(tmp_path / "helper", ["a"], "metaspace", byte_pieces=True)
    write_checkpoint(tmp_path / "helper", {"wte.weight": random_rows(258, 8, 3)}, {})
    convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    after = read_tensors(tmp_path / "target")[FAMILIES["gpt2"][0]]
    before = rows[FAMILIES["gpt2"][0]]
    assert np.array_equal(after[257], before[1])
    assert np.array_equal(after[1 + ord("a")], before[1])
    assert np.array_equal(after[1 + ord("b")], before[2])
