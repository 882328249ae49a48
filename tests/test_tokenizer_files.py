"""Every tokenizer file is read with the ids and the text that its own library gives."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from make import (
    byte_level,
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clpstream import ClpstreamError, VocabularyError, match, read_vocabulary

TEXT = [
    "The house is big, the garden is small: 12 trees.",
    "Das Haus ist groß, der Garten klein: 12 Bäume.",
    "In Spanien hält man Siesta!",
] * 3
LINE = "the Haus is groß in Spanien"
SPECIAL = ["<unk>", "<s>", "</s>"]


def train_bpe(special: list[str], suffix: str = "", is_byte_level: bool = True) -> Tokenizer:
    end = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**end))
    words = pre_tokenizers.Whitespace()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if is_byte_level:
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), level]) if suffix else level
        )
    else:
        tokenizer.pre_tokenizer = words
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=580,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        **end,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def save_model(tokenizer: Tokenizer, directory: Path, model_type: str = "") -> Path:
    """vocab.json and merges.txt, or vocab.txt, as the tokenizers library writes them."""
    directory.mkdir(exist_ok=True)
    tokenizer.model.save(str(directory))
    write_json(directory / "config.json", {"model_type": model_type})
    return directory


def train_sentencepiece(path: Path, **settings: Any) -> Any:
    spm = pytest.importorskip("sentencepiece")
    path.parent.mkdir(exist_ok=True)
    model = io.BytesIO()
    settings = {"vocab_size": 330, "hard_vocab_limit": False, "minloglevel": 3, **settings}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return spm.SentencePieceProcessor(model_file=str(path))


def write_tiktoken(path: Path, tokens: Iterable[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")


def write_tekken(path: Path, tokens: Iterable[bytes], special: int, **settings: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    size = special + len(vocabulary)
    config = {"default_vocab_size": size, "default_num_special_tokens": special}
    write_json(path, {"config": {**config, **settings.pop("config", {})}, "vocab": vocabulary})
    write_json(path, {**read_json(path), **settings})


BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b" und", " über".encode(), "中".encode()[:2]]


def test_vocab_json_of_byte_level_bpe(tmp_path):
    tokenizer = train_bpe(["<|endoftext|>"])
    vocabulary = read_vocabulary(save_model(tokenizer, tmp_path / "a"))
    assert vocabulary.path == tmp_path / "a" / "vocab.json"
    assert {piece: token for token, piece in enumerate(vocabulary.pieces)} == tokenizer.get_vocab()
    assert text_of(vocabulary, tokenizer.encode(LINE).ids) == LINE
    assert vocabulary.text[0] is None
    assert vocabulary.roles == {"eos": 0, "bos": 0}


def text_of(vocabulary: Any, ids: list[int]) -> str:
    return b"".join(vocabulary.text[token] for token in ids).decode()


@pytest.mark.parametrize("is_byte_level", [True, False])
def test_vocab_json_of_bpe_that_marks_the_ends_of_words(is_byte_level, tmp_path):
    """CLIP writes the byte alphabet and XLM plain characters, both with `</w>`."""
    tokenizer = train_bpe(["<unk>"], "</w>", is_byte_level)
    vocabulary = read_vocabulary(save_model(tokenizer, tmp_path / "a"))
    assert text_of(vocabulary, tokenizer.encode(LINE).ids) == LINE + " "


def test_tokenizer_json_of_clip_is_read_like_its_vocab_json(tmp_path):
    tokenizer = train_bpe(["<|endoftext|>"], "</w>")
    tokenizer.decoder = decoders.ByteLevel()
    old = read_vocabulary(save_model(tokenizer, tmp_path / "a"))
    tokenizer.save(str(tmp_path / "a" / "tokenizer.json"))
    new = read_vocabulary(tmp_path / "a")
    assert new.path.name == "tokenizer.json"
    assert new.text == old.text


def test_vocab_json_of_sentencepiece_pieces(tmp_path):
    """Marian and M2M100: the .model beside it only splits; its ids are not the model's."""
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "vocab.json", {"</s>": 0, "<unk>": 1, "▁über": 2, "ung": 3})
    (tmp_path / "a" / "source.spm").write_bytes(b"\n")
    assert read_vocabulary(tmp_path / "a").text == (None, None, " über".encode(), b"ung")


