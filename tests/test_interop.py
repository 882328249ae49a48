"""What transformers makes of the target: it loads whole, and every row is what it should be.

The truth in these tests is transformers, the tokenizers library and float64 formulas; of clpstream
only `convert` is used, and the built-in pair.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from make import read_json, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from clpstream.demo import HELPER, SOURCE, run_demo

_WHY = "needs the interop extra: pip install 'clpstream[interop]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=_WHY)
bytes_to_unicode = pytest.importorskip("transformers.convert_slow_tokenizer").bytes_to_unicode

pytestmark = pytest.mark.interop

ENGLISH = """\
The old house stands in the garden, and the children play in the street until the evening.
In the morning the sun shines on the water, and a small boat sails to the island in the sea.
She reads the newspaper in the kitchen while the coffee is hot and the radio plays music.
An information about the computer: choose the window in the menu and press the button.
They are working on the new bridge in the north of the town, and the work is nearly done.
What is the name of the student who found the library in Berlin and wrote the long letter?
The museum in the centre has an exhibition, and in summer the museum is open in the night.
(Since 1989 the town has grown by 1,500 people; in 1989 there were 2,500.)
"""
GERMAN = """\
Das alte Haus steht im Garten, und die Kinder spielen bis zum Abend auf der Straße in der Sonne.
Am Morgen scheint die Sonne über dem Wasser, und ein kleines Boot fährt zu der Insel in der See.
Sie liest in der Küche die Zeitung, während der Kaffee heiß ist und das Radio Musik spielt.
Eine Information über den Computer: wählen Sie das Fenster im Menü und drücken Sie die Taste.
Sie arbeiten an der neuen Brücke im Norden der Stadt, und die Arbeit ist beinahe getan.
Wie ist der Name der Studentin, die in Berlin die Bibliothek fand und den Brief schrieb?
Das Museum in der Mitte hat eine Ausstellung, und im Sommer ist das Museum in der Nacht offen.
(Seit 1989 ist die Stadt um 1.500 Menschen gewachsen; 1989 waren es 2.500.)
"""
SAMPLES = [
    "Wählen Sie die Straße über dem Müller-Weg in Köln!",
    "Größe: 3,50 €  👍🏽 ja\n\n\tund weiter\r\n",
    "(the house and das Haus) <tool>1989: 1.500",
    "",
]
ENGLISH_SPECIAL = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|unknown|>",
                   "pad": "<|padding|>"}  # fmt: skip
GERMAN_SPECIAL = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
PLAIN = ["<tool>", "Größe:"]
"""Added to the tokenizers that are trained here, as tokens that are text and not special."""
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]

_GPT_NEOX = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
_LLAMA = {**_GPT_NEOX, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gpt_neox": _GPT_NEOX,
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "word_embed_proj_dim": 16},
}  # fmt: skip
SMALL_SHARDS = "20KB"
REPLACED = {"qwen2"}
"""AutoTokenizer of transformers 5 reads any tokenizer of these model types as the type's own."""


# --- making models and tokenizers ----------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """A trained tokenizer, in the directory where transformers saved it."""

    directory: Path
    tokenizer: Tokenizer
    special: Mapping[str, str]
    named: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)

    @property
    def rows(self) -> int:
        return max(self.ids.values()) + 1

    @cached_property
    def roles(self) -> dict[str, int]:
        return {role: self.ids[piece] for role, piece in self.special.items()}

    @property
    def model_ids(self) -> dict[str, int | None]:
        return {f"{role}_token_id": self.roles.get(role) for role in ("bos", "eos", "pad")}

    def text(self) -> dict[int, bytes]:
        """The bytes that each token adds to a text, but for special tokens, which add none."""
        special = {*self.special.values(), *self.named}
        byte_level = isinstance(self.tokenizer.decoder, decoders.ByteLevel)
        word_piece = isinstance(self.tokenizer.decoder, decoders.WordPiece)
        text = {}
        for piece, token in self.ids.items():
            if piece in special:
                continue
            if piece in PLAIN:
                text[token] = piece.encode()
            elif byte_level:
                text[token] = bytes(BYTE_OF[character] for character in piece)
            elif piece in BYTE_PIECES:
                text[token] = bytes([BYTE_PIECES.index(piece)])
            elif word_piece and self._stands_against_a_word(piece):
                text[token] = piece.encode()
            else:  # after another piece, so that nothing is stripped
                text[token] = self.tokenizer.decoder.decode(["a", piece])[1:].encode()
        return text

    def _stands_against_a_word(self, piece: str) -> bool:
        """Whether BERT's pre-tokenizer finds the piece in a text without a space before it."""
        parts = [part for part, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str("a" + piece)]
        return parts == ["a", piece]


