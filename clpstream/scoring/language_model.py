"""A causal language model of transformers: loaded, checked, and asked for bits."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from clpstream.device import AUTO, CPU, gpu_number
from clpstream.errors import ScoringError
from clpstream.inputs import read_json
from clpstream.scoring.libraries import import_torch, import_transformers, reason

Dtype = Literal["auto", "float32", "bfloat16"]

_LOGITS_BYTES = 128 << 20
"""Of the logits that exist at one time, in float32."""
_SOFTMAX_BYTES = 16 << 20
"""Of those that are normalised at one time."""
_PROBE = 8
_FACTORIES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
}
"""What loads a model, and the table of transformers in which its configs are."""


@dataclass(frozen=True)
class LanguageModel:
    """A model in memory.

    rows: ids that it has a row for. logits: how many it gives. positions: tokens of the longest
    text it is made for; None if it does not say. in_parts: whether a text can be fed to it in
    parts, with its cache between them.
    """

    model: Any
    rows: int
    logits: int
    positions: int | None
    in_parts: bool

    @property
    def device(self) -> str:
        """Where its weights are: "cpu" or "cuda"."""
        return str(self.model.device.type)

    @property
    def dtype(self) -> str:
        """What its weights are in."""
        return str(self.model.dtype).removeprefix("torch.")

    def windows_at_once(self, length: int) -> int:
        """How many windows of a length make a batch whose logits have their place in memory."""
        return max(1, _LOGITS_BYTES // (4 * self.logits * length))

    def bits(
        self, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], skip: int = 0
    ) -> npt.NDArray[np.float64]:
        """-log2 p(target) after all inputs up to its place: [windows, length] -> the same shape.

        The first `skip` places of every window are not computed: NaN. The loss is computed in
        float32, whatever the dtype of the model, and the logits of few places exist at a time.
        """
        torch = import_torch()
        count, length = inputs.shape
        ids = torch.as_tensor(inputs, device=self.model.device)
        wanted = torch.as_tensor(targets, device=self.model.device)
        found = np.full(inputs.shape, np.nan)
        part = max(1, _LOGITS_BYTES // (4 * self.logits * count)) if self.in_parts else length
        cache: dict[str, Any] = {}
        with torch.inference_mode():
            for begin in range(0, length, part):
                end = min(begin + part, length)
                first = min(max(skip, begin), end)  # of the places that count
                out = _forward(self.model, ids[:, begin:end], end - first, part < length, cache)
                cache = _cache(out) if part < length else {}
                if first < end:
                    logits = out.logits[:, first - end :]
                    found[:, first:end] = _cross_entropy(torch, logits, wanted[:, first:end])
        return found


def load(directory: Path, dtype: Dtype, device: str) -> LanguageModel:
    """Load a causal language model; its memory is free again when nobody holds it any more.

    Its weights are in the checkpoint's dtype ("auto") or the one given. Code in the checkpoint is
    not run. Raises ClpstreamError if it can't be loaded, if weights are missing in it, or if it is
    no causal language model.
    """
    torch = import_torch()
    if dtype not in get_args(Dtype):
        raise ScoringError(f"{dtype!r} is none of {', '.join(get_args(Dtype))}")
    number, gpus = gpu_number(device), torch.cuda.device_count()
    if device == AUTO:
        device = "cuda" if gpus else CPU
    elif device != CPU and number >= gpus:
        raise ScoringError(f"torch sees {gpus or 'no'} GPUs; use the device cpu")
    model = _load(directory, dtype).to(device).eval()
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else None
    length = _PROBE if positions is None else max(2, min(_PROBE, positions))
    rows = len(model.get_input_embeddings().weight)
    logits, in_parts = _probe(model, rows, length, directory)
    return LanguageModel(model, min(rows, logits), logits, positions, in_parts)


def _load(directory: Path, dtype: Dtype) -> Any:
    transformers = import_transformers()
    config = read_json(directory / "config.json")
    settings = {"local_files_only": True, "trust_remote_code": False}
    try:
        parsed = transformers.AutoConfig.from_pretrained(directory, **settings)
    except Exception as error:
        raise ScoringError(f"{directory}: {_why_not(config, error)}") from None
    auto = _auto_class(transformers, directory, config, parsed)
    try:
        model, info = auto.from_pretrained(
            directory,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **settings,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise ScoringError(
            f"{directory}: transformers {transformers.__version__} can't load it: {reason(error)}"
        ) from None
    for name, there, wanted in sorted(info["mismatched_keys"]):
        raise ScoringError(
            f"{directory}: {name} is {list(there)} in it, and by its config.json {list(wanted)}; "
            "take the config.json that belongs to the weights"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
        raise ScoringError(
            f"{directory}: {len(missing)} of the weights that {type(model).__name__} needs are not "
            f"in it ({some}); it is no whole causal language model"
        )
    return model


def _why_not(config: Mapping[str, Any], error: Exception) -> str:
    kind = config.get("model_type")
    if "auto_map" in config:
        return (
            f"its model type {kind} is made by code in the checkpoint, which clpstream does not "
            "run; score a version of it for transformers' own classes"
        )
    return f"transformers does not know its model type {kind}: {reason(error)}"


def _auto_class(transformers: Any, directory: Path, config: Mapping[str, Any], parsed: Any) -> Any:
    """transformers' factory for the model: of language models, or of those that read images too."""
    architectures = config.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not getattr(parsed, "is_encoder_decoder", False) or named.endswith("ForCausalLM"):
        for factory, mapping in _FACTORIES.items():
            if type(parsed) in getattr(transformers, mapping, ()):
                return getattr(transformers, factory)
    raise ScoringError(
        f"{directory}: no causal language model ({named or config.get('model_type')}): only a "
        "model that predicts the next token can be scored"
    )


