"""Names of vocabulary tensors, as they stand in checkpoint files. Data only.

A name matches when it equals an entry or ends with a dot and the entry, so that headless models
('wte.weight') and nested ones ('language_model.model.embed_tokens.weight') need no entries of
their own.
"""

from __future__ import annotations

from typing import Literal

Role = Literal["input embeddings", "output head", "head bias", "named by the user"]

VOCABULARY_NAMES: dict[str, Role] = {
    "embed_tokens.weight": "input embeddings",  # llama, mistral, qwen2/3, gemma, opt, phi, ...
    "wte.weight": "input embeddings",  # gpt2, gpt_bigcode, gptj, mpt
    "word_embeddings.weight": "input embeddings",  # bloom, falcon, bert
    "embed_in.weight": "input embeddings",  # gpt_neox
    "lm_head.weight": "output head",
    "embed_out.weight": "output head",  # gpt_neox
    "shared_head.head.weight": "output head",  # multi-token prediction layers of deepseek_v3
    "lm_head.bias": "head bias",  # phi, gptj, codegen
}

NEVER_VOCABULARY: tuple[str, ...] = (
    "wpe.weight",  # gpt2: positions
    "embed_positions.weight",  # opt, bart: positions
    "position_embeddings.weight",  # bert
    "token_type_embeddings.weight",  # bert
)
"""Tables indexed by something else, whose length may equal the vocabulary's by accident."""

LAYER_STEMS = ("layer", "layers", "h", "block", "blocks", "stages")
"""What stands before a layer's number; other numbered things may well be indexed by token id."""

LAYER_PARTS = ("attn", "attention", "mlp", "ffn", "feed_forward", "expert", "norm", "ln_", "mixer")
"""What names of weights inside a layer have in them."""