def train(kind: str, text: str, special: list[str], unknown: str) -> Tokenizer:
    """A small tokenizer as the families have them: GPT-2, sentencepiece BPE, Unigram, BERT."""
    size = {"vocab_size": 420, "special_tokens": special, "show_progress": False}
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **size)
    elif kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(fuse_unk=True))
        tokenizer.pre_tokenizer = metaspace
        trainer = trainers.BpeTrainer(**size)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = metaspace
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(unk_token=unknown, **size)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**size)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    if kind == "metaspace":  # the byte pieces come after the special tokens, as in Llama 2
        state = json.loads(tokenizer.to_str())
        pieces = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
        pieces[len(special) : len(special)] = BYTE_PIECES
        state["model"]["vocab"] = {piece: token for token, piece in enumerate(pieces)}
        state["model"]["byte_fallback"] = True
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    return tokenizer


def make_language(
    directory: Path, kind: str, text: str, special: Mapping[str, str], *named: str
) -> Language:
    """Train a tokenizer and let transformers save it; `named` are special without a role."""
    tokens = list(dict.fromkeys([*special.values(), *named]))
    tokenizer = train(kind, text, tokens, special.get("unk", ""))
    if special.get("bos") == "<s>":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
        )
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(named),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": piece for role, piece in special.items()},
    )
    saved.add_tokens(PLAIN)
    saved.save_pretrained(directory)
    truth = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return Language(directory, truth, dict(special), named)


