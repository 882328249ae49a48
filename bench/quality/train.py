"""Train a small language model from a plain text file, on a CPU or a GPU.

The models (their recipes are in recipes.py):

* ``source-en``, the demo's source: a Llama model with tied embeddings and a byte-level BPE
  tokenizer (GPT-2 style), saved as two safetensors shards with an index;
* ``helper-de``, the demo's helper: a smaller GPT-2 model with tied embeddings and a BPE tokenizer
  with ``▁`` for the space and byte fallback (Llama 2 style), saved as a single safetensors file;
* ``en-untied``, a larger source: a Llama model with an output head of its own;
* ``fr-untied``, a helper with an output head of its own and a Unigram tokenizer;
* ``en``, ``de``: GPT-2 models of the size of many first experiments;
* ``en-l``, ``en-lu``, ``fr-m``, ``ru-m``, ``ja-m``: larger ones, for a GPU.

The text file holds documents separated by lines that read ``<|endoftext|>``. About three per cent
of the documents, chosen by a hash of their text, are held out; the loss on them is printed in bits
per byte of text. The order of the training windows depends on the seed alone. With ``--epochs`` the
number of steps does too; with ``--minutes`` it depends on how fast the machine is.

    pip install ".[interop]"
    python bench/quality/train.py source-en en.txt --output models --minutes 40 --bf16
    python bench/quality/train.py helper-de de.txt --output models --minutes 40 --bf16

The tokenizer and the evaluation take about a minute more. One CPU thread for each model is enough:
in 39 minutes on one core with ``--bf16``, source-en made three passes over 14 MB of English and
helper-de fourteen over 10 MB of German. ``--bf16`` is for CPUs that have bfloat16 instructions,
where it takes the throughput from about 5500 to about 8900 tokens per second for source-en (and
from 12000 to 17000 for helper-de); on others, leave it out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from language_model import batches, bits_per_byte, load, make_optimizer, train_step
from recipes import RECIPES, Recipe
from text import bytes_of, encode, read_documents, split_documents
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

SEED = 20240229
WARMUP_STEPS = 100
FINAL_LR = 0.05


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


# --- training ----------------------------------------------------------------------------------


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR + (1 - FINAL_LR) * cosine)


def train(
    model: PreTrainedModel, ids: torch.Tensor, recipe: Recipe, budget: Budget, bf16: bool
) -> None:
    """Train the model in place until the budget is spent, and print how it went."""
    optimizer = make_optimizer(model)
    model.train()
    started, seen, step, recent = time.monotonic(), 0, 0, 0.0
    for windows in batches(ids, recipe.context, recipe.batch // recipe.context, SEED):
        progress = budget.progress(started, seen, len(ids))
        if progress >= 1:
            break
        rate = learning_rate(recipe.learning_rate, step, progress)
        loss = train_step(model, optimizer, windows, rate, bf16)
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


def unigram_bits_per_byte(
    training: torch.Tensor, validation: torch.Tensor, vocabulary: int, size: int
) -> float:
    """Bits per byte of a model that knows how frequent each token is (add-one smoothed)."""
    counts = torch.bincount(training, minlength=vocabulary).double() + 1
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


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A continuation of the prompt."""
    torch.manual_seed(SEED)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# --- the whole ---------------------------------------------------------------------------------


def make(recipe: Recipe, text: Path, output: Path, budget: Budget, device: str, bf16: bool) -> None:
    """Train one tokenizer and one model, save them, and print what they are worth."""
    training, validation = split_documents(read_documents(text))
    size = bytes_of(validation)
    tokenizer = recipe.train_tokenizer(training, recipe.config.vocab_size)
    ids = encode(tokenizer, training, recipe.separators)
    held_out = encode(tokenizer, validation, recipe.separators)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(recipe.config).to(device)
    print(
        f"{recipe.name}: {model.num_parameters()} parameters; {len(training)} documents of "
        f"{len(ids)} tokens, held out {len(validation)} of {len(held_out)} ({size} bytes)",
        flush=True,
    )
    train(model, ids, recipe, budget, bf16)
    folder = save(model, tokenizer, recipe, output)
    saved, saved_tokenizer = load(folder)
    reached = bits_per_byte(saved.to(device), held_out, recipe.context, size)
    alone = unigram_bits_per_byte(ids, held_out, recipe.config.vocab_size, size)
    print(
        f"{recipe.name}: {reached:.3f} bits per byte held out (token frequencies alone: "
        f"{alone:.3f})"
    )
    print(f"{recipe.name}: {sample(saved, saved_tokenizer, recipe.prompt)!r}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small language model from text.")
    parser.add_argument("model", choices=RECIPES, help="which one")
    parser.add_argument("text", type=Path, help="text in the model's language")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model's folder")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time")
    length.add_argument("--epochs", type=float, help="passes over the text")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 mixed precision")
    return parser.parse_args()


def main() -> None:
    """Train what the command line asks for."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    budget = Budget(arguments.minutes, arguments.epochs)
    recipe = RECIPES[arguments.model]
    make(recipe, arguments.text, arguments.output, budget, arguments.device, arguments.bf16)


if __name__ == "__main__":
    main()