def _probe(model: Any, rows: int, length: int, directory: Path) -> tuple[int, bool]:
    """(how many logits it gives, whether a text can be fed in parts), found out by a few tokens.

    Raises ScoringError for a model in which a token's logits depend on the tokens after it, such as
    an encoder with a head for masked tokens, which transformers loads as a causal one.
    """
    torch = import_torch()
    ids = torch.arange(length, device=model.device).mul(rows // length)[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % rows
    half = length // 2
    unlike = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
    with torch.inference_mode():
        try:
            whole, changed = (_forward(model, t, length, False, {}).logits for t in (ids, other))
        except unlike as error:
            raise ScoringError(
                f"{directory}: {type(model).__name__} can't be run on text alone: {reason(error)}"
            ) from None
        size = torch.nan_to_num(whole.float()).abs().max()
        epsilon = torch.finfo(whole.dtype).eps
        if (whole - changed)[0, :-1].abs().max() > size * max(1e-4, epsilon):
            raise ScoringError(
                f"{directory}: no causal language model: {type(model).__name__} predicts a token "
                "also from those after it"
            )
        in_parts = False
        with contextlib.suppress(*unlike):
            begun = _forward(model, ids[:, :half], half, True, {})
            rest = _forward(model, ids[:, half:], length - half, True, _cache(begun))
            parts = torch.cat([begun.logits, rest.logits], dim=1)
            in_parts = bool((parts - whole).abs().max() <= size * max(1e-3, 8 * epsilon))
    return whole.shape[-1], in_parts


def _forward(model: Any, ids: Any, keep: int, use_cache: bool, cache: Mapping[str, Any]) -> Any:
    """One call; the logits of the last `keep` places are wanted, and others may not be computed."""
    settings = {"use_cache": use_cache, **cache}
    takes = inspect.signature(model.forward).parameters
    if "logits_to_keep" in takes:
        settings["logits_to_keep"] = max(keep, 1)  # 0 would mean all
    return model(input_ids=ids, **{k: v for k, v in settings.items() if k in takes})


def _cache(out: Any) -> dict[str, Any]:
    """What the next part is to be given of a call's output; transformers renamed it in 5.24."""
    return {name: out[name] for name in ("cache", "past_key_values") if out.get(name) is not None}


def _cross_entropy(torch: Any, logits: Any, targets: Any) -> npt.NDArray[np.float64]:
    """In bits, in float32, a few rows of the logits at a time: [windows, length, ids]."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    step = max(1, _SOFTMAX_BYTES // (4 * flat.shape[-1]))
    nats = [
        torch.nn.functional.cross_entropy(
            flat[begin : begin + step].float(), wanted[begin : begin + step], reduction="none"
        )
        for begin in range(0, len(flat), step)
    ]
    bits: npt.NDArray[np.float64] = torch.cat(nats).double().cpu().numpy() / math.log(2)
    return np.reshape(bits, tuple(targets.shape))
