"""Names of vocabulary tensors, as they stand in checkpoint files.

A name matches when it equals an entry or ends with a dot and the entry, so that headless models
('wte.weight') and nested ones ('language_model.model.embed_tokens.weight') need no entries of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Literal

Role = Literal[
    "input embeddings",
    "per-layer embeddings",
    "output head",
    "head bias",
    "expert routing",
    "named by the user",
]

VOCABULARY_NAMES: dict[str, Role] = {
    "embed_tokens.weight": "input embeddings",  # llama, mistral, qwen2/3, gemma, opt, phi, ...
    "wte.weight": "input embeddings",  # gpt2, gpt_bigcode, gptj, mpt; phi before transformers
    "word_embeddings.weight": "input embeddings",  # bloom, falcon, bert, chatglm
    "word_embeddings.weight_integer": "input embeddings",  # ibert
    "word_embedding.weight": "input embeddings",  # xlnet
    "embed_in.weight": "input embeddings",  # gpt_neox
    "tok_embeddings.weight": "input embeddings",  # internlm2, modernbert, llama's own format
    "tokens_embed.weight": "input embeddings",  # openai-gpt
    "token_embedding.weight": "input embeddings",  # cohere_asr
    "embed_text_tokens.weight": "input embeddings",  # csm
    "text_embed_tokens.weight": "input embeddings",  # moshi's depth decoder
    "shared.weight": "input embeddings",  # t5, bart
    "value_embeddings.weight": "input embeddings",  # neomme
    "input_embedding.weight": "input embeddings",  # cpmant
    "llm.embed.weight": "input embeddings",  # inkling2
    "embed_tokens_per_layer.weight": "per-layer embeddings",  # gemma3n, gemma4
    "tid2eid": "expert routing",  # deepseek_v4: token id -> ids of experts
    "lm_head.weight": "output head",
    "lm_head.linear.weight": "output head",  # phi before transformers
    "lm_head.out_proj.weight": "output head",  # t5gemma
    "lm_head.decoder.weight": "output head",  # roberta
    "mlm_head.decoder.weight": "output head",  # flava
    "mmm_text_head.decoder.weight": "output head",  # flava
    "cls.predictions.decoder.weight": "output head",  # bert
    "predictions.decoder.weight": "output head",  # albert
    "generator_lm_head.weight": "output head",  # electra
    "vocab_projector.weight": "output head",  # distilbert
    "pred_layer.proj.weight": "output head",  # xlm
    "log_softmax.mlp.layer0.weight": "output head",  # cohere_asr
    "embed_out.weight": "output head",  # gpt_neox
    "output_layer.weight": "output head",  # chatglm
    "output_projection.weight": "output head",  # fsmt
    "llm.unembed.weight": "output head",  # inkling2
    "lm_loss.weight": "output head",  # xlnet
    "shared_head.head.weight": "output head",  # multi-token prediction layers of deepseek_v3
    "lm_head.bias": "head bias",  # phi, gptj, codegen, roberta
    "lm_head.linear.bias": "head bias",
    "lm_head.decoder.bias": "head bias",
    "mlm_head.bias": "head bias",
    "mlm_head.decoder.bias": "head bias",
    "mmm_text_head.decoder.bias": "head bias",
    "predictions.bias": "head bias",  # bert, albert
    "predictions.decoder.bias": "head bias",
    "lm_predictions.lm_head.bias": "head bias",  # deberta-v2
    "generator_lm_head.bias": "head bias",
    "vocab_projector.bias": "head bias",
    "pred_layer.proj.bias": "head bias",
    "log_softmax.mlp.layer0.bias": "head bias",
    "embed_out.bias": "head bias",
    "output_layer.bias": "head bias",
    "embedding_decoder.bias": "head bias",  # perceiver
    "lm_loss.bias": "head bias",  # xlnet
    "final_logits_bias": "head bias",  # bart, marian, pegasus: [1, vocabulary]
}
"""Names that say by themselves what a tensor is."""

NAMES_IF_AS_LONG: dict[str, Role] = {
    "embeddings.weight": "input embeddings",  # mamba, rwkv, xlm
    "embedding.weight": "input embeddings",  # mamba's own format
    "transformer.w.weight": "input embeddings",  # ctrl
    "emb.weight": "input embeddings",  # rwkv's own format
    "text_embedding.weight": "input embeddings",  # qwen3-omni's talker
    "embed.weight": "input embeddings",  # deepseek's own format
    "token_embeddings.weight": "input embeddings",  # openelm
    "text.wte": "input embeddings",  # moondream's own format
    "text_emb.weight": "input embeddings",  # moshi's own format
    "embedding_layer.weight": "input embeddings",  # stripedhyena
    "head.weight": "output head",  # rwkv
    "output.weight": "output head",  # internlm2, git, llama's own format
    "decoder.weight": "output head",  # modernbert
    "proj_out.weight": "output head",  # whisper
    "ff_out.weight": "output head",  # olmo before transformers
    "cls.weight": "output head",  # ultrabert
    "text_linear.weight": "output head",  # moshi's own format
    "unembed.weight": "output head",  # stripedhyena
    "predictions.dense.weight": "output head",  # mobilebert: [hidden - embedding, vocabulary]
    "head.bias": "head bias",
    "output.bias": "head bias",  # git
    "decoder.bias": "head bias",  # modernbert
    "proj_out.bias": "head bias",  # canary
    "cls.bias": "head bias",
}
"""Names that other tensors have too: they count where an axis is as long as the vocabulary, and as
input embeddings where no name is surer."""

SPLIT_TABLES: dict[str, str] = {"wte.embedding": "wte.new_embedding"}  # molmo
"""First and second part of input embeddings that are stored in two."""

NEVER_VOCABULARY = frozenset(
    (
        "wpe.weight",  # gpt2: positions
        "embed_positions.weight",  # opt, bart: positions
        "position_embeddings.weight",  # bert
        "token_type_embeddings.weight",  # bert
        "depth_decoder.model.embed_tokens.weight",  # csm: codes of sound
    )
)
"""Tables indexed by something else, whose length may equal the vocabulary's by accident."""