def save_model(
    directory: Path,
    language: Language,
    family: str,
    *,
    tied: bool = True,
    dtype: str = "float32",
    padded_to: int = 1,
    max_shard_size: str = "1GB",
) -> Path:
    """A random model with a tokenizer's files beside it, saved by transformers."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=-(-language.rows // padded_to) * padded_to,
        tie_word_embeddings=tied,
        **language.model_ids,
        **SHAPES[family],
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    save_trained(model, directory, language, max_shard_size)
    return directory


def save_trained(model: Any, directory: Path, language: Language, max_shard_size: str) -> None:
    """Save with a direction that all vocabulary rows share, as trained embeddings have one."""
    with torch.no_grad():
        for table in tables(model).values():
            table += 0.03 * torch.randn(table.shape[1])
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    shutil.copytree(language.directory, directory, dirs_exist_ok=True)


# --- looking at them -----------------------------------------------------------------------------


def load(directory: Path, kind: Any = None) -> Any:
    """The model, after a look at what transformers says about its loading."""
    kind = kind or transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(directory, output_loading_info=True)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"} <= info.keys()
    assert not any(info.values()), info
    return model.eval()


def tables(model: Any) -> dict[str, Any]:
    """Input embeddings and, where it is not the same tensor, the head."""
    found = {
        "input embeddings": model.get_input_embeddings().weight,
        "head": model.get_output_embeddings().weight,
    }
    if is_tied(model):
        del found["head"]
    return found


def is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def body(model: Any) -> dict[str, Any]:
    """Everything in the state dict that is not a vocabulary table."""
    places = {table.data_ptr() for table in tables(model).values()}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.data_ptr() not in places
    }


def same_bits(a: Any, b: Any) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b))


def bits(tensor: Any) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def read_shards(directory: Path) -> dict[str, dict[str, Any]]:
    """File -> name -> tensor."""
    return {
        path.name: safetensors_torch.load_file(path)
        for path in sorted(directory.glob("*.safetensors"))
    }


def read_tensors(directory: Path) -> dict[str, Any]:
    return {name: t for shard in read_shards(directory).values() for name, t in shard.items()}


# --- the truth -----------------------------------------------------------------------------------


def overlap(source: Language, target: Language) -> dict[int, int]:
    """Target id -> source id: special tokens by role, then name; the others by their bytes."""
    source_text, target_text = source.text(), target.text()
    by_bytes: dict[bytes, int] = {}
    real_first = sorted(source_text, key=lambda token: (is_byte_piece(source, token), token))
    for token in real_first:
        by_bytes.setdefault(source_text[token], token)
    found = {}
    for piece, token in target.ids.items():
        role = next((r for r, own in target.roles.items() if own == token), None)
        same_name = source.ids.get(piece)
        if token in target_text:
            text = target_text[token]
            written_alike = same_name is not None and source_text.get(same_name) == text
            match = same_name if written_alike else by_bytes.get(text)
        elif role in source.roles:
            match = source.roles[role]
        else:
            match = same_name if piece in source.named else None
        if match is not None:
            found[token] = match
    return found


def is_byte_piece(language: Language, token: int) -> bool:
    return language.tokenizer.id_to_token(token) in BYTE_PIECES


def formula(method: str, helper: Any, anchors: Any, missing: Any, table: Any) -> tuple[Any, Any]:
    """The missing rows in float64, from the helper's embeddings and the anchors' rows.

    And which of them are well conditioned: in clp, the sum of a row's cosines may be near zero.
    """
    center = helper[anchors].mean(axis=0) if method == "knn" else 0
    units = helper - center
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    scores = units[missing] @ units[anchors].T
    if method == "clp":
        well = scores.mean(axis=1) > 0.05 * np.sqrt(np.square(scores).mean(axis=1))
        return scores @ table / scores.sum(axis=1, keepdims=True), well
    best = np.argsort(-scores, axis=1)[:, :10]
    weights = np.exp(np.take_along_axis(scores, best, axis=1) / 0.1)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.einsum("mk,mkd->md", weights, table[best])
    return rows, np.ones(len(missing), bool)


def check_rows(
    method: str, old: Any, new: Any, helper: Any, shared: Mapping[int, int], rows: int
) -> None:
    """Every row of a vocabulary table: copied bit for bit, or as the formula says."""
    assert new.shape == (rows, old.shape[1])
    anchors = np.array(sorted(shared))
    missing = np.setdiff1d(np.arange(rows), anchors)
    assert len(anchors) > 20
    kept = old[[shared[token] for token in anchors]]
    assert same_bits(new[anchors], kept)
    expected, well = formula(method, to_double(helper), anchors, missing, to_double(kept))
    assert well.sum() > 20
    assert well.mean() > 0.9
    made = to_double(new[missing])
    rounding = torch.finfo(new.dtype).eps / 2
    scale = np.linalg.norm(expected, axis=1, keepdims=True)
    worst = np.abs(made - expected) - rounding * np.abs(expected) - 1e-5 * scale
    assert worst[well].max() <= 0


def followed(helper: Any, old: Any, role: str, method: str) -> Any:
    """The helper's table that a table of the source follows.

    A head the helper's head, and one that is both too; but in clp that has the input embeddings.
    """
    is_input = role == "input embeddings"
    if (method == "clp" and is_tied(old)) or (is_input and not is_tied(old)):
        return helper.get_input_embeddings().weight
    return helper.get_output_embeddings().weight


def to_double(tensor: Any) -> Any:
    return tensor.detach().to(torch.float64).numpy()


def check_encodes(directory: Path, truth: Tokenizer) -> None:
    """The ids and the text that transformers gives are those of the tokenizers library."""
    kind: Any = transformers.AutoTokenizer
    if read_json(directory / "config.json")["model_type"] in REPLACED:
        kind = transformers.PreTrainedTokenizerFast
    loaded = kind.from_pretrained(directory)
    for sample in SAMPLES:
        ids = truth.encode(sample).ids
        assert loaded(sample)["input_ids"] == ids, type(loaded)
        again = loaded.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert again == truth.decode(ids)


def check_runs(model: Any, directory: Path, stop: int, rows: int) -> None:
    """A forward pass and a generation on text, which ends where it meets the stop token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(SAMPLES[0], return_tensors="pt", return_token_type_ids=False)
    prompt = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**inputs).logits
        assert logits.shape == (1, prompt, rows)
        assert torch.isfinite(logits).all()

        def allowed(_: int, ids: Any) -> list[int]:
            return [stop] if len(ids) == prompt + 2 else [t for t in range(rows) if t not in stops]

        stops = {stop, *np.atleast_1d(model.generation_config.eos_token_id)}
        out = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, prefix_allowed_tokens_fn=allowed
        )
    assert out.shape[1] == prompt + 3
    assert out[0, -1] == stop
    assert out.max() < rows


def check_ids(model: Any, language: Language) -> None:
    """Vocabulary size and special ids are those of the target's tokenizer, all over."""
    config = model.config.get_text_config()
    assert config.vocab_size == language.rows
    for key, token in language.model_ids.items():
        for ids in (getattr(config, key), getattr(model.generation_config, key)):
            assert (ids[0] if isinstance(ids, list) else ids) == token, key


# --- every family --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A source of some family, dtype and layout, its tokenizer's kind and the helper's."""

    family: str
    tied: bool
    dtype: str
    sharded: bool
    source: str
    helper: str
    method: str
    padded_to: int = 1

    def __str__(self) -> str:
        layout = f"{'tied' if self.tied else 'untied'}-{'sharded' if self.sharded else 'single'}"
        padded = "-padded" if self.padded_to > 1 else ""
        return f"{self.family}-{layout}-{self.dtype}-{self.source}-to-{self.helper}{padded}"