def test_vocab_json_of_whole_words(tmp_path):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "vocab.json", {"<unk>": 0, "über": 1, ",": 2, "é": 3})
    assert read_vocabulary(tmp_path / "a").text == (None, " über".encode(), b",", " é".encode())


def test_vocab_json_of_bpe_that_marks_what_goes_on(tmp_path):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "vocab.json", {"<unk>": 0, "gar@@": 1, "den": 2, "s@@": 3})
    (tmp_path / "a" / "merges.txt").write_text("#version\n")
    assert read_vocabulary(tmp_path / "a").text == (None, b"gar", b"den ", b"s")


def test_word_level_tokenizer_json_has_words_that_begin_with_a_space(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "Haus": 1, ",": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "a").mkdir()
    tokenizer.save(str(tmp_path / "a" / "tokenizer.json"))
    assert read_vocabulary(tmp_path / "a").text[1:] == (b" Haus", b",")
    write_tokenizer(tmp_path / "b", [" Haus"], special={})
    overlap = match(read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b"))
    assert overlap.source_of.tolist() == [1]


def test_vocab_txt_is_a_token_a_line(tmp_path):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    vocabulary = read_vocabulary(save_model(tokenizer, tmp_path / "a"))
    assert vocabulary.path.name == "vocab.txt"
    assert {piece: token for token, piece in enumerate(vocabulary.pieces)} == tokenizer.get_vocab()
    assert text_of(vocabulary, tokenizer.encode(LINE).ids) == " " + LINE
    assert vocabulary.roles == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_vocab_txt_keeps_odd_lines_and_repeated_ones(tmp_path):
    (tmp_path / "a").mkdir()
    content = "[UNK]\r\nx\r\n\u2028\r\nx\r\n##y\r\n"
    (tmp_path / "a" / "vocab.txt").write_bytes(content.encode())
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.pieces == ("[UNK]", "x", "\u2028", "x", "##y")
    assert vocabulary.text == (None, b" x", " \u2028".encode(), b" x", b"y")


def test_sentencepiece_models_are_read_as_their_library_reads_them(tmp_path):
    model = train_sentencepiece(
        tmp_path / "a" / "tokenizer.model",
        byte_fallback=True, control_symbols=["<ctrl>"], user_defined_symbols=["▁▁", "<user>"],
        remove_extra_whitespaces=False,
    )  # fmt: skip
    vocabulary = read_vocabulary(tmp_path / "a")
    assert list(vocabulary.pieces) == [model.id_to_piece(token) for token in range(len(model))]
    for line in (LINE, "中 <user> x", "two  spaces"):
        ids = model.encode(line)
        assert text_of(vocabulary, ids) == " " + line
    for token, text in enumerate(vocabulary.text):
        assert (text is None) == (model.is_control(token) or model.is_unknown(token))
    assert vocabulary.roles == {"unk": 0, "bos": 1, "eos": 2}


def test_without_sentencepiece_the_error_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(VocabularyError, match=r"tokenizer\.model.*clpstream\[sentencepiece\]"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "NllbTokenizer"}])
def test_ids_that_only_code_knows_are_refused(settings, tmp_path):
    train_sentencepiece(tmp_path / "sentencepiece.bpe.model")
    write_json(tmp_path / "tokenizer_config.json", settings)
    with pytest.raises(VocabularyError, match=r"sentencepiece\.bpe\.model.*tokenizer\.json"):
        read_vocabulary(tmp_path)


def test_phobert_s_counted_words_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("và 12\n")
    (tmp_path / "bpe.codes").write_text("v à 12\n")
    with pytest.raises(VocabularyError, match=r"vocab\.txt.*bpe\.codes"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model"])
def test_tiktoken_files(name, tmp_path):
    write_tiktoken(tmp_path / "a" / name, [*BYTES, *WORDS])
    end = {"content": "<|end|>", "special": True}
    write_json(
        tmp_path / "a" / "tokenizer_config.json",
        {"added_tokens_decoder": {"260": end}, "eos_token": "<|end|>", "pad_token": "<|pad|>"},
    )
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.path.name == name
    assert vocabulary.text == (*BYTES, *WORDS, None, None)
    assert vocabulary.pieces[256:] == ("Ġund", byte_level(" über"), "\xe4\xb8", None, "<|end|>")
    assert vocabulary.roles == {"eos": 260}
    assert vocabulary.absent == {"pad": "<|pad|>"}


def test_a_tiktoken_files_special_tokens_are_not_guessed_but_taken_from_the_configs(tmp_path):
    """Qwen's file has '<s>' as text; <|endoftext|> is in its code, and its id in the configs."""
    write_tiktoken(tmp_path / "qwen.tiktoken", [b"a", b"</s>", b"<s>"])
    with (tmp_path / "qwen.tiktoken").open("ab") as file:
        file.write(b"= 3\n")  # as at the end of Whisper's: a token of no bytes
    write_json(tmp_path / "config.json", {"bos_token_id": 1})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 4], "pad_token_id": 5})
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.text == (b"a", b"</s>", b"<s>", b"", None, None)
    assert vocabulary.pieces[4:] == (None, "<|eos|>")
    assert vocabulary.roles == {"eos": 5, "pad": 5}
    assert any("no special tokens" in note for note in vocabulary.notes)


