"""Train the two small language models of the demo, on a CPU, from plain text files.

The demo shows a source model getting the vocabulary of a smaller helper model that speaks another
language. This script makes both, from nothing but text:

* ``source-en``: a Llama model with tied embeddings and a byte-level BPE tokenizer (GPT-2 style),
  saved as two safetensors shards with an index;
* ``helper-de``: a smaller GPT-2 model with tied embeddings and a BPE tokenizer with ``▁`` for the
  space and byte fallback (Llama 2 style), saved as a single safetensors file.

The text files hold documents separated by lines that read ``<|endoftext|>``. About three per cent
of the documents, chosen by a hash of their text, are held out; the loss on them is printed in bits
per byte of text. The order of the training windows depends on the seed alone. With ``--epochs`` the
number of steps does too; with ``--minutes`` it depends on how fast the machine is.

    pip install clpstream[interop]
    python bench/train_demo.py --english en.txt --german de.txt --output models --minutes 40 --bf16

Each model trains for the time given (minutes per model, one after the other; start the script twice
with ``--only source`` and ``--only helper`` to have them side by side), and takes about a minute
more for its tokenizer and the evaluation. One CPU thread each is enough: in 39 minutes on one core
with ``--bf16``, the source made three passes over 14 MB of English and the helper fourteen over
10 MB of German. ``--bf16`` is for CPUs that have bfloat16 instructions, where it takes the
throughput from about 5500 to about 8900 tokens per second for the source (and from 12000 to 17000
for the helper); on others, leave it out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

SEED = 20240229
SEPARATOR = "<|endoftext|>"
VOCAB_SIZE = 4096
HELD_OUT = 0.03
TOKENS_AT_ONCE = 1024  # a batch's gradient is summed over parts whose logits fit in the cache
WARMUP_STEPS = 100
FINAL_LR = 0.05

# Words with the space before them, single digits, runs of punctuation, runs of spaces, newlines.
HELPER_SPLIT = (
    r"\n|▁?\p{L}[\p{L}\p{M}]*|\p{N}|▁?[^\s▁\p{L}\p{N}]+|▁+(?=▁\p{L}|▁[^\s▁\p{L}\p{N}])|▁+|\s"
)
HELPER_SPECIAL = ["<unk>", "<s>", "</s>"]
HELPER_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HELPER_ALPHABET = 128


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the training of one model from that of the other."""

    name: str
    train_tokenizer: Callable[[list[str]], Tokenizer]
    build_model: Callable[[], PreTrainedModel]
    bos: str
    eos: str
    unk: str | None
    separators: list[str]
    context: int
    batch: int
    learning_rate: float
    shards: int
    prompt: str


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, or by passes over the text. One of the two is set."""

    minutes: float | None
    epochs: float | None

    def progress(self, started: float, tokens_seen: int, tokens: int) -> float:
        """The part of the training that is done, from 0 to 1."""
        if self.minutes is not None:
            done = (time.monotonic() - started) / (60 * self.minutes)
        else:
            done = tokens_seen / (tokens * self.epochs)
        return min(1.0, done)


# --- text --------------------------------------------------------------------------------------


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, without the separator lines and without empty ones."""
    text = path.read_text(encoding="utf-8")
    documents = (part.strip("\n") for part in f"\n{text}\n".split(f"\n{SEPARATOR}\n"))
    return [document for document in documents if document]