CASES = [
    Case("gpt2", True, "float32", False, "byte-level", "byte-level", "knn"),
    Case("gpt2", False, "bfloat16", True, "byte-level", "metaspace", "clp"),
    Case("bloom", True, "bfloat16", True, "byte-level", "unigram", "knn"),
    Case("bloom", False, "float16", False, "metaspace", "byte-level", "clp"),
    Case("llama", True, "float16", False, "metaspace", "byte-level", "knn"),
    Case("llama", False, "bfloat16", True, "metaspace", "unigram", "clp"),
    Case("mistral", True, "float32", True, "metaspace", "wordpiece", "knn"),
    Case("mistral", False, "bfloat16", False, "metaspace", "metaspace", "knn"),
    Case("qwen2", True, "bfloat16", False, "byte-level", "metaspace", "knn"),
    Case("qwen2", False, "float32", True, "byte-level", "byte-level", "clp"),
    Case("qwen3", True, "float16", True, "byte-level", "unigram", "clp"),
    Case("qwen3", False, "bfloat16", False, "byte-level", "wordpiece", "knn"),
    Case("gemma", True, "bfloat16", True, "unigram", "byte-level", "knn"),
    Case("gemma", False, "float32", False, "unigram", "metaspace", "clp"),
    Case("gpt_neox", True, "float16", False, "byte-level", "unigram", "knn"),
    Case("gpt_neox", False, "bfloat16", True, "byte-level", "byte-level", "clp"),
    Case("opt", True, "float32", True, "wordpiece", "metaspace", "clp"),
    Case("opt", False, "float16", False, "byte-level", "byte-level", "knn"),
    Case("llama", False, "float32", True, "byte-level", "unigram", "knn", padded_to=64),
    Case("gpt2", True, "bfloat16", False, "unigram", "byte-level", "clp", padded_to=64),
]
HELPERS: dict[str, dict[str, Any]] = {
    "byte-level": {"family": "gpt2"},
    "metaspace": {
        "family": "llama", "tied": False, "dtype": "bfloat16", "max_shard_size": SMALL_SHARDS
    },
    "unigram": {"family": "bloom", "dtype": "float16"},
    "wordpiece": {"family": "opt", "tied": False},
}  # fmt: skip