def test_tekken_has_its_special_tokens_first_and_ends_where_it_says(tmp_path):
    special = [{"rank": 0, "token_str": "<unk>"}, {"rank": 2, "token_str": "</s>"}]
    write_tekken(
        tmp_path / "a" / "tekken.json", [*BYTES, *WORDS], 4,
        special_tokens=special, config={"default_vocab_size": 4 + 256 + 2},
    )  # fmt: skip
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.text == (None, None, None, None, *BYTES, *WORDS[:2])
    assert vocabulary.pieces[:4] == ("<unk>", "<SPECIAL_1>", "</s>", "<SPECIAL_3>")
    assert vocabulary.roles == {"unk": 0, "eos": 2}


def test_old_tekken_files_do_not_list_their_special_tokens(tmp_path):
    write_tekken(tmp_path / "a" / "tekken.json", BYTES, 30)
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.pieces[:4] == ("<unk>", "<s>", "</s>", "[INST]")
    assert vocabulary.pieces[29:31] == ("<SPECIAL_29>", "Ā")
    assert vocabulary.roles == {"unk": 0, "bos": 1, "eos": 2, "pad": 11}


def test_byte_formats_match_byte_level_bpe_by_strings_too(tmp_path):
    write_tiktoken(tmp_path / "a" / "x.tiktoken", [*BYTES, *WORDS])
    write_tekken(tmp_path / "b" / "tekken.json", [*BYTES, *WORDS], 3)
    write_tokenizer(tmp_path / "c", [*(map(chr, range(128))), " und", " über"], special={})
    a, b, c = (read_vocabulary(tmp_path / name) for name in "abc")
    assert match(a, b, "exact").rules == {"exact": 259}
    assert match(b, c, "exact").rules == {"exact": 130}
    assert match(b, c).rules == {"bytes": 130}


def test_tokenizer_json_goes_before_all_others(tmp_path):
    order = ["tokenizer.json", "tekken.json", "x.tiktoken", "vocab.json", "vocab.txt"]
    write_tokenizer(tmp_path, ["a"])
    write_tekken(tmp_path / "tekken.json", BYTES, 3)
    write_tiktoken(tmp_path / "x.tiktoken", BYTES)
    write_json(tmp_path / "vocab.json", {"a": 0})
    (tmp_path / "vocab.txt").write_text("a\n")
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    for name in order:
        assert read_vocabulary(tmp_path).path.name == name
        (tmp_path / name).unlink()


def test_merges_are_left_out_whatever_is_in_them(tmp_path):
    tokens = ['"merges": [', "]]", '"]],', "\\", "[", '"']
    ids = write_tokenizer(tmp_path, tokens, "metaspace")
    content = read_json(tmp_path / "tokenizer.json")
    pairs = [[a, b] for a in tokens for b in tokens]
    for merges in (pairs, [f"{a} {b}" for a, b in pairs], []):
        content["model"] = {**content["model"], "merges": merges, "after": 1}
        content["model"]["vocab"] = content["model"].pop("vocab")  # behind the merges
        for indent in (None, 2):
            (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=indent))
            vocabulary = read_vocabulary(tmp_path)
            assert list(vocabulary.pieces) == list(ids)


