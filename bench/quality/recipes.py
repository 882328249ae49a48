"""The models that are trained here: tokenizer, shape and training of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from text import SEPARATOR
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

# Words with the space before them, single digits, runs of punctuation, runs of spaces, newlines.
WORDS = r"\n|▁?\p{L}[\p{L}\p{M}]*|\p{N}|▁?[^\s▁\p{L}\p{N}]+|▁+(?=▁\p{L}|▁[^\s▁\p{L}\p{N}])|▁+|\s"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = 128
UNIGRAM_SPECIAL = ["<s>", "</s>", "<unk>"]
UNIGRAM_ALPHABET = 160


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the training of one model from that of another.

    batch: tokens in a batch. shards: files that the weights are saved in, one or two.
    """

    name: str
    train_tokenizer: Callable[[list[str], int], Tokenizer]
    config: PretrainedConfig
    bos: str
    eos: str
    unk: str | None
    context: int
    batch: int
    learning_rate: float
    shards: int
    prompt: str

    @property
    def separators(self) -> list[str]:
        """What stands between two documents."""
        return list(dict.fromkeys([self.eos, self.bos]))


def byte_level_bpe(documents: list[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def byte_fallback_bpe(documents: list[str], size: int) -> Tokenizer:
    """A BPE tokenizer as Llama 2 has it: ``▁`` for the space, bytes for what has no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(BYTES) + 1,  # the newline's piece is taken out again
        special_tokens=SPECIAL,
        limit_alphabet=ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return Tokenizer.from_str(json.dumps(_with_byte_tokens(json.loads(tokenizer.to_str()), size)))


def _with_byte_tokens(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """The tokenizer with the 256 byte tokens after the special ones, and with byte fallback.

    The newline loses its piece, so that it is written as the byte ``<0x0A>``.
    """
    model = tokenizer["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [piece for piece in ordered if piece not in {*SPECIAL, "\n"}]
    vocab = {entry: index for index, entry in enumerate([*SPECIAL, *BYTES, *pieces])}
    _check_size(len(vocab), size)
    return {**tokenizer, "model": {**model, "vocab": vocab, "byte_fallback": True}}


def unigram(documents: list[str], size: int) -> Tokenizer:
    """A Unigram tokenizer as sentencepiece makes it, with bytes for what has no piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("\u00a0", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(BYTES),
        special_tokens=UNIGRAM_SPECIAL,
        unk_token="<unk>",
        max_piece_length=16,
        show_progress=False,
    )
    lines = _lines_of_frequent_characters(documents)
    tokenizer.train_from_iterator(lines, trainer, length=len(lines))
    state = json.loads(tokenizer.to_str())
    special = len(UNIGRAM_SPECIAL)
    pieces = state["model"]["vocab"][special : size - len(BYTES)]
    vocab = [[token, 0.0] for token in [*UNIGRAM_SPECIAL, *BYTES]] + pieces
    _check_size(len(vocab), size)
    state["model"] = {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(state))


def _lines_of_frequent_characters(documents: list[str]) -> list[str]:
    """The lines apart, rare characters as spaces: newlines and these are left to the bytes."""
    lines = [line for document in documents for line in document.split("\n")]
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    frequent = {character for character, _ in counts.most_common(UNIGRAM_ALPHABET)}
    rare = {ord(character): " " for character in counts if character not in frequent}
    return [line.translate(rare) for line in lines]


def _check_size(entries: int, size: int) -> None:
    if entries != size:
        raise SystemExit(f"the vocabulary has {entries} entries, not {size}: too little text")


def _gpt2(**shape: Any) -> GPT2Config:
    """Without dropout, and tied."""
    return GPT2Config(
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True, **shape
    )


def _llama(
    vocab_size: int, width: int, inner: int, layers: int, heads: int, tied: bool, eos: int = 0
) -> LlamaConfig:
    """Whose first token begins a text, or separates two."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=eos,
    )


SOURCE_EN = Recipe(
    name="source-en",
    train_tokenizer=byte_level_bpe,
    config=_llama(4096, 192, 448, layers=3, heads=6, tied=True),
    bos=SEPARATOR,
    eos=SEPARATOR,
    unk=None,
    context=128,
    batch=2048,
    learning_rate=3e-3,
    shards=2,
    prompt="To open the file,",
)
HELPER_DE = Recipe(
    name="helper-de",
    train_tokenizer=byte_fallback_bpe,
    config=_gpt2(
        vocab_size=4096,
        n_embd=96,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
    bos="<s>",
    eos="</s>",
    unk="<unk>",
    context=256,  # as many as there are position embeddings, so that all of them are trained
    batch=4096,
    learning_rate=5e-3,
    shards=1,
    prompt="Um die Datei zu öffnen,",
)
EN_UNTIED = Recipe(
    name="en-untied",
    train_tokenizer=byte_level_bpe,
    config=_llama(8192, 256, 688, layers=4, heads=4, tied=False),
    bos=SEPARATOR,
    eos=SEPARATOR,
    unk=None,
    context=256,
    batch=4096,
    learning_rate=2e-3,
    shards=1,
    prompt="To open the file,",
)
EN_US = replace(
    EN_UNTIED,
    name="en-us",
    config=_llama(4096, 160, 432, layers=3, heads=4, tied=False),
    context=128,
    batch=2048,
    learning_rate=3e-3,
)
FR_UNTIED = Recipe(
    name="fr-untied",
    train_tokenizer=unigram,
    config=_llama(8000, 192, 512, layers=3, heads=4, tied=False, eos=1),
    bos="<s>",
    eos="</s>",
    unk="<unk>",
    context=256,
    batch=4096,
    learning_rate=3e-3,
    shards=1,
    prompt="Pour ouvrir le fichier,",
)


def _small_config(vocab_size: int, width: int, heads: int, layers: int) -> GPT2Config:
    return _gpt2(
        vocab_size=vocab_size,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=128,
        activation_function="relu",
        bos_token_id=0,
        eos_token_id=0,
    )


def _small(name: str, config: PretrainedConfig, prompt: str) -> Recipe:
    return Recipe(
        name=name,
        train_tokenizer=byte_level_bpe,
        config=config,
        bos=SEPARATOR,
        eos=SEPARATOR,
        unk=None,
        context=128,
        batch=2048,
        learning_rate=2e-3,
        shards=1,
        prompt=prompt,
    )


EN = _small("en", _small_config(8192, 320, 5, 4), "To open the file,")
DE = _small("de", _small_config(8000, 224, 4, 3), "Um die Datei zu öffnen,")


def _for_gpu(
    recipe: Recipe, name: str, config: PretrainedConfig, learning_rate: float, prompt: str
) -> Recipe:
    """A model like another's, of another size, with larger batches."""
    return replace(
        recipe, name=name, config=config, batch=16384, learning_rate=learning_rate, prompt=prompt
    )


EN_L = _for_gpu(
    EN_UNTIED,
    "en-l",
    _llama(16384, 640, 1728, layers=10, heads=10, tied=True),
    1e-3,
    EN.prompt,
)
EN_LU = _for_gpu(
    EN_UNTIED, "en-lu", _llama(12288, 320, 864, layers=6, heads=5, tied=False), 2e-3, EN.prompt
)
FR_M = _for_gpu(
    FR_UNTIED,
    "fr-m",
    _llama(8000, 224, 608, layers=3, heads=4, tied=False, eos=1),
    2e-3,
    FR_UNTIED.prompt,
)
_M = _small_config(10_000, 224, 4, 3)
RU_M = _for_gpu(DE, "ru-m", _M, 2e-3, "Чтобы открыть файл,")
JA_M = _for_gpu(DE, "ja-m", _M, 2e-3, "ファイルを開くには、")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(SOURCE_EN, HELPER_DE, EN_UNTIED, EN_US, FR_UNTIED, EN, DE),
        *(EN_L, EN_LU, FR_M, RU_M, JA_M),
    )
}
"""Every model by its name on the command line; the first two are the demo's."""