class Shelf:
    """Languages and helpers, each made once, when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Any] = {}

    def english(self, kind: str) -> Language:
        return self._once(
            f"en-{kind}",
            lambda place: make_language(
                place, kind, ENGLISH, ENGLISH_SPECIAL, "<|im_end|>", "<image>", "<|only|>"
            ),
        )

    def german(self, kind: str) -> Language:
        return self._once(
            f"de-{kind}",
            lambda place: make_language(
                place, kind, GERMAN, GERMAN_SPECIAL, "<image>", "<|im_end|>"
            ),
        )

    def helper(self, kind: str, padded_to: int = 1) -> Path:
        return self._once(
            f"helper-{kind}-{padded_to}",
            lambda place: save_model(
                place, self.german(kind), padded_to=padded_to, **HELPERS[kind]
            ),
        )

    def source(self, name: str, kind: str = "byte-level", **settings: Any) -> Path:
        """A single-file llama, tied or not, to be copied and changed."""
        return self._once(
            f"source-{name}",
            lambda place: save_model(place, self.english(kind), "llama", **settings),
        )

    def _once(self, name: str, make: Callable[[Path], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make(self._directory / name)
        return self._made[name]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these only lose by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@dataclass(frozen=True, repr=False)
class Converted:
    """A conversion with the models before and after, and the overlap as it should be."""

    case: Case
    source: Path
    helper: Path
    output: Path
    report: Any
    language: Language
    old: Any
    new: Any
    helper_model: Any
    shared: Mapping[int, int]


@pytest.fixture(scope="module", params=CASES, ids=str)
def converted(
    request: pytest.FixtureRequest, shelf: Shelf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    case: Case = request.param
    place = tmp_path_factory.mktemp("case")
    source = save_model(
        place / "source",
        shelf.english(case.source),
        case.family,
        tied=case.tied,
        dtype=case.dtype,
        padded_to=case.padded_to,
        max_shard_size=SMALL_SHARDS if case.sharded else "1GB",
    )
    helper = shelf.helper(case.helper, case.padded_to)
    result = plain.convert(source, helper, place / "target", method=case.method)
    yield Converted(
        case,
        source,
        helper,
        place / "target",
        result.report,
        shelf.german(case.helper),
        load(source),
        load(place / "target"),
        load(helper),
        overlap(shelf.english(case.source), shelf.german(case.helper)),
    )
    shutil.rmtree(place)


def test_it_loads_with_the_same_classes_dtype_and_tie(converted: Converted) -> None:
    old, new, case = converted.old, converted.new, converted.case
    assert type(new) is type(old)
    assert new.dtype == old.dtype == getattr(torch, case.dtype)
    assert is_tied(new) == is_tied(old) == case.tied
    assert new.config.tie_word_embeddings == case.tied


def test_the_files_are_the_source_s_and_agree_with_the_index(converted: Converted) -> None:
    old, new = read_shards(converted.source), read_shards(converted.output)
    assert (len(old) > 1) == converted.case.sharded
    assert {file: set(shard) for file, shard in new.items()} == {
        file: set(shard) for file, shard in old.items()
    }
    if converted.case.sharded:
        index = read_json(converted.output / "model.safetensors.index.json")
        tensors = [tensor for shard in new.values() for tensor in shard.values()]
        assert index["weight_map"] == {name: file for file, shard in new.items() for name in shard}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors)
        assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors)


def test_the_body_is_bit_identical(converted: Converted) -> None:
    old, new = body(converted.old), body(converted.new)
    assert old.keys() == new.keys()
    assert len(old) >= 18
    assert [name for name in old if not same_bits(old[name], new[name])] == []


def test_every_vocabulary_row_is_right(converted: Converted) -> None:
    new = tables(converted.new)
    assert len(new) == (1 if converted.case.tied else 2)
    for role, old in tables(converted.old).items():
        check_rows(
            converted.case.method,
            old,
            new[role],
            followed(converted.helper_model, converted.old, role, converted.case.method),
            converted.shared,
            converted.language.rows,
        )


def test_the_report_counts_the_overlap(converted: Converted) -> None:
    counts = converted.report.counts
    assert counts.shared == len(converted.shared)
    assert counts.target == counts.shared + counts.missing == len(converted.language.ids)
    assert not any(counts.guarded.values())


def test_size_and_ids_are_the_helper_s(converted: Converted) -> None:
    check_ids(converted.new, converted.language)


def test_it_encodes_as_the_helper(converted: Converted) -> None:
    check_encodes(converted.output, converted.language.tokenizer)
    old = {path.name: path.read_bytes() for path in converted.language.directory.iterdir()}
    assert {name: (converted.output / name).read_bytes() for name in old} == old


def test_it_runs_and_stops(converted: Converted) -> None:
    language = converted.language
    check_runs(converted.new, converted.output, language.roles["eos"], language.rows)


# --- heads ---------------------------------------------------------------------------------------


def test_both_tied_tensors_in_the_file_are_rewritten_and_stay_equal(
    shelf: Shelf, tmp_path: Path
) -> None:
    source = shutil.copytree(shelf.source("tied"), tmp_path / "source")
    add_head(source, lambda embeddings: embeddings.clone())
    output = convert(source, shelf.helper("byte-level"), tmp_path)
    tensors = read_tensors(output)
    assert same_bits(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    new = load(output)
    assert is_tied(new)
    german = shelf.german("byte-level")
    check_all_rows(shelf, load(source), new, "byte-level")
    check_runs(new, output, german.roles["eos"], german.rows)


def test_a_head_that_differs_is_kept_although_the_config_says_tied(
    shelf: Shelf, tmp_path: Path
) -> None:
    source = shutil.copytree(shelf.source("tied"), tmp_path / "source")
    torch.manual_seed(11)
    add_head(source, lambda embeddings: torch.randn_like(embeddings))
    result = plain.convert(source, shelf.helper("byte-level"), tmp_path / "target")
    old, new = load(source), load(tmp_path / "target")
    assert (is_tied(old), is_tied(new)) == (False, False)
    check_all_rows(shelf, old, new, "byte-level")
    assert any("tie_word_embeddings" in warning for warning in result.report.warnings)


def add_head(directory: Path, make: Callable[[Any], Any]) -> None:
    path = directory / "model.safetensors"
    tensors = safetensors_torch.load_file(path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = make(tensors["model.embed_tokens.weight"])
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def check_all_rows(shelf: Shelf, old: Any, new: Any, kind: str) -> None:
    """For conversions from the byte-level English vocabulary by the default method."""
    german = shelf.german(kind)
    shared = overlap(shelf.english("byte-level"), german)
    helper = load(shelf.helper(kind))
    made = tables(new)
    assert made.keys() == tables(old).keys()
    for role, table in tables(old).items():
        follows = followed(helper, old, role, "knn")
        check_rows("knn", table, made[role], follows, shared, german.rows)


def convert(source: Path, helper: Path, place: Path) -> Path:
    plain.convert(source, helper, place / "target")
    return place / "target"


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt"])
def test_names_without_the_model_s_prefix(family: str, shelf: Shelf, tmp_path: Path) -> None:
    """As gpt2 and bloom lie on the Hub: saved from the class without a head."""
    english = shelf.english("byte-level")
    full = save_model(tmp_path / "full", english, family)
    load(full).base_model.save_pretrained(tmp_path / "source")
    shutil.copytree(english.directory, tmp_path / "source", dirs_exist_ok=True)
    names = read_tensors(tmp_path / "source").keys()
    assert names.isdisjoint(read_tensors(full))
    output = convert(tmp_path / "source", shelf.helper("byte-level"), tmp_path)
    assert read_tensors(output).keys() == names
    check_all_rows(shelf, load(full), load(output), "byte-level")


def test_a_vocabulary_with_a_hole_gets_as_many_rows_as_its_largest_id_says(
    shelf: Shelf, tmp_path: Path
) -> None:
    german = shelf.german("byte-level")
    helper = shutil.copytree(shelf.helper("byte-level", 64), tmp_path / "helper")
    tokenizer = read_json(helper / "tokenizer.json")
    tokenizer["added_tokens"][-1]["id"] += 3
    write_json(helper / "tokenizer.json", tokenizer)
    assert tokenizer["added_tokens"][-1]["content"] == PLAIN[-1]
    new = load(convert(shelf.source("tied"), helper, tmp_path))
    rows = german.rows + 3
    assert new.config.vocab_size == len(new.get_input_embeddings().weight) == rows
    with torch.no_grad():
        assert torch.isfinite(new(torch.arange(rows)[None, -9:]).logits).all()


# --- token ids in configs ------------------------------------------------------------------------


def test_every_stop_token_of_a_list_stops(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf.source("untied", tied=False), tmp_path / "source")
    english, german = shelf.english("byte-level"), shelf.german("unigram")
    stops = [english.ids[piece] for piece in ("<|endoftext|>", "<|only|>", "<|im_end|>")]
    for file in ("config.json", "generation_config.json"):
        write_json(source / file, {**read_json(source / file), "eos_token_id": stops})
    result = plain.convert(source, shelf.helper("unigram"), tmp_path / "target")
    new, shared = load(tmp_path / "target"), overlap(english, german)
    found = new.generation_config.eos_token_id
    assert found[0] == german.ids["</s>"]
    assert set(found) == {token for token, old in shared.items() if old in stops}
    assert set(found) >= {german.ids["</s>"], german.ids["<|im_end|>"]}
    for stop in found:
        check_runs(new, tmp_path / "target", stop, german.rows)
    warnings = [w for w in result.report.warnings if "eos_token_id" in w and f"[{stops[1]}]" in w]
    assert len(warnings) == 2  # one for each file: the target has no <|only|>


def test_a_model_that_ends_its_text_still_does(shelf: Shelf, tmp_path: Path) -> None:
    """Its bos and eos are one token; the helper's are two, which get the same row."""
    english = shelf.english("byte-level")
    source = save_model(tmp_path / "source", english, "gpt2")
    model = load(source)
    with torch.no_grad():  # whatever the text, the last state is the row of eos
        last, eos = model.transformer.ln_f, model.transformer.wte.weight[english.roles["eos"]]
        last.weight.zero_()
        last.bias.copy_(eos / eos.norm())
        eos.copy_(last.bias)
    model.save_pretrained(source)
    output = convert(source, shelf.helper("byte-level"), tmp_path)
    for directory in (source, output):
        inputs = transformers.AutoTokenizer.from_pretrained(directory)(
            SAMPLES[0], return_tensors="pt"
        )
        out = load(directory).generate(**inputs, max_new_tokens=5, do_sample=False)
        assert out.shape[1] == inputs["input_ids"].shape[1] + 1


