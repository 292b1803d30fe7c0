"""Residual blocks that can go as a whole: without them their input is their output."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.channels.layout import Layout


def inner_groups(layout: Layout, path: str) -> list[int]:
    """Groups all of whose positions are in a module."""
    return [
        i
        for i, group in enumerate(layout.groups)
        if all(name.startswith(f"{path}.") for name, _ in group.axes)
    ]


@torch.no_grad()
def residual_blocks(
    module: nn.Module, layout: Layout, images: Tensor
) -> dict[str, list[int]]:
    """Path of each block that passes its input on once its parameters are 0 → its groups.

    Only blocks in a sequence count, such as a stage's, and of those the innermost.

    Args:
        module: on the CPU in eval mode; left as it was.
        images: a few.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = []

    def watch(path: str) -> Any:
        def note(layer: nn.Module, args: Any, output: Any) -> None:
            if (
                len(args) == 1
                and isinstance(args[0], Tensor)
                and isinstance(output, Tensor)
            ):
                inputs[path], outputs[path] = args[0], output

        return note

    for path, holder in module.named_modules():
        if isinstance(holder, nn.Sequential | nn.ModuleList):
            for name, child in holder.named_children():
                own = f"{path}.{name}" if path else name
                if inner_groups(layout, own):
                    handles.append(child.register_forward_hook(watch(own)))
    module(images)
    for handle in handles:
        handle.remove()
    found = {
        path: inner_groups(layout, path)
        for path, x in inputs.items()
        if x.shape == outputs[path].shape and _passes_on(module.get_submodule(path), x)
    }
    outer = {path for path in found for other in found if other.startswith(f"{path}.")}
    return {path: groups for path, groups in found.items() if path not in outer}


def _passes_on(block: nn.Module, x: Tensor) -> bool:
    """Whether a block gives x back once its parameters are 0."""
    before = [parameter.clone() for parameter in block.parameters()]
    for parameter in block.parameters():
        parameter.zero_()
    same = torch.allclose(block(x), x, atol=1e-6)
    for parameter, value in zip(block.parameters(), before, strict=True):
        parameter.copy_(value)
    return same