def test_a_unigram_piece_with_two_ids_keeps_both(tmp_path):
    ids = write_tokenizer(tmp_path / "a", ["x", "y"], "unigram")
    tokenizer = read_json(tmp_path / "a" / "tokenizer.json")
    tokenizer["model"]["vocab"].append(["x", -9.0])
    write_json(tmp_path / "a" / "tokenizer.json", tokenizer)
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.text == (None, b"x", b"y", b"x")
    assert len(vocabulary) == 4
    write_tokenizer(tmp_path / "b", ["x", "y"])
    other = read_vocabulary(tmp_path / "b")
    assert match(other, vocabulary).source_of.tolist() == [0, 1, 2, 1]
    used = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json")).token_to_id("x")
    assert used == ids["y"] + 1
    assert match(vocabulary, vocabulary, "exact").source_of.tolist() == [0, used, 2, used]


def test_a_token_that_loses_its_id_to_another_is_told(tmp_path):
    write_tokenizer(tmp_path, ["x", "y"])
    write_json(tmp_path / "added_tokens.json", {"z": 1})
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.pieces == ("</s>", "z", "y")
    (note,) = vocabulary.notes
    assert "'x' and 'z'" in note
    assert "tokenizer.json" in note


def test_special_tokens_that_no_file_gives_an_id_are_told(tmp_path):
    write_tokenizer(tmp_path, ["x", "<a>"])
    listed = [{"content": "<a>"}, "<b>"]
    write_json(tmp_path / "special_tokens_map.json", {"additional_special_tokens": listed})
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.text == (None, b"x", None)
    (note,) = vocabulary.notes
    assert "'<b>'" in note
    assert "<a>" not in note


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tiktoken", b"QQ== 0\nQg== x\n", ("line 2", "base64")),
        ("tokenizer.model", b"QQ== 0\n\xff\n", ("line 2", "base64")),
        ("tokenizer.model", b"\n\xff\xff\xff", ("not a sentencepiece model",)),
        ("tekken.json", b'{"config": {}}', ("tekken", "vocab")),
        ("tekken.json", b'{"config": [], "vocab": []}', ("tekken",)),
        ("vocab.json", b'{"a": "b"}', ("ids", "'a'", "'b'")),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0, "b": -5}}}', ("'b' has the id -5",)),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 7.0}}}', ("'a' has the id 7.0", "whole")),
        ("tokenizer.json", b'{"model": {"vocab": "a"}}', ("no vocabulary under 'model'",)),
        ("vocab.json", b"{}", ("empty",)),
        ("vocab.txt", b"\xff\n", ("UTF-8",)),
        ("vocab.txt", b"version https://git-lfs.github.com/spec/v1\n", ("LFS", "git lfs pull")),
        ("x.tiktoken", b"QQ== 99999999999\n", ("99999999999",)),
        ("x.tiktoken", b"", ("empty",)),
        ("tokenizer.model", b"", ("empty",)),
        ("vocab.txt", b"", ("empty",)),
        ("x.tiktoken", b"A 1\n", ("line 1", "base64")),
        ("x.tiktoken", b"QQ== " + b"9" * 5000, ("line 1", "base64")),
    ],
)  # fmt: skip
def test_files_that_are_broken_are_named(name, content, words, tmp_path, capfd):
    if "sentencepiece" in words[0]:
        pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClpstreamError) as raised:
        read_vocabulary(tmp_path)
    for word in (str(tmp_path / name), *words):
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")  # no library says more


SPM_FAMILIES = {
    "XLMRoberta": ("sentencepiece.bpe.model", {}),
    "Camembert": ("sentencepiece.bpe.model", {}),
    "Llama": ("tokenizer.model", {"byte_fallback": True, "model_type": "bpe"}),
    "T5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "DebertaV2": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]",
         "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    ),
}  # fmt: skip


@pytest.mark.interop
@pytest.mark.parametrize("family", SPM_FAMILIES)
def test_ids_of_sentencepiece_models_are_those_of_transformers(family, tmp_path):
    pytest.importorskip("google.protobuf")  # transformers reads sentencepiece models with it
    name, settings = SPM_FAMILIES[family]
    train_sentencepiece(tmp_path / name, **settings)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": f"{family}Tokenizer"})
    assert_like_transformers(tmp_path)


BPE_FAMILIES = {
    "GPT2": (["<|endoftext|>"], "", True),
    "Roberta": (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "", True),
    "CLIP": (["<|startoftext|>", "<|endoftext|>"], "</w>", True),
    "OpenAIGPT": (["<unk>"], "</w>", False),
}