def test_without_a_generation_config_it_stops_all_the_same(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf.source("tied"), tmp_path / "source")
    (source / "generation_config.json").unlink()
    output = convert(source, shelf.helper("metaspace"), tmp_path)
    new, german = load(output), shelf.german("metaspace")
    check_ids(new, german)
    check_runs(new, output, german.roles["eos"], german.rows)


@pytest.mark.parametrize("family", ["gemma", "llama", "opt"])
def test_ids_that_the_source_leaves_to_its_class_become_the_helper_s(
    family: str, shelf: Shelf, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "source", shelf.english("byte-level"), family)
    config = read_json(source / "config.json")
    write_json(source / "config.json", {k: v for k, v in config.items() if "token_id" not in k})
    output = convert(source, shelf.helper("byte-level"), tmp_path)
    new, german = load(output), shelf.german("byte-level")
    check_ids(new, german)
    check_runs(new, output, german.roles["eos"], german.rows)


@pytest.mark.parametrize("family", ["gemma", "llama", "opt"])
def test_roles_that_the_helper_lacks_are_its_eos_token_s(family: str, tmp_path: Path) -> None:
    special = {"bos": "<|start|>", "eos": "<|end|>", "pad": "<|padding|>"}
    english = make_language(tmp_path / "en", "byte-level", ENGLISH, special)
    language = make_language(tmp_path / "de", "byte-level", GERMAN, {"eos": "</s>"})
    helper = save_model(tmp_path / "helper", language, "gpt2")
    source = save_model(tmp_path / "source", english, family)
    output = convert(source, helper, tmp_path)
    new = load(output)
    assert language.roles == {"eos": 0}
    for config in (new.config.get_text_config(), new.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 0)
    check_runs(new, output, 0, language.rows)


