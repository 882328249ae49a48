"""Bits per byte, held against plain transformers in float64 and against what must hold of any."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from make import read_json, write_json, write_tokenizer
from tokenizers import Tokenizer

import clpstream
from clpstream.cli import cli
from clpstream.demo import HELPER, SOURCE
from clpstream.errors import ClpstreamError, ScoringError, VocabularyError
from clpstream.scoring import language_model, scores, token_bits

_WHY = "needs the score extra: pip install 'clpstream[score]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)

pytestmark = pytest.mark.interop

GERMAN = (
    "Wählen Sie im Menü die Einstellungen, um das Fenster und die Schriftgröße zu ändern. "
    "Die Datei wird im Ordner gespeichert, den Sie zuvor angegeben haben.\n"
)
TEXTS = [GERMAN, "Kurz.", GERMAN * 8, "Das Programm öffnet die Datei."]
LETTERS = [*"abcdefgh", " "]
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 64,
         "initializer_range": 0.5}  # fmt: skip


def make_model(directory: Path, model_type: str = "llama", **settings: Any) -> Path:
    """A random model whose tokenizer has one token a letter, and bos and eos."""
    special = settings.pop("special", {"bos": "<s>", "eos": "</s>"})
    ids = write_tokenizer(directory, LETTERS, special=special)
    torch.manual_seed(3)
    shape = LLAMA if model_type == "llama" else {}
    config = transformers.AutoConfig.for_model(
        model_type, **{"vocab_size": len(ids), **shape, **settings}
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    return directory


def change_weights(directory: Path, name: str, change: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        change(model.state_dict()[name])
    model.save_pretrained(directory)


def independent(directory: Path, text: str, first: str) -> float:
    """Bits of a text that fits in one window, in float64."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = torch.tensor([[tokenizer.token_to_id(first), *ids]])
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        found = torch.log_softmax(model.eval()(ids).logits, -1)[0, :-1]
    return -found[range(len(found)), ids[0, 1:]].sum().item() / math.log(2)


def bits(found: clpstream.Score) -> list[float]:
    return [of_block for of_block, _ in found.blocks]


# --- the number ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "first"), [(SOURCE, "<|endoftext|>"), (HELPER, "<s>")])
def test_it_is_what_plain_transformers_gives_in_float64(model, first):
    texts = [text for text in TEXTS if len(text) < 300]
    found = clpstream.score(model, texts, dtype="float32")
    truth = [independent(model, text, first) for text in texts]
    assert bits(found) == pytest.approx(truth, rel=1e-5)
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert found.bits_per_byte == pytest.approx(sum(truth) / found.bytes, rel=1e-5)
    assert found.documents == len(texts)
    assert (found.context, found.stride, found.dtype) == (256, 128, "float32")
    assert found.seconds > 0
    assert found.peak_memory > 10_000_000


def test_in_the_checkpoint_s_own_dtype_it_is_nearly_the_same():
    own, exact = (clpstream.score(HELPER, TEXTS, dtype=dtype) for dtype in ("auto", "float32"))
    assert own.dtype == "bfloat16"
    assert own.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=3e-3)


@pytest.mark.parametrize(("budget", "tokens"), [(1 << 27, 1 << 20), (1 << 27, 1), (1 << 18, 1)])
def test_neither_batches_nor_parts_change_it(monkeypatch, budget, tokens):
    """Also where the logits of one window are more than may exist: then it is fed in parts."""
    expected = bits(clpstream.score(SOURCE, TEXTS, dtype="float32"))
    monkeypatch.setattr(language_model, "_LOGITS_BYTES", budget)
    monkeypatch.setattr(language_model, "_SOFTMAX_BYTES", budget >> 4)
    monkeypatch.setattr(token_bits, "_BATCH_TOKENS", tokens)
    shapes = []
    forward = language_model._forward

    def watched(model, ids, *how):
        shapes.append(ids.shape)
        return forward(model, ids, *how)

    monkeypatch.setattr(language_model, "_forward", watched)
    assert bits(clpstream.score(SOURCE, TEXTS, dtype="float32")) == pytest.approx(expected, 1e-5)
    windows = shapes[4:]  # the first four are the probe's
    assert (max(count for count, _ in windows) > 1) == (tokens > 1)
    assert (max(length for _, length in windows) <= 16) == (budget == 1 << 18)


