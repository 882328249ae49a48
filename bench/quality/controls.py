"""Controls: what is left of a converted model's advantage without its body, rows or rotation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from arms import Arm
from language_model import load, tables
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_arm(arm: Arm, target: Path, seed: int) -> PreTrainedModel:
    """The arm's model before its first step; what is random in a control depends on the seed."""
    model, _ = load(target)
    if arm.control is None:
        return model
    torch.manual_seed(seed)
    return CONTROLS[arm.control](model)


def _fresh_model(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh body, fresh rows, as transformers initialises them: training from scratch."""
    return AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)


def _fresh_body(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh body, made rows: what the rows are worth without the body that they were made for."""
    fresh = _fresh_model(model)
    with torch.no_grad():
        for table, made in zip(tables(fresh), tables(model), strict=True):
            table.copy_(made)
    return fresh


@torch.no_grad()
def _random_rows(model: PreTrainedModel) -> PreTrainedModel:
    """The source's body; every row is normal, with each column's mean and deviation."""
    for table in tables(model):
        table.copy_(table.mean(0) + table.std(0) * torch.randn(table.shape))
    return model


@torch.no_grad()
def _random_rotation(model: PreTrainedModel) -> PreTrainedModel:
    """The source's body; all rows are turned about their mean, each table by a rotation of its own.

    Lengths and distances stay; only how the rows lie to the body is lost. If all rows were made by
    a learned rotation (procrustes map), this is the same rows with a random one in its place.
    """
    for table in tables(model):
        mean = table.mean(0)
        table.copy_((table - mean) @ _orthogonal(table.shape[1]) + mean)
    return model


def _orthogonal(size: int) -> torch.Tensor:
    """A random orthogonal matrix, every one as likely."""
    q, r = torch.linalg.qr(torch.randn(size, size))
    return q * torch.sign(torch.diagonal(r))


CONTROLS: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
    "fresh model": _fresh_model,
    "fresh body": _fresh_body,
    "random rows": _random_rows,
    "random rotation": _random_rotation,
}
