"""The plain way, to compare with: load both models with transformers, make the rows, save.

As the script of CLP-Transfer does: the source is a whole model in memory, shared tokens are equal
strings, and all similarities are one matrix. Unlike it, it makes the rows by a product of matrices
and not in a loop, and makes those of an output head too, as clpstream does.

    python bench/speed/in_memory.py SOURCE HELPER OUTPUT --method clp
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NEIGHBORS, TEMPERATURE, QUERIES = 10, 0.1, 4096


def main() -> None:
    args = parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.source, dtype=args.dtype)
    helper = AutoModelForCausalLM.from_pretrained(args.helper, dtype="auto")
    ours = PreTrainedTokenizerFast.from_pretrained(args.source).get_vocab()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.helper)
    theirs = tokenizer.get_vocab()
    shared = [piece for piece in theirs if piece in ours]
    missing = [theirs[piece] for piece in theirs if piece not in ours]
    old, new = [ours[piece] for piece in shared], [theirs[piece] for piece in shared]

    embeddings = helper.get_input_embeddings().weight.detach().float()
    average = by_cosine if args.method == "clp" else by_neighbors
    tables = [model.get_input_embeddings().weight.detach().float()[old]]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight.detach().float()[old])
    made = average(embeddings[missing], embeddings[new], tables)

    model.resize_token_embeddings(len(embeddings), mean_resizing=False)
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for module, copied, rows in zip(modules, tables, made, strict=False):
            module.weight[new] = copied.to(module.weight.dtype)
            module.weight[missing] = rows.to(module.weight.dtype)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


def by_cosine(
    wanted: torch.Tensor, anchors: torch.Tensor, tables: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The paper's weights: each cosine by the sum of them, over all anchors."""
    weights = unit(wanted) @ unit(anchors).T
    weights /= weights.sum(1, keepdim=True)
    return [weights @ table for table in tables]


def by_neighbors(
    wanted: torch.Tensor, anchors: torch.Tensor, tables: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Softmax weights of the nearest anchors by centred cosine, as clpstream's knn."""
    center = anchors.mean(0)
    rows, parts = unit(anchors - center), []
    for queries in unit(wanted - center).split(QUERIES):
        cosines, ids = (queries @ rows.T).topk(min(NEIGHBORS, len(rows)))
        weights = torch.softmax(cosines / TEMPERATURE, 1)
        parts.append([torch.einsum("nk,nkd->nd", weights, table[ids]) for table in tables])
    return [torch.cat(table_parts) for table_parts in zip(*parts, strict=True)]


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("source", "helper", "output"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=("clp", "knn"), default="clp")
    parser.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, ...")
    return parser.parse_args()


if __name__ == "__main__":
    main()