# --- nested configs ------------------------------------------------------------------------------


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
NESTED: dict[str, dict[str, Any]] = {
    "Gemma3": {
        "text_config": {**SHAPES["gemma"], "layer_types": ["full_attention"] * 2},
        "vision_config": {**VISION, "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "Llava": {
        "text_config": {**SHAPES["llama"], "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
    },
}


@pytest.mark.parametrize("name", NESTED)
def test_a_model_for_images_and_text(name: str, shelf: Shelf, tmp_path: Path) -> None:
    english, german = shelf.english("byte-level"), shelf.german("metaspace")
    parts = {**NESTED[name], "image_token_index": english.ids["<image>"]}
    parts["text_config"] |= {"vocab_size": english.rows, **english.model_ids}
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    torch.manual_seed(3)
    model = kind(getattr(transformers, f"{name}Config")(**parts))
    save_trained(model, tmp_path / "source", english, SMALL_SHARDS)
    output = convert(tmp_path / "source", shelf.helper("metaspace"), tmp_path)
    old, new = load(tmp_path / "source", kind), load(output, kind)
    assert is_tied(new) == is_tied(old) == (name == "Gemma3")
    check_ids(new, german)
    assert new.config.image_token_id == german.ids["<image>"]
    check_all_rows(shelf, old, new, "metaspace")
    before, after = body(old), body(new)
    assert [key for key in before if not same_bits(before[key], after[key])] == []
    check_encodes(output, german.tokenizer)
    check_runs(new, output, german.roles["eos"], german.rows)
    vision = {path: read_json(path / "config.json")["vision_config"] for path in (
        tmp_path / "source", output)}  # fmt: skip
    assert vision[output] == vision[tmp_path / "source"]


# --- tokenizer classes ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_a_tokenizer_json_alone_is_enough(
    family: str, kind: str, shelf: Shelf, tmp_path: Path
) -> None:
    """No tokenizer class is named then, and the model type's own would read it as its own."""
    helper = shutil.copytree(shelf.helper(kind), tmp_path / "helper")
    (helper / "tokenizer_config.json").unlink()
    source = save_model(tmp_path / "source", shelf.english("byte-level"), family)
    config = read_json(source / "config.json")
    write_json(source / "config.json", {**config, "tokenizer_class": "LlamaTokenizer"})
    check_encodes(convert(source, helper, tmp_path), shelf.german(kind).tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "gemma", "gpt_neox", "mistral"])
@pytest.mark.parametrize(
    ("kind", "name"), [("byte-level", "GPT2TokenizerFast"), ("metaspace", "LlamaTokenizerFast")]
)
def test_the_class_that_the_helper_names_is_used(
    family: str, kind: str, name: str, shelf: Shelf, tmp_path: Path
) -> None:
    helper = shutil.copytree(shelf.helper(kind), tmp_path / "helper")
    settings = read_json(helper / "tokenizer_config.json")
    write_json(helper / "tokenizer_config.json", {**settings, "tokenizer_class": name})
    source = save_model(tmp_path / "source", shelf.english("unigram"), family)
    output = convert(source, helper, tmp_path)
    new, old = (transformers.AutoTokenizer.from_pretrained(path) for path in (output, helper))
    for sample in SAMPLES:
        as_written = shelf.german(kind).tokenizer.encode(sample).ids
        assert new(sample)["input_ids"] in (old(sample)["input_ids"], as_written)