def test_windows_give_what_each_of_them_gives_alone(tmp_path):
    """Of a document of four windows, each token's bits from the window that counts it."""
    model = make_model(tmp_path)
    text = "abcdefgh bad cafe hag dab fed "
    found = clpstream.score(model, [text], context=12, stride=6)
    total = independent(model, text[:12], "<s>")
    for begin, end in ((6, 18), (12, 24), (18, 30)):
        window = text[begin:end]
        total += independent(model, window, "<s>") - independent(model, window[:6], "<s>")
    assert found.bits_per_byte * found.bytes == pytest.approx(total, rel=1e-5)


def test_a_head_of_zeros_costs_the_same_for_every_token(tmp_path):
    model = make_model(tmp_path, tie_word_embeddings=False, vocab_size=24)
    change_weights(model, "lm_head.weight", lambda head: head.zero_())
    found = clpstream.score(model, ["abcd ef" * 30, "a"], context=32)
    assert (found.tokens, found.bytes, found.bytes_per_token) == (211, 211, 1.0)
    assert found.bits_per_byte == pytest.approx(math.log2(24) * found.tokens / found.bytes)


def test_without_bos_and_eos_the_first_token_is_a_plain_guess(tmp_path):
    model = make_model(tmp_path, special={"unk": "<unk>"})
    found = clpstream.score(model, ["abc", "b"])
    rest = independent(model, "bc", "a")
    rows = read_json(model / "config.json")["vocab_size"]
    assert bits(found) == pytest.approx([math.log2(rows) + rest, math.log2(rows)])
    assert any("neither a bos nor an eos" in warning for warning in found.warnings)


def test_a_tokenizer_without_a_tokenizer_json(tmp_path):
    """As GPT-2 and its like have it: transformers makes it of vocab.json and merges.txt."""
    expected = clpstream.score(SOURCE, TEXTS)
    shutil.copytree(SOURCE, tmp_path / "old")
    content = read_json(tmp_path / "old" / "tokenizer.json")
    (tmp_path / "old" / "tokenizer.json").unlink()
    write_json(tmp_path / "old" / "vocab.json", content["model"]["vocab"])
    pairs = content["model"]["merges"]
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in pairs)
    (tmp_path / "old" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
    settings = read_json(tmp_path / "old" / "tokenizer_config.json")
    settings["tokenizer_class"] = "GPT2Tokenizer"
    write_json(tmp_path / "old" / "tokenizer_config.json", settings)
    assert clpstream.score(tmp_path / "old", TEXTS).blocks == expected.blocks


def test_every_document_begins_anew_and_its_order_does_not_matter():
    alone = [bits(clpstream.score(HELPER, [text], dtype="float32")) for text in TEXTS]
    together = clpstream.score(HELPER, TEXTS[::-1], dtype="float32")
    assert bits(together) == pytest.approx(
        [cost for costs in alone[::-1] for cost in costs], rel=1e-5
    )


# --- models with other heads and caches ----------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma2", {**LLAMA, "head_dim": 8, "num_key_value_heads": 1, "sliding_window": 16,
                    "final_logit_softcapping": 0.05}),
        ("opt", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "word_embed_proj_dim": 8,
                 "num_attention_heads": 2, "max_position_embeddings": 64}),
        ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2}),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    ],
)  # fmt: skip
def test_other_architectures(tmp_path, monkeypatch, model_type, settings):
    """Logits that are capped, a projection before the head, no positions, no cache of keys."""
    model = make_model(tmp_path, model_type, **settings)
    text = "abcdefgh bad cafe hag dab fed " * 2
    truth = independent(model, text, "<s>")
    for budget in (1 << 27, 1 << 10):
        monkeypatch.setattr(language_model, "_LOGITS_BYTES", budget)
        assert bits(clpstream.score(model, [text], context=64)) == pytest.approx([truth], rel=1e-4)


# --- two models ----------------------------------------------------------------------------------


def test_a_model_differs_from_itself_by_nothing():
    found = clpstream.score(HELPER, TEXTS)
    more = clpstream.score_difference(found, clpstream.score(HELPER, TEXTS))
    assert (more.bits_per_byte, more.interval) == (0, (0, 0))


def test_two_vocabularies_score_the_same_bytes():
    texts = [GERMAN * 100, *TEXTS]
    english, german = (clpstream.score(model, texts) for model in (SOURCE, HELPER))
    assert english.bytes == german.bytes == sum(len(text.encode()) for text in texts)
    assert [size for _, size in english.blocks] == [size for _, size in german.blocks]
    assert english.tokens > german.tokens
    for found in (english, german):
        assert sum(bits(found)) == pytest.approx(found.bits_per_byte * found.bytes)
        assert found.interval.low < found.bits_per_byte < found.interval.high
    more = clpstream.score_difference(english, german)
    assert more.bits_per_byte == pytest.approx(german.bits_per_byte - english.bits_per_byte)
    assert more.interval.low < more.bits_per_byte < more.interval.high < 0


