"""What growth is measured against: PyTorch's index_select in a loop over layers, and nothing else.

A process of its own, from one Hugging Face folder to another, without this package:

  python benchmarks/torch_grow.py SOURCE TARGET --method aki --num-hidden-layers 24
      --hidden-size 1024 --num-attention-heads 16 --intermediate-size 4096

It knows BERT's tensor names, cyclic maps and stacked depth. `grow_layers` is also the contender in
memory of grow_bandwidth.py.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# The end of a tensor's name -> the axis of every dimension; "/" divides by the number of copies.
# "heads" are rows of whole heads. The first that fits counts.
AXES = {
    "_embeddings.weight": ("", "embed"),
    "self.(query|key|value).weight": ("heads", "embed/"),
    "self.(query|key|value).bias": ("heads",),
    "attention.output.dense.weight": ("embed", "heads/"),
    "intermediate.dense.weight": ("mlp", "embed/"),
    "intermediate.dense.bias": ("mlp",),
    "output.dense.weight": ("embed", "mlp/"),
    "(pooler|transform).dense.weight": ("embed", "embed/"),
    "dense.bias": ("embed",),
    # The tied decoder reads what this norm writes, and has no weights of its own to divide.
    "transform.LayerNorm.(weight|bias)": ("embed/",),
    "LayerNorm.(weight|bias)": ("embed",),
    "predictions.bias": ("",),
    "seq_relationship.weight": ("", "embed/"),
    "seq_relationship.bias": ("",),
}


@dataclass(frozen=True)
class Step:
    """One dimension to grow: entry i copies entry index[i] and is divided by copies[i]."""

    dimension: int
    index: torch.Tensor
    copies: torch.Tensor | None = None


def widen(tensor: torch.Tensor, step: Step) -> torch.Tensor:
    grown = tensor.index_select(step.dimension, step.index)
    if step.copies is not None:
        grown.div_(step.copies.view([-1 if d == step.dimension else 1 for d in range(grown.ndim)]))
    return grown


def grow_layers(
    layers: Sequence[torch.Tensor], steps: Sequence[Step], order: Sequence[int], *, aki: bool
) -> list[torch.Tensor]:
    """One parameter of every target layer; a widened layer that is used again is cloned.

    Args:
        layers: the parameter in every source layer, or just one tensor outside the layers.
        steps: dimensions to grow, the one of the outputs last.
        order: the source layer of every target layer.
        aki: whether new outputs come from the layer above.
    """
    *inputs, outputs = steps if steps and steps[-1].copies is None else (*steps, None)

    def widen_inputs(layer: int) -> torch.Tensor:
        tensor = layers[layer]
        for step in inputs:
            tensor = widen(tensor, step)
        return tensor

    made = []
    upper = None
    for layer, tensor in enumerate(layers):  # Algorithm 1 uses all of them
        own = widen_inputs(layer) if upper is None else upper
        above = layer + 1
        upper = widen_inputs(above) if aki and above < len(layers) else None
        if outputs is None:
            made.append(own.clone() if own is tensor else own)
        elif upper is None:
            made.append(widen(own, outputs))
        else:
            size = own.shape[outputs.dimension]
            new = upper.index_select(outputs.dimension, outputs.index[size:])
            made.append(torch.cat([own, new], outputs.dimension))
    return [
        made[layer].clone() if layer in order[:place] else made[layer]
        for place, layer in enumerate(order)
    ]


def cyclic(source: int, target: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The index list of an axis, and how often the entry that each one copies is copied."""
    index = torch.arange(target) % source
    return index, torch.bincount(index)[index].float()


def grow_bert(
    tensors: dict[str, torch.Tensor],
    sizes: dict[str, tuple[int, int]],
    *,
    layers: int,
    method: str,
) -> dict[str, torch.Tensor]:
    """The tensors of the larger model.

    Args:
        tensors: name -> tensor of the smaller one.
        sizes: "embed", "heads" (rows of them) and "mlp" -> size in the source and in the target.
        layers: the larger model's.
        method: "fpi" or "aki".
    """
    maps = {axis: cyclic(*pair) for axis, pair in sizes.items() if pair[0] != pair[1]}
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():  # a file has layer 10 before layer 2
        number = re.search(r"(?<=\.layer\.)\d+", name)
        template = re.sub(r"(?<=\.layer\.)\d+", "{}", name)
        stacks.setdefault(template, {})[int(number[0]) if number else 0] = tensor
    grown = {}
    for name, numbered in stacks.items():
        stack = [tensor for _, tensor in sorted(numbered.items())]
        axes = next(axes for end, axes in AXES.items() if re.search(end + "$", name))
        steps = []
        for dimension, axis in enumerate(axes):
            if axis.rstrip("/") in maps:
                index, copies = maps[axis.rstrip("/")]
                steps.append(Step(dimension, index, copies if axis.endswith("/") else None))
        steps.sort(key=lambda step: step.copies is None)
        order = [0]
        if "{}" in name:
            whole, rest = divmod(layers, len(stack))
            order = [*range(len(stack))] * whole + [*range(len(stack))][len(stack) - rest :]
        aki = method == "aki" and "LayerNorm" not in name
        for number, tensor in enumerate(grow_layers(stack, steps, order, aki=aki)):
            grown[name.format(number)] = tensor
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="Hugging Face folder of a BERT")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--method", choices=("fpi", "aki"), default="fpi")
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    for name in fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, required=True)
    args = parser.parse_args()

    config = json.loads((args.source / "config.json").read_text())
    after = {name: getattr(args, name) for name in fields}
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    sizes = {
        "embed": (config["hidden_size"], after["hidden_size"]),
        "heads": (config["hidden_size"], after["num_attention_heads"] * head_dim),
        "mlp": (config["intermediate_size"], after["intermediate_size"]),
    }
    tensors = load_file(args.source / "model.safetensors")
    with torch.no_grad():
        grown = grow_bert(tensors, sizes, layers=after["num_hidden_layers"], method=args.method)
    args.target.mkdir(parents=True)
    save_file(grown, args.target / "model.safetensors", metadata={"format": "pt"})
    (args.target / "config.json").write_text(json.dumps(config | after, indent=2) + "\n")


if __name__ == "__main__":
    main()