HASHED = re.compile(r"(?:^|[._])(?:ngram|hash_tok)_embedding\.")
"""In names of tables whose rows are found by hashes of token ids (qwen4_exp, blt): to such a model
a token with another id is another token."""

QUANTISED_PARTS: tuple[str, ...] = (
    "qweight",  # GPTQ, AWQ
    "weight_packed",  # compressed-tensors
    "weight_scale",
    "weight_scale_inv",  # FP8
    "weight.absmax",  # bitsandbytes
    "SCB",
    "weight_blocks",  # MXFP4
)
"""What stands in place of 'weight', or beside it, where a layer is quantised."""

LAYER_STEMS = ("layer", "layers", "h", "block", "blocks", "stages")
"""What stands before a layer's number; other numbered things may well be indexed by token id."""

VOCABULARY_SIZE = re.compile(
    r"(?:(?!type)\w+_)?vocab_size(?:_\w+)?|n_words|n_vocab|vocabulary_size"
)
"""Keys of config.json that hold a size of a vocabulary."""

_LAYER = re.compile(rf"(?:^|\.)(?:{'|'.join(LAYER_STEMS)})\.\d+\.")


def entry_of(name: str, entries: Container[str]) -> str | None:
    """The entry of a table of names that a tensor's name matches, the longest if there are some."""
    parts = name.split(".")
    ends = (".".join(parts[place:]) for place in range(len(parts)))
    return next((end for end in ends if end in entries), None)


def vocabulary_role(name: str) -> Role | None:
    """What a tensor of this name is, as far as names alone tell: None for any other tensor."""
    entry = entry_of(name, VOCABULARY_NAMES)
    return None if entry is None else VOCABULARY_NAMES[entry]


def in_a_layer(name: str) -> bool:
    """Whether a tensor belongs to one of a model's numbered layers."""
    return _LAYER.search(name) is not None
