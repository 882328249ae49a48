"""`clpstream inspect` and clpstream.inspect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import (
    SOURCE_WORDS,
    random_rows,
    read_json,
    read_tensors,
    write_checkpoint,
    write_json,
    write_source,
    write_tokenizer,
)
from torch_files import write_torch

import clpstream
from clpstream import CheckpointError

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = 1 + len(SOURCE_WORDS)


def run(*arguments: object, **variables: str) -> Any:
    """The command line."""
    return subprocess.run(
        [sys.executable, "-m", "clpstream", "inspect", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(clpstream.__file__).parents[1]), **variables},
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untied llama in two shards, with three rows of padding."""
    write_source(tmp_path / "model", shards=2, padding=3, dtype="BF16")
    return tmp_path / "model"


def edit(model: Path, change: Any, **config: Any) -> None:
    """Write the model anew, in one shard."""
    tensors = read_tensors(model)
    change(tensors)
    for path in [*model.glob("*.safetensors"), *model.glob("*.index.json")]:
        path.unlink()
    write_checkpoint(model, tensors, read_json(model / "config.json") | config)


def test_everything_that_headers_tell(model: Path) -> None:
    found = clpstream.inspect(model)
    tensors = read_tensors(model)
    assert found.model == "model"
    assert found.model_type == "llama"
    assert found.architectures == ("SomeForCausalLM",)
    assert found.parameters == sum(tensor.size for tensor in tensors.values())
    assert found.bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert found.shards == 2
    assert found.dtypes == {
        "BF16": 16 * 16 + 2 * 16 * (TOKENS + 3),
        "U8": 7 * 16,
        "F32": 16,
    }
    assert found.quantisation is None
    assert [(t.name, t.role, t.dtype, t.shape) for t in found.vocabulary_tensors] == [
        (EMBEDDINGS, "input embeddings", "BF16", (TOKENS + 3, 16)),
        (HEAD, "output head", "BF16", (TOKENS + 3, 16)),
    ]
    assert all("named like" in tensor.why for tensor in found.vocabulary_tensors)
    assert found.config_sizes == {"vocab_size": TOKENS + 3}
    assert found.tokenizer is not None
    assert (found.tokenizer.file, found.tokenizer.kind) == ("tokenizer.json", "BPE")
    assert (found.tokenizer.tokens, found.tokenizer.size) == (TOKENS, TOKENS)
    assert found.tokenizer.special == {0: "</s>"}
    assert found.tokenizer.roles == {"eos": 0}
    assert (found.as_source, found.as_helper, found.warnings) == (None, None, ())