def test_a_warning_tells_where_auto_tokenizer_reads_the_wrong_tokenizer(
    shelf: Shelf, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "source", shelf.english("byte-level"), "qwen2")
    result = plain.convert(source, shelf.helper("metaspace"), tmp_path / "target")
    assert any("AutoTokenizer" in warning for warning in result.report.warnings)


# --- other files, other dtypes -------------------------------------------------------------------


def test_code_and_licence_come_from_the_source_and_the_chat_template_from_the_helper(
    shelf: Shelf, tmp_path: Path
) -> None:
    source = shutil.copytree(shelf.source("tied"), tmp_path / "source")
    helper = shutil.copytree(shelf.helper("byte-level"), tmp_path / "helper")
    kept = {"configuration_x.py": "raise SystemExit('it ran')\n", "LICENSE": "Do what you like.\n"}
    stale = {"merges.txt": "#version: 0.2\n", "tokenizer.model": "old", "added_tokens.json": "{}"}
    for name, content in {**kept, **stale, "chat_template.jinja": "old"}.items():
        (source / name).write_text(content, "utf-8")
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    (helper / "chat_template.jinja").write_text(template, "utf-8")
    auto_map = {"AutoConfig": "configuration_x.XConfig"}
    write_json(source / "config.json", {**read_json(source / "config.json"), "auto_map": auto_map})
    output = convert(source, helper, tmp_path)
    assert {name: (output / name).read_text("utf-8") for name in kept} == kept
    assert not any((output / name).exists() for name in stale)
    assert read_json(output / "config.json")["auto_map"] == auto_map
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    message = [{"role": "user", "content": "Guten Tag"}]
    text = tokenizer.apply_chat_template(message, tokenize=False)
    assert text == "<s>user: Guten Tag</s>"
    load(output)


def test_a_stale_chat_template_is_left_behind(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf.source("tied"), tmp_path / "source")
    (source / "chat_template.jinja").write_text("old", "utf-8")
    output = convert(source, shelf.helper("byte-level"), tmp_path)
    assert not (output / "chat_template.jinja").exists()
    assert transformers.AutoTokenizer.from_pretrained(output).chat_template is None


def test_tensors_that_numpy_can_not_read_pass_through(shelf: Shelf, tmp_path: Path) -> None:
    source = shutil.copytree(shelf.source("untied", tied=False), tmp_path / "source")
    path = source / "model.safetensors"
    tensors = safetensors_torch.load_file(path)
    layer = re.compile(r"layers\.(\d)\.\w+\.\w+_proj\.weight")
    small = [torch.float8_e4m3fn, torch.float8_e5m2]
    for name in [name for name in tensors if layer.search(name)]:
        tensors[name] = tensors[name].to(small[int(layer.search(name)[1])])
        tensors[name + "_scale_inv"] = torch.rand(1, 1)
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})
    output = convert(source, shelf.helper("byte-level"), tmp_path)
    written = read_tensors(output)
    assert written.keys() == tensors.keys()
    assert {t.dtype for t in written.values()} == {*small, torch.float32}
    changed = {name for name, tensor in tensors.items() if not same_bits(tensor, written[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


# --- the built-in pair ---------------------------------------------------------------------------


def demo_language(directory: Path) -> Language:
    settings = read_json(directory / "tokenizer_config.json")
    roles = ("bos", "eos", "pad", "unk")
    special = {role: settings[f"{role}_token"] for role in roles if f"{role}_token" in settings}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return Language(directory, tokenizer, special, ())


@pytest.mark.parametrize("method", ["knn", "clp"])
def test_the_demo_loads_and_speaks(method: str, tmp_path: Path) -> None:
    run_demo(tmp_path / "demo", method=method, shared="copy")
    english, german = demo_language(SOURCE), demo_language(HELPER)
    old, new, helper = load(SOURCE), load(tmp_path / "demo"), load(HELPER)
    assert is_tied(new) == is_tied(old)
    shared, made = overlap(english, german), tables(new)
    for role, table in tables(old).items():
        follows = followed(helper, old, role, method)
        check_rows(method, table, made[role], follows, shared, german.rows)
    before, after = body(old), body(new)
    assert [name for name in before if not same_bits(before[name], after[name])] == []
    for role in ("bos", "eos"):
        assert getattr(new.config, f"{role}_token_id") == german.roles[role]
    check_encodes(tmp_path / "demo", german.tokenizer)
    check_runs(new, tmp_path / "demo", german.roles["eos"], german.rows)