def is_held_out(document: str) -> bool:
    """Whether a document belongs to the validation text; equal documents go the same way."""
    digest = hashlib.blake2b(document.encode(), key=str(SEED).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT * 2**64


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents, in the order of the file."""
    training = [document for document in documents if not is_held_out(document)]
    validation = [document for document in documents if is_held_out(document)]
    if not training or not validation:
        raise SystemExit("too few documents: none left for training or for validation")
    return training, validation


def encode(tokenizer: Tokenizer, documents: list[str], separators: list[str]) -> torch.Tensor:
    """All documents as one row of token ids, the separators' ids between them."""
    between = [tokenizer.token_to_id(token) for token in separators]
    ids = list(between)
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids += encoding.ids
        ids += between
    return torch.tensor(ids, dtype=torch.long)


# --- tokenizers --------------------------------------------------------------------------------


def train_source_tokenizer(documents: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def train_helper_tokenizer(documents: list[str]) -> Tokenizer:
    """A BPE tokenizer as Llama 2 has it: ``▁`` for the space, bytes for what has no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(HELPER_SPLIT), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(HELPER_BYTES) + 1,  # the newline's piece is taken out again
        special_tokens=HELPER_SPECIAL,
        limit_alphabet=HELPER_ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return Tokenizer.from_str(json.dumps(with_byte_tokens(json.loads(tokenizer.to_str()))))


def with_byte_tokens(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with the 256 byte tokens after the special ones, and with byte fallback.

    The newline loses its piece, so that it is written as the byte ``<0x0A>``.
    """
    model = tokenizer["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [piece for piece in ordered if piece not in {*HELPER_SPECIAL, "\n"}]
    entries = [*HELPER_SPECIAL, *HELPER_BYTES, *pieces]
    if len(set(entries)) != VOCAB_SIZE:
        raise SystemExit(
            f"the helper's vocabulary has {len(set(entries))} entries: too little text"
        )
    vocab = {entry: index for index, entry in enumerate(entries)}
    return {**tokenizer, "model": {**model, "vocab": vocab, "byte_fallback": True}}


# --- models ------------------------------------------------------------------------------------


def build_source() -> PreTrainedModel:
    """The English model, with fresh weights."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def build_helper() -> PreTrainedModel:
    """The German model, with fresh weights."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=96,
        n_layer=2,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


SOURCE = Recipe(
    name="source-en",
    train_tokenizer=train_source_tokenizer,
    build_model=build_source,
    bos=SEPARATOR,
    eos=SEPARATOR,
    unk=None,
    separators=[SEPARATOR],
    context=128,
    batch=2048,
    learning_rate=3e-3,
    shards=2,
    prompt="To open the file,",
)
HELPER = Recipe(
    name="helper-de",
    train_tokenizer=train_helper_tokenizer,
    build_model=build_helper,
    bos="<s>",
    eos="</s>",
    unk="<unk>",
    separators=["</s>", "<s>"],
    context=256,  # as many as there are position embeddings, so that all of them are trained
    batch=4096,
    learning_rate=5e-3,
    shards=1,
    prompt="Um die Datei zu öffnen,",
)


# --- training ----------------------------------------------------------------------------------


def batches(ids: torch.Tensor, context: int, batch: int) -> Iterator[torch.Tensor]:
    """Shuffled batches of windows without end; each pass over the text cuts it elsewhere."""
    generator = torch.Generator().manual_seed(SEED)
    rows = batch // context
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        windows = ids[offset:].unfold(0, context + 1, context)
        yield from windows[torch.randperm(len(windows), generator=generator)].split(rows)


def loss_of(model: PreTrainedModel, windows: torch.Tensor, reduction: str) -> torch.Tensor:
    """The cross-entropy of each window's tokens given those before them in the window."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets, reduction=reduction
    )


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices of the layers only."""
    embedding = model.get_input_embeddings().weight
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and parameter is not embedding and "wpe" not in name
        (decayed if is_matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR + (1 - FINAL_LR) * cosine)


def mixed_precision(enabled: bool) -> AbstractContextManager:
    """bfloat16 arithmetic for the matrix products; the weights stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def backward(model: PreTrainedModel, windows: torch.Tensor, context: int, bf16: bool) -> float:
    """Add up the gradient of the batch's mean loss, part by part, and return that loss."""
    total = 0.0
    for part in windows.split(TOKENS_AT_ONCE // context):
        with mixed_precision(bf16):
            loss = loss_of(model, part, "sum") / windows[:, 1:].numel()
        loss.backward()
        total += loss.item()
    return total


def train(
    model: PreTrainedModel, ids: torch.Tensor, recipe: Recipe, budget: Budget, bf16: bool
) -> None:
    """Train the model in place until the budget is spent, and print how it went."""
    optimizer = make_optimizer(model)
    model.train()
    started, seen, step, recent = time.monotonic(), 0, 0, 0.0
    for windows in batches(ids, recipe.context, recipe.batch):
        progress = budget.progress(started, seen, len(ids))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.learning_rate, step, progress)
        loss = backward(model, windows, recipe.context, bf16)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        seen += windows[:, 1:].numel()
        recent = loss if step == 1 else 0.98 * recent + 0.02 * loss
        if step % 100 == 0:
            report(recipe.name, step, seen, len(ids), started, f"loss {recent:.3f}")
    report(recipe.name, step, seen, len(ids), started, "trained")


def report(name: str, step: int, seen: int, tokens: int, started: float, what: str) -> None:
    """Print one line on how far the training has come."""
    minutes = (time.monotonic() - started) / 60
    print(
        f"{name}: {what}, {step} steps, {seen} tokens, {seen / tokens:.2f} epochs, "
        f"{minutes:.1f} minutes",
        flush=True,
    )


# --- evaluation --------------------------------------------------------------------------------


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, ids: torch.Tensor, context: int, size: int) -> float:
    """The model's loss over the validation tokens, separators counted, per byte of their text."""
    model.eval()
    starts = range(0, len(ids) - 1, context)
    nats = sum(float(loss_of(model, ids[None, i : i + context + 1], "sum")) for i in starts)
    return nats / math.log(2) / size


def unigram_bits_per_byte(training: torch.Tensor, validation: torch.Tensor, size: int) -> float:
    """The same for a model that knows only how frequent each token is (add-one smoothed)."""
    counts = torch.bincount(training, minlength=VOCAB_SIZE).double() + 1
    bits = -torch.log2(counts / counts.sum())
    return float(bits[validation[1:]].sum()) / size


# --- saving ------------------------------------------------------------------------------------


def save(model: PreTrainedModel, tokenizer: Tokenizer, recipe: Recipe, output: Path) -> Path:
    """Write the model's folder, complete before it takes the place of an older one."""
    output.mkdir(parents=True, exist_ok=True)
    target = output / recipe.name
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        folder = Path(temporary) / recipe.name
        model = model.to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=shard_size(model, recipe.shards))
        save_tokenizer(tokenizer, recipe, folder)
        for file in folder.iterdir():
            file.chmod(0o644)  # some versions of safetensors leave out group and others
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    return target


def shard_size(model: PreTrainedModel, shards: int) -> int:
    """A shard size that gives one or two shards: the whole, or three fifths of it."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return total if shards == 1 else total * 3 // 5


def save_tokenizer(tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """Write the tokenizer's three files."""
    special = {"bos_token": recipe.bos, "eos_token": recipe.eos}
    if recipe.unk is not None:
        special["unk_token"] = recipe.unk
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small JSON file, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[PreTrainedModel, AutoTokenizer]:
    """Load a saved model in float32, making sure that every weight found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {kind: keys for kind, keys in info.items() if keys}
    if problems:
        raise SystemExit(f"{folder} does not load cleanly: {problems}")
    return model.float().eval(), AutoTokenizer.from_pretrained(folder)


def sample(model: PreTrainedModel, tokenizer: AutoTokenizer, prompt: str) -> str:
    """A continuation of the prompt."""
    torch.manual_seed(SEED)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# --- the whole ---------------------------------------------------------------------------------


def make(recipe: Recipe, text: Path, output: Path, budget: Budget, bf16: bool) -> None:
    """Train one tokenizer and one model, save them, and print what they are worth."""
    training, validation = split_documents(read_documents(text))
    size = sum(len(document.encode()) for document in validation)
    tokenizer = recipe.train_tokenizer(training)
    ids = encode(tokenizer, training, recipe.separators)
    held_out = encode(tokenizer, validation, recipe.separators)
    torch.manual_seed(SEED)
    model = recipe.build_model()
    print(
        f"{recipe.name}: {model.num_parameters()} parameters; {len(training)} documents of "
        f"{len(ids)} tokens, held out {len(validation)} of {len(held_out)} ({size} bytes)",
        flush=True,
    )
    train(model, ids, recipe, budget, bf16)
    folder = save(model, tokenizer, recipe, output)
    saved, saved_tokenizer = load(folder)
    print(
        f"{recipe.name}: {bits_per_byte(saved, held_out, recipe.context, size):.3f} bits per byte "
        f"held out (token frequencies alone: {unigram_bits_per_byte(ids, held_out, size):.3f})"
    )
    print(f"{recipe.name}: {sample(saved, saved_tokenizer, recipe.prompt)!r}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the two models of the demo.")
    parser.add_argument("--english", type=Path, help="text for the source model")
    parser.add_argument("--german", type=Path, help="text for the helper model")
    parser.add_argument("--output", type=Path, required=True, help="folder for both models")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time of each model")
    length.add_argument("--epochs", type=float, help="passes over the text of each model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 mixed precision")
    parser.add_argument("--only", choices=["source", "helper"], help="train one of the two")
    arguments = parser.parse_args()
    if arguments.only != "helper" and arguments.english is None:
        parser.error("the source model needs --english")
    if arguments.only != "source" and arguments.german is None:
        parser.error("the helper model needs --german")
    return arguments


def main() -> None:
    """Train what the command line asks for."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    budget = Budget(arguments.minutes, arguments.epochs)
    if arguments.only != "helper":
        make(SOURCE, arguments.english, arguments.output, budget, arguments.bf16)
    if arguments.only != "source":
        make(HELPER, arguments.german, arguments.output, budget, arguments.bf16)


if __name__ == "__main__":
    main()