def test_json_is_the_library_and_nothing_else_is_printed(model: Path) -> None:
    done = run(model, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = clpstream.inspect(model).to_json()
    assert json.loads(done.stdout) == json.loads(json.dumps(found))
    assert list(found) == [
        *("model", "model_type", "architectures", "parameters", "bytes", "shards", "dtypes"),
        *("quantisation", "vocabulary_tensors", "tied", "config_sizes", "tokenizer"),
        *("as_source", "as_helper", "warnings"),
    ]
    assert run(model, CLPSTREAM_JSON="1").stdout == done.stdout


def test_people_get_one_screen(model: Path) -> None:
    done = run(model)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 24
    assert [line[:10].strip() for line in lines] == [
        *("model", "weights", "tensor", "tensor", "head", "config", "tokenizer", "special"),
        *("source", "helper"),
    ]
    size = TOKENS + 3
    for text in (f"[{size}, 16]", f"vocab_size {size}", f"ids below {TOKENS}", "(eos) </s> 0"):
        assert text in done.stdout


@pytest.mark.parametrize(
    "how", ["no head", "equal bytes", "one bit", "no head, and the config errs"]
)
def test_tied_is_what_the_bytes_say(model: Path, how: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if how.startswith("no head"):
            del tensors[HEAD]
            return
        tensors[HEAD] = tensors[EMBEDDINGS].copy()
        if how == "one bit":
            tensors[HEAD].view(np.uint16)[5, 5] ^= 1

    edit(model, change, tie_word_embeddings=how != "no head, and the config errs")
    found = clpstream.inspect(model)
    assert found.tied == (how != "one bit")
    names = [tensor.name for tensor in found.vocabulary_tensors]
    same = [tensor.same_as for tensor in found.vocabulary_tensors]
    assert len(names) == (2 if how in ("equal bytes", "one bit") else 1)
    assert same == ([None, names[0]] if how == "equal bytes" else [None] * len(names))
    assert len(found.warnings) == (how in ("one bit", "no head, and the config errs"))
    assert all("tie_word_embeddings" in warning for warning in found.warnings)
    text = run(model).stdout
    assert f"\nhead      {'untied' if how == 'one bit' else 'tied'}\n" in text
    assert (f"; same bytes as {names[0]}\n" in text) == (how == "equal bytes")


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.qweight", "model.embed_tokens.weight_scale", "lm_head.weight_packed"],
)
def test_a_quantised_table_is_refused_by_name(model: Path, name: str) -> None:
    whole = EMBEDDINGS if "embed" in name else HEAD

    def change(tensors: dict[str, np.ndarray]) -> None:
        if not name.endswith("scale"):
            del tensors[whole]
        tensors[name] = np.zeros((TOKENS + 3, 2), np.int32)

    edit(model, change, quantization_config={"quant_method": "gptq", "bits": 4})
    found = clpstream.inspect(model)
    assert found.quantisation == "gptq"
    assert found.as_source is not None
    assert f"'{whole}' is quantised" in found.as_source
    assert name in found.as_source
    assert (found.vocabulary_tensors, found.tied) == ((), None)
    done = run(model)
    assert done.returncode == 0
    assert "quantised by gptq" in done.stdout
    assert f"'{whole}' is quantised" in done.stdout


def test_a_tensor_that_nothing_explains_stops_a_source_and_no_helper(model: Path) -> None:
    edit(model, lambda tensors: tensors.update(odd=random_rows(TOKENS + 3, 4, 9)))
    found = clpstream.inspect(model)
    assert found.as_source is not None
    assert "--vocab-tensor odd" in found.as_source
    assert "--pass-through odd" in found.as_source
    assert found.as_helper is None


def test_without_a_tokenizer_it_can_be_neither(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    found = clpstream.inspect(model)
    assert found.tokenizer is None
    assert found.as_source == found.as_helper
    assert "no tokenizer in it" in str(found.as_source)
    assert len(found.vocabulary_tensors) == 2
    done = run(model)
    assert done.returncode == 0
    assert "\ntokenizer " not in done.stdout


def test_without_a_config_it_can_be_a_helper_only(model: Path) -> None:
    (model / "config.json").unlink()
    found = clpstream.inspect(model)
    assert "no config.json" in str(found.as_source)
    assert (found.as_helper, found.model_type, found.architectures) == (None, None, ())
    assert "model: no model type\n" in run(model).stdout


def test_a_config_that_is_empty_or_odd_stops_nothing(model: Path) -> None:
    write_json(model / "config.json", {})
    assert clpstream.inspect(model).as_source is None
    write_json(model / "config.json", {"architectures": "LlamaForCausalLM", "vocab_size": "37"})
    found = clpstream.inspect(model)
    assert (found.as_source, found.architectures, found.config_sizes) == (None, (), {})


def test_a_broken_generation_config_stops_a_source(model: Path) -> None:
    (model / "generation_config.json").write_text("{")
    found = clpstream.inspect(model)
    assert "generation_config.json: not valid JSON" in str(found.as_source)
    assert found.as_helper is None


def test_sizes_at_every_level_of_the_config(model: Path) -> None:
    levels = {"text_config": {"vocab_size": 37, "inner": {"audio_vocab_size": 5}}}
    edit(model, lambda tensors: None, **levels, type_vocab_size=2)
    assert clpstream.inspect(model).config_sizes == {
        "vocab_size": TOKENS + 3,
        "text_config.vocab_size": 37,
        "text_config.inner.audio_vocab_size": 5,
    }


def test_tokens_without_a_row_are_told(model: Path) -> None:
    write_tokenizer(model, [*SOURCE_WORDS, "A", "B", "C", "D", "E"])
    found = clpstream.inspect(model)
    assert found.tokenizer is not None
    assert found.tokenizer.size == TOKENS + 5
    assert found.as_source is None
    assert any(f"from {TOKENS + 3} to {TOKENS + 4} have no row" in w for w in found.warnings)
    assert "does not belong to this helper" in str(found.as_helper)


def test_special_tokens_and_what_is_odd_about_them(model: Path) -> None:
    ids = write_tokenizer(model, ["a"], special={"bos": "<s>", "eos": "</s>", "pad": "</s>"})
    tokenizer = read_json(model / "tokenizer.json")
    for token in range(9, 29):
        entry = {"id": token, "content": f"<|{token}|>\x1b[0m", "special": True}
        tokenizer["added_tokens"].append(entry)
    write_json(model / "tokenizer.json", tokenizer)
    settings = read_json(model / "tokenizer_config.json")
    write_json(model / "tokenizer_config.json", settings | {"unk_token": "<unk>"})
    found = clpstream.inspect(model).tokenizer
    assert found is not None
    assert found.roles == {"bos": ids["<s>"], "eos": ids["</s>"], "pad": ids["</s>"]}
    assert list(found.special) == [0, 1, *range(9, 29)]
    assert (found.tokens, found.size) == (23, 29)
    done = run(model)
    assert r"(eos, pad) </s> 1, (bos) <s> 0, <|9|>\x1b[0m 9" in done.stdout
    assert "and 10 more\n" in done.stdout
    assert "unk token '<unk>' of tokenizer_config.json is not in the tokenizer" in done.stdout


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_the_kind_of_tokenizer(model: Path, kind: str) -> None:
    write_tokenizer(model, SOURCE_WORDS, kind)
    found = clpstream.inspect(model).tokenizer
    assert found is not None
    assert found.kind == {"unigram": "Unigram", "wordpiece": "WordPiece"}[kind]


def test_pickled_shards_are_the_same_model(model: Path) -> None:
    edit(model, lambda tensors: tensors.pop("layers.0.mlp.packed"))
    before = clpstream.inspect(model).to_json()
    tensors = read_tensors(model)
    (model / "model.safetensors").unlink()
    write_torch(model / "pytorch_model.bin", tensors)
    after = clpstream.inspect(model).to_json()
    assert after.pop("bytes") == (model / "pytorch_model.bin").stat().st_size
    del before["bytes"]
    key = lambda tensor: tensor["name"]  # noqa: E731
    for found in (before, after):
        found["vocabulary_tensors"] = sorted(found["vocabulary_tensors"], key=key)
    assert after == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda model: model.rename(model.parent / "gone"), "give a directory|no such directory"),
        (lambda model: [p.unlink() for p in model.glob("*safetensors*")], "no "),
        (lambda model: (model / "config.json").write_text("["), "not valid JSON"),
        (
            lambda model: next(model.glob("*.safetensors")).write_bytes(
                b"version https://git-lfs x"
            ),
            "git lfs pull",
        ),
    ],
)
def test_what_can_not_be_opened_is_one_line(model: Path, damage: Any, says: str) -> None:
    damage(model)
    with pytest.raises(CheckpointError, match=says):
        clpstream.inspect(model)
    done = run(model)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("clpstream: ")
    assert done.stderr.count("\n") == 1


def test_inspecting_writes_nothing_and_reads_no_values(model: Path) -> None:
    """NaN everywhere does not matter; neither does a directory that can't be written."""

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[EMBEDDINGS][:] = np.nan

    edit(model, damage)
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    model.chmod(0o555)
    found = clpstream.inspect(model)
    model.chmod(0o755)
    assert found.as_source is None
    assert {path.name: path.stat().st_mtime_ns for path in model.iterdir()} == before