def test_texts_that_differ_can_not_be_compared():
    one, other = (clpstream.score(HELPER, [text]) for text in ("Eins", "Zwei und drei"))
    with pytest.raises(ScoringError, match="different texts"):
        clpstream.score_difference(one, other)


# --- warnings ------------------------------------------------------------------------------------


def test_unknown_text_is_warned_about_with_its_count(tmp_path):
    model = make_model(tmp_path, special={"unk": "<unk>", "eos": "</s>"})
    ids = write_tokenizer(model, LETTERS, "unigram", {"unk": "<unk>", "eos": "</s>"})
    assert len(ids) == read_json(model / "config.json")["vocab_size"]
    found = clpstream.score(model, ["abc", "aXcX", "Xb"])
    assert any("3 tokens are unknown, and 2 of 3 documents" in w for w in found.warnings)
    assert found.bytes == 9


def test_little_text_is_warned_about():
    found = clpstream.score(HELPER, ["Kurz."])
    assert found.interval is None
    assert any("1 block of" in warning for warning in found.warnings)


# --- text from a model ---------------------------------------------------------------------------


def test_a_sample_depends_on_its_seed_alone():
    one, same, other = (clpstream.sample_documents(HELPER, 600, seed) for seed in (1, 1, 2))
    assert one == same != other
    state = torch.random.get_rng_state()
    clpstream.sample_documents(HELPER, 50, 3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_seed_is_a_number_of_64_bits():
    assert clpstream.sample_documents(HELPER, 50, (1 << 64) - 1)
    for seed in (-1, 1 << 64, "1"):
        with pytest.raises(ScoringError, match=rf"seed is {seed!r}; .* from 0 to 2\*\*64 - 1"):
            clpstream.sample_documents(HELPER, 50, seed)
    refused = run(HELPER, "--sample-from", HELPER, "--sample-tokens", 50, "--seed", 1 << 64)
    assert isinstance(refused.exception, ScoringError)  # of which main() makes 2


def test_a_sample_needs_the_tokens_alone_and_nothing_that_splits_a_text(tmp_path):
    model = make_model(tmp_path)
    tokenizer = read_json(model / "tokenizer.json")
    write_json(model / "tokenizer.json", {**tokenizer, "normalizer": {"type": "Unheard"}})
    with pytest.raises(VocabularyError, match="can't read it"):
        clpstream.score(model, ["abc"])
    assert clpstream.sample_documents(model, 50)


def test_a_sample_is_the_model_s_own_distribution(tmp_path):
    """Whatever generation_config.json would have: it would make one token of this."""
    model = make_model(tmp_path, tie_word_embeddings=False)
    change_weights(model, "lm_head.weight", lambda head: head.zero_())
    write_json(
        model / "generation_config.json", {"top_k": 1, "temperature": 0.01, "eos_token_id": 2}
    )
    text = "".join(clpstream.sample_documents(model, 4000))
    counts = np.array([text.count(letter) for letter in LETTERS])
    assert len(text) == counts.sum()
    assert counts.min() > 0.8 * counts.max()
    short = clpstream.sample_documents(model, 1)
    assert len(short) == 1


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["score", *map(str, arguments)])


def test_the_command_prints_a_table_or_json(tmp_path):
    (tmp_path / "text").write_text("\n<|endoftext|>\n".join(TEXTS), "utf-8")
    (tmp_path / "more").write_text(GERMAN, "utf-8")
    texts = ["--text", tmp_path / "text", "--text", tmp_path / "more", "--context", "128"]
    table = run(SOURCE, HELPER, *texts)
    assert table.exit_code == 0, table.output
    for word in ("source-en", "helper-de", "bits per byte", "difference", "better", "warning"):
        assert word in table.stdout
    found = json.loads(run(SOURCE, HELPER, *texts, "--json").stdout)
    assert found["text"] == [str(tmp_path / "text"), str(tmp_path / "more")]
    first, second = found["scores"]
    assert (first["model"], second["model"]) == ("source-en", "helper-de")
    assert (first["context"], first["stride"], first["documents"], first["blocks"]) == (
        128,
        64,
        5,
        5,
    )
    assert first["bytes"] == second["bytes"]
    assert found["difference"]["interval"]["high"] < 0
    one = json.loads(run(HELPER, *texts, "--json").stdout)
    assert one["difference"] is None
    assert one["scores"][0]["bits_per_byte"] == second["bits_per_byte"]


