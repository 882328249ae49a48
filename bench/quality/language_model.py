"""Loading, training and evaluating a language model, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 65536}
"""A batch's gradient is summed over parts whose logits fit in a CPU's cache, or a GPU's memory."""


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved model in float32, making sure that every weight found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {kind: keys for kind, keys in info.items() if keys}
    if problems:
        raise SystemExit(f"{folder} does not load cleanly: {problems}")
    return model.float().eval(), AutoTokenizer.from_pretrained(folder)


def tables(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The input embeddings and, if it is another one, the output head."""
    both = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return both[:1] if both[0] is both[1] else both


def batches(ids: torch.Tensor, context: int, rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled batches of windows without end; each pass over the text cuts it elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        windows = ids[offset:].unfold(0, context + 1, context)
        yield from windows[torch.randperm(len(windows), generator=generator)].split(rows)


def mixed_precision(device: torch.device, enabled: bool) -> AbstractContextManager:
    """bfloat16 arithmetic for the matrix products; the weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def loss_of(model: PreTrainedModel, windows: torch.Tensor, reduction: str) -> torch.Tensor:
    """The cross-entropy of each window's tokens given those before them in the window."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets, reduction=reduction
    )


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices of the layers only."""
    vocabulary = {id(table) for table in tables(model)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and id(parameter) not in vocabulary and "wpe" not in name
        (decayed if is_matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    windows: torch.Tensor,
    learning_rate: float,
    bf16: bool,
) -> float:
    """Change the weights by one batch of windows, and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss = _backward(model, windows.to(model.device), bf16)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def _backward(model: PreTrainedModel, windows: torch.Tensor, bf16: bool) -> float:
    """Add up the gradient of the batch's mean loss, part by part, and return that loss."""
    total = 0.0
    for part in _parts(windows):
        with mixed_precision(model.device, bf16):
            loss = loss_of(model, part, "sum") / windows[:, 1:].numel()
        loss.backward()
        total += loss.item()
    return total


def _parts(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    context = windows.shape[1] - 1
    return windows.split(max(1, TOKENS_AT_ONCE[windows.device.type] // context))


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, ids: torch.Tensor, context: int, size: int) -> float:
    """The model's loss over all tokens, separators counted, per byte of their text (`size`)."""
    model.eval()
    ids = ids.to(model.device)
    full = (len(ids) - 1) // context
    groups = list(_parts(ids[: full * context + 1].unfold(0, context + 1, context))) if full else []
    if len(ids) - 1 > full * context:
        groups.append(ids[None, full * context :])
    nats = sum(float(loss_of(model, windows, "sum")) for windows in groups)
    return nats / math.log(2) / size