@pytest.mark.interop
@pytest.mark.parametrize("family", BPE_FAMILIES)
def test_ids_of_vocab_json_are_those_of_transformers(family, tmp_path):
    save_model(train_bpe(*BPE_FAMILIES[family]), tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": f"{family}Tokenizer"})
    assert_like_transformers(tmp_path)


@pytest.mark.interop
def test_ids_of_tekken_are_those_of_transformers(tmp_path):
    special = [{"rank": 0, "token_str": "<unk>"}, {"rank": 1, "token_str": "<s>"}]
    config = {"pattern": r"\w+|\s+\w+|.", "version": "v7", "default_vocab_size": 5 + 257}
    write_tekken(
        tmp_path / "tekken.json", [*BYTES, *WORDS], 5, special_tokens=special, config=config
    )
    write_json(tmp_path / "config.json", {"model_type": "mistral"})
    assert_like_transformers(tmp_path, roles=False)


def assert_like_transformers(directory: Path, roles: bool = True) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = read_vocabulary(directory)
    assert {piece: token for token, piece in enumerate(ours.pieces)} == theirs.get_vocab()
    assert not ours.notes
    line = "the house is big in siesta"  # in small letters, as GPT-1 and CLIP write all
    ids = theirs(line, add_special_tokens=False).input_ids
    assert text_of(ours, ids).strip() == theirs.decode(ids).strip() == line
    for role, token in ours.roles.items() if roles else ():
        assert token == getattr(theirs, f"{role}_token_id")


MOVED = {"gpt2": BPE_FAMILIES["GPT2"], "roberta": BPE_FAMILIES["Roberta"]}


@pytest.mark.interop
@pytest.mark.parametrize("model_type", [*MOVED, "t5", "xlm-roberta"])
def test_a_tokenizer_without_settings_loads_in_its_new_model(model_type, tmp_path):
    """Its class followed from the type of a model that it is no longer with."""
    transformers = pytest.importorskip("transformers")
    helper, target = tmp_path / "helper", tmp_path / "target"
    if model_type in MOVED:
        save_model(train_bpe(*MOVED[model_type]), helper)
    elif model_type == "t5":
        pytest.importorskip("google.protobuf")
        train_sentencepiece(helper / "spiece.model", **SPM_FAMILIES["T5"][1])
    else:
        pytest.importorskip("google.protobuf")
        train_sentencepiece(helper / "sentencepiece.bpe.model")
    write_json(helper / "config.json", {"model_type": model_type})
    rows = random_rows(read_vocabulary(helper).size, 8, 1)
    write_checkpoint(helper, {"wte.weight": rows}, {"model_type": model_type})
    write_source(tmp_path / "source")
    convert(tmp_path / "source", helper, target)
    old, new = (transformers.AutoTokenizer.from_pretrained(place) for place in (helper, target))
    assert type(new) is type(old)
    assert new(LINE).input_ids == old(LINE).input_ids


def test_a_class_that_can_not_be_told_is_a_warning(tmp_path):
    write_tiktoken(tmp_path / "helper" / "x.tiktoken", BYTES)
    write_checkpoint(
        tmp_path / "helper", {"wte.weight": random_rows(256, 8, 1)}, {"model_type": "x"}
    )
    write_source(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "helper", tmp_path / "target").report
    assert any("x.tiktoken" in warning and "class" in warning for warning in report.warnings)
    assert (tmp_path / "target" / "x.tiktoken").exists()


def test_fuzzy_matches_are_copied_and_missing_rows_are_made_without_them(tmp_path):
    write_source(tmp_path / "source")
    write_helper(tmp_path / "helper", [*"abcdefghijklmnop", " der", " Ing", " und", "Haus"])
    ids = read_vocabulary(tmp_path / "helper").pieces
    rows = {}
    for rule in ("bytes", "fuzzy"):
        convert(tmp_path / "source", tmp_path / "helper", tmp_path / rule, match=rule)
        rows[rule] = read_tensors(tmp_path / rule)["model.embed_tokens.weight"]
    source = read_tensors(tmp_path / "source")["model.embed_tokens.weight"]
    there = read_vocabulary(tmp_path / "source").pieces.index("ing")
    here = ids.index("ĠIng")
    assert (rows["fuzzy"][here] == source[there]).all()
    others = [token for token in range(len(ids)) if token != here]
    assert (rows["fuzzy"][others] == rows["bytes"][others]).all()
    assert (rows["fuzzy"][here] != rows["bytes"][here]).any()