def test_the_command_samples_and_converted_models_are_scored(tmp_path):
    clpstream.convert(SOURCE, HELPER, tmp_path / "target")
    sampled = ["--sample-from", HELPER, "--sample-tokens", 1500, "--json"]
    done = run(SOURCE, tmp_path / "target", *sampled)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["sample_from"], found["sample_tokens"], found["seed"]) == (str(HELPER), 1500, 0)
    assert found["difference"]["interval"]["high"] < 0
    english, german = found["scores"]
    assert english["bytes"] == german["bytes"]
    assert english["bytes_per_token"] < german["bytes_per_token"]


def test_options_of_a_sample_are_refused_where_a_text_is_given(tmp_path, monkeypatch):
    """But a variable is for all runs."""
    (tmp_path / "text").write_text(GERMAN, "utf-8")
    text = [HELPER, "--text", tmp_path / "text"]
    for option in ("--seed", "--sample-tokens"):
        refused = run(*text, option, 5)
        assert isinstance(refused.exception, ClpstreamError)
        assert str(refused.exception) == f"{option} is an option of --sample-from; leave it out"
    monkeypatch.setenv("CLPSTREAM_SEED", "5")
    assert run(*text).exit_code == 0


# --- what can't be scored ------------------------------------------------------------------------


def test_an_encoder_is_no_causal_model(tmp_path):
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32}  # fmt: skip
    with pytest.raises(ScoringError, match="no causal language model"):
        clpstream.score(make_model(tmp_path, "bert", **bert), ["abc"])


def test_an_encoder_and_decoder_is_no_causal_model(tmp_path):
    write_tokenizer(tmp_path, LETTERS)
    config = transformers.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=16, num_layers=1,
                                   num_heads=2, decoder_start_token_id=0)  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ScoringError, match=r"no causal language model \(T5"):
        clpstream.score(tmp_path, ["abc"])


def test_a_model_without_its_head_is_not_scored(tmp_path):
    model = make_model(tmp_path, tie_word_embeddings=False)
    transformers.AutoModel.from_pretrained(model).save_pretrained(model)
    with pytest.raises(ScoringError, match=r"lm_head\.weight"):
        clpstream.score(model, ["abc"])


@pytest.mark.parametrize("size", [8, 20])
def test_weights_of_another_shape_than_config_json_has_are_named_with_both(tmp_path, size):
    model = make_model(tmp_path)
    config = read_json(model / "config.json")
    rows = config["vocab_size"]
    write_json(model / "config.json", {**config, "vocab_size": size})
    shapes = rf"lm_head\.weight is \[{rows}, 16\] in it, .* config\.json \[{size}, 16\]"
    with pytest.raises(ScoringError, match=shapes):
        clpstream.score(model, ["abc"])


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    model = make_model(tmp_path)
    config = read_json(model / "config.json")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    write_json(model / "config.json", {**config, "model_type": "own", "auto_map": auto_map})
    (model / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ScoringError, match="code in the checkpoint"):
        clpstream.score(model, ["abc"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda model: (model / "model.safetensors").unlink(), "safetensors"),
        (lambda model: (model / "config.json").unlink(), "config.json"),
        (lambda model: shutil.rmtree(model), "no such directory"),
        (lambda model: write_tokenizer(model, [*LETTERS, "x", "y", "z"]), "does not belong"),
        (lambda model: change_weights(model, "model.norm.weight", lambda w: w.fill_(math.nan)),
         "NaN"),
    ],
)  # fmt: skip
def test_a_damaged_model_is_one_line(tmp_path, damage, message):
    model = make_model(tmp_path / "model")
    damage(model)
    with pytest.raises(ClpstreamError, match=message) as error:
        clpstream.score(model, ["abcxyz"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 257}, "256 tokens"),
        ({"context": 1}, "2 tokens or more"),
        ({"context": 10, "stride": 10}, "from 1 to 9"),
        ({"stride": 0}, "from 1 to 255"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ScoringError, match=message):
        clpstream.score(HELPER, TEXTS, **options)


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [("cuda", 0, "no GPU"), ("cuda:2", 2, "2 GPUs"), ("abacus", 0, "abacus.*auto, cpu, cuda")],
)
def test_a_device_that_is_not_there(device, gpus, message, monkeypatch):
    monkeypatch.setattr(scores, "_forget_peak", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ClpstreamError, match=message):
        clpstream.score(HELPER, TEXTS, device=device)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert clpstream.score(HELPER, TEXTS[:1]).device == "cpu"
