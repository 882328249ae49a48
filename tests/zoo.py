"""Tiny random models of every architecture of transformers that has a text vocabulary.

`build(model_type, rows)` makes one; building it at two vocabulary sizes and comparing the shapes
in the two saved files tells its vocabulary tensors without any list of names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MAPPINGS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "MASKED_LM",
    "CAUSAL_LM",
    "PRETRAINING",
)
"""The mappings of transformers that classes are taken from: what hubs hold for a type first."""

MAX_PARAMETERS = 3_000_000


def candidates() -> dict[str, str]:
    """Name of the model class by model type."""
    found: dict[str, str] = {}
    for mapping in MAPPINGS:
        names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
        for model_type, name in names.items():
            found.setdefault(model_type, name if isinstance(name, str) else name[0])
    return dict(sorted(found.items()))


SMALL: dict[str, Any] = {
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "dim_model": 32,
    "embed_dim": 32, "embedding_size": 16, "embedding_dim": 32, "word_embed_proj_dim": 32,
    "input_embedding_size": 16, "output_embedding_size": 24, "projection_dim": 32,
    "decoder_hidden_size": 32, "out_hidden_size": 32, "output_dim": 32, "text_hidden_size": 32,
    "encoder_hidden_size": 32, "cross_attention_hidden_size": 32, "lru_width": 32,
    "attention_hidden_size": 32, "backbone_hidden_size": 32, "hidden_dim": 32, "width": 32,
    # inner widths
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "d_ff": 48, "d_inner": 48, "n_inner": 48, "hidden_dim_ffn": 48, "dff": 48, "mlp_dim": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "ffn_hidden_size": 48,
    "dim_ff": 48, "feed_forward_size": 48, "shared_intermediate_size": 48,
    "expert_ffn_hidden_size": 24,
    # layers
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "depth": 2, "layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "num_blocks": 2,
    "num_global_layers": 2, "max_window_layers": 1, "first_k_dense_replace": 1,
    "num_kv_shared_layers": 0, "num_nextn_predict_layers": 0,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "kv_n_heads": 2, "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4,
    "decoder_num_key_value_heads": 4, "num_query_groups": 2,
    "head_dim": 8, "d_kv": 8, "attention_head_size": 8, "kv_channels": 8, "d_head": 8,
    "global_head_dim": 8, "swa_head_dim": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8,
    "kv_lora_rank": 16, "q_lora_rank": 16, "rotary_dim": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    # state space
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "mamba_headdim": 8, "n_mamba_heads": 2, "mamba_d_state": 8, "state_size": 8,
    "ssm_state_size": 8, "mamba_n_groups": 1, "n_groups": 1, "mamba_dt_rank": 4,
    "time_step_rank": 4, "chunk_size": 16, "mamba_chunk_size": 16, "mamba_d_ssm": 64,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    # positions
    "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 32,
    "max_target_positions": 64, "original_max_position_embeddings": 32, "sliding_window": 16,
    "attention_window_size": 16, "window_size": 16, "context_length": 64,
    # vision and audio
    "image_size": 28, "patch_size": 14, "num_position_embeddings": 16, "num_mel_bins": 16,
    "num_filters": 4, "codebook_size": 16,
}  # fmt: skip
"""What a setting of this name becomes, where it is not None."""

VOCABULARY_KEYS = ("vocab_size", "vocab_size_per_layer_input", "n_words", "text_vocab_size",
                   "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size", "unpadded_vocab_size")  # fmt: skip
NOT_TEXT = re.compile("vision|audio|image_config|codebook|depth|talker|qformer|protein|projector|code_predictor")

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth")


def shrink(settings: dict[str, Any], rows: int, path: str = "") -> dict[str, Any]:
    """Settings of a config, made small at every level; `rows` is the vocabulary's size."""
    layers = {settings[key] for key in LAYERS if isinstance(settings.get(key), int)}
    small: dict[str, Any] = {}
    next_id = 300
    for key, value in settings.items():
        if key in ("id2label", "label2id", "transformers_version", "architectures", "_name_or_path"):
            continue
        if isinstance(value, dict):
            small[key] = shrink(value, rows, f"{path}.{key}") if "rope" not in str(key) else value
        elif value is None or isinstance(value, (bool, str, float)):
            small[key] = value
        elif key in VOCABULARY_KEYS:
            small[key] = 64 if NOT_TEXT.search(path) else rows
        elif isinstance(value, int) and re.search(r"token_id$|token_index$|_id$|_index$", str(key)):
            small[key] = value
            if value >= 290:
                small[key] = next_id
                next_id += 1
        elif isinstance(value, int) and key in SMALL:
            small[key] = SMALL[key]
        elif isinstance(value, (list, tuple)) and len(value) > 2 and len(value) in layers:
            small[key] = list(value)[:2]
        elif isinstance(value, int) and value > 64 and re.search("dim|size|width|rank|channels", str(key)):
            small[key] = 32
        else:
            small[key] = value
    return small


def config_of(model_type: str, rows: int) -> Any:
    """A small config."""
    kind = CONFIG_MAPPING[model_type]
    settings = shrink(kind().to_dict(), rows)
    return kind(**settings)


def build(model_type: str, rows: int) -> Any:
    """The tiny model, in evaluation mode."""
    kind = getattr(transformers, candidates()[model_type])
    config = config_of(model_type, rows)
    with torch.device("meta"):
        parameters = dict(kind(config).named_parameters())
    count = sum(tensor.numel() for tensor in parameters.values())
    if count > MAX_PARAMETERS:
        largest = sorted(parameters, key=lambda name: -parameters[name].numel())[:4]
        raise ValueError(f"too big: {count} {[(n, tuple(parameters[n].shape)) for n in largest]}")
    torch.manual_seed(0)
    model = kind(config_of(model_type, rows)).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(0.02 * torch.randn_like(tensor))
    return model
