"""Which axes of a model belong together, and the choice of their strongest members by L1 norm.

Legend
    T, S        an axis' size in the teacher and in the student
    key         name of a set of axes that carry the same channels, so that they share one index set
    segment     (key, size): an axis is a concatenation of segments; almost always of one
    score[key]  (T,) sum over the tensors on that key of |w| summed over all other axes
    index[key]  (S,) ascending: the S largest scores; ties go to the lower index

Keys of the known families (every other family: one key per pair (T, S), as in the rule `random`)
    ViT, DeiT   `stream`: the embedding axis of tokens, position embedding, norms and every
                matrix that reads or writes the residual stream. `blocks.j.hidden`: the MLP.
                The fused qkv axis is three segments `qk | qk | v` of heads × head_dim;
                `proj` reads `v`. Whole heads are chosen first (score of q + k + v + proj),
                then dimensions inside a head: one set for q and k, whose product they are,
                one for v and proj, each shared by the block's heads.
    ConvNeXt    `stages.i`: the residual stream of stage i, from the layer that writes its
                first value; `stages.i.blocks.j.hidden`: the MLP.
    ResNet      `layer<i>`: the residual stream of stage i; a stage whose first block has no
                projection continues the stream before it. `….h1`, `….h2`: between a block's
                convolutions.
    CIFAR       option-A shortcuts put channel c of a stage at c + pad of the next, so later
                streams are `low | stream before | high` and share the choice of the stream
                before.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.selection.elements import l1_norms, strongest
from trainers.models.resnet_cifar import ResNetCifar

Segments = list[tuple[str, int]]
_Table = Sequence[tuple[str, tuple[str | None, ...]]]

_VIT: _Table = (
    (r"cls_token|dist_token|reg_token|pos_embed", (None, None, "stream")),
    (r"patch_embed\.proj\.(?:weight|bias)", ("stream",)),
    (r"(?:norm|norm_pre|fc_norm)\.(?:weight|bias)", ("stream",)),
    (
        r"blocks\.\d+\.(?:norm[12]\.(?:weight|bias)|ls[12]\.gamma|attn\.proj\.bias|mlp\.fc2\.bias)",
        ("stream",),
    ),
    (r"(blocks\.\d+)\.attn\.qkv\.(?:weight|bias)", (r"\1.qkv", "stream")),
    (r"(blocks\.\d+)\.attn\.[qk]_norm\.(?:weight|bias)", (r"\1.qk_dim",)),
    (r"(blocks\.\d+)\.attn\.proj\.weight", ("stream", r"\1.v")),
    (r"(blocks\.\d+)\.mlp\.fc1\.(?:weight|bias)", (r"\1.hidden", "stream")),
    (r"(blocks\.\d+)\.mlp\.fc2\.weight", ("stream", r"\1.hidden")),
    (r"head(?:_dist)?\.(?:weight|bias)", (None, "stream")),
)
_CONVNEXT: _Table = (
    (r"stem\.[01]\.(?:weight|bias)", ("stages.0",)),
    (r"stages\.(\d+)\.downsample\.0\.(?:weight|bias)", (r"into.\1",)),
    (r"stages\.(\d+)\.downsample\.1\.(?:weight|bias)", (r"stages.\1", r"into.\1")),
    (
        r"(stages\.\d+)\.blocks\.\d+\.(?:gamma|(?:conv_dw|norm)\.(?:weight|bias)|mlp\.fc2\.bias)",
        (r"\1",),
    ),
    (r"((stages\.\d+)\.blocks\.\d+)\.mlp\.fc1\.(?:weight|bias)", (r"\1.hidden", r"\2")),
    (r"((stages\.\d+)\.blocks\.\d+)\.mlp\.fc2\.weight", (r"\2", r"\1.hidden")),
    (r"((stages\.\d+)\.blocks\.\d+)\.mlp\.grn\.(?:weight|bias)", (r"\1.hidden",)),
    (r"(?:norm_pre|head\.norm)\.(?:weight|bias)", ("last",)),
    (r"head\.fc\.(?:weight|bias)", (None, "last")),
)
_BN = r"(?:weight|bias|running_mean|running_var)"
_RESNET: _Table = (
    (rf"(?:conv1\.weight|bn1\.{_BN})", ("stem",)),
    (r"(layer(\d+)\.0)\.conv1\.weight", (r"\1.h1", r"into.\2")),
    (r"((layer\d+)\.\d+)\.conv1\.weight", (r"\1.h1", r"\2")),
    (rf"(layer\d+\.\d+)\.bn1\.{_BN}", (r"\1.h1",)),
    (rf"layer(\d+)\.0\.downsample\.\d\.{_BN}", (r"layer\1", r"into.\1")),
    (r"(?:fc|linear)\.(?:weight|bias)", (None, "last")),
)
_BASIC: _Table = (
    (r"((layer\d+)\.\d+)\.conv2\.weight", (r"\2", r"\1.h1")),
    (rf"(layer\d+)\.\d+\.bn2\.{_BN}", (r"\1",)),
)
_BOTTLENECK: _Table = (
    (r"(layer\d+\.\d+)\.conv2\.weight", (r"\1.h2", r"\1.h1")),
    (rf"(layer\d+\.\d+)\.bn2\.{_BN}", (r"\1.h2",)),
    (r"((layer\d+)\.\d+)\.conv3\.weight", (r"\2", r"\1.h2")),
    (rf"(layer\d+)\.\d+\.bn3\.{_BN}", (r"\1",)),
)


def _table_of(module: nn.Module) -> tuple[_Table, dict[str, str]] | None:
    """Key patterns and aliases (key → the key whose channels it carries) of a known family."""
    from trainers.timm_library import timm

    if isinstance(module, timm.models.VisionTransformer):
        return _VIT, {}
    if isinstance(module, timm.models.ConvNeXt):
        stages = len(list(module.get_submodule("stages").children()))
        return _CONVNEXT, {f"into.{i}": f"stages.{i - 1}" for i in range(1, stages)} | {
            "last": f"stages.{stages - 1}"
        }
    if not isinstance(module, timm.models.ResNet | ResNetCifar):
        return None
    names = module.state_dict().keys()
    stages = sum(name.endswith(".0.conv1.weight") for name in names)
    alias = {f"into.{i}": f"layer{i - 1}" for i in range(2, stages + 1)} | {
        "into.1": "stem",
        "last": f"layer{stages}",
    }
    if isinstance(module, ResNetCifar):
        return (*_RESNET, *_BASIC), alias | {"into.1": "layer1", "stem": "layer1"}
    for i in range(1, stages + 1):
        if not any(name.startswith(f"layer{i}.0.downsample.") for name in names):
            alias[f"layer{i}"] = f"into.{i}"
    return (
        *_RESNET,
        *(_BOTTLENECK if "layer1.0.conv3.weight" in names else _BASIC),
    ), alias


def _split_qkv(key: str, size: int) -> Segments:
    if not key.endswith(".qkv"):
        return [(key, size)]
    block = key.removesuffix(".qkv")
    return [
        (f"{block}.qk", size // 3),
        (f"{block}.qk", size // 3),
        (f"{block}.v", size // 3),
    ]


def _split_cifar(key: str, size: int) -> Segments:
    if key == "layer1":
        return [("core", size)]
    if key not in ("layer2", "layer3"):
        return [(key, size)]
    before = f"layer{int(key[-1]) - 1}"
    pad = size // 2
    return [
        (f"{key}.low", pad // 2),
        *_split_cifar(before, size - pad),
        (f"{key}.high", pad - pad // 2),
    ]


def _splitter(module: nn.Module) -> Callable[[str, int], Segments]:
    """How an axis of this module divides into segments: (key, size) → segments."""
    from trainers.timm_library import timm

    if isinstance(module, timm.models.VisionTransformer):
        return _split_qkv
    if isinstance(module, ResNetCifar):
        return _split_cifar
    return lambda key, size: [(key, size)]


def axis_keys(
    module: nn.Module, names: Sequence[str]
) -> dict[str, tuple[str | None, ...]] | None:
    """One key or None for the leading axes of each named tensor; None where the family is
    not known.
    """
    found = _table_of(module)
    if found is None:
        return None
    table, alias = found
    keys: dict[str, tuple[str | None, ...]] = {}
    for name in names:
        matches = ((re.fullmatch(pattern, name), axes) for pattern, axes in table)
        match, axes = next(((m, a) for m, a in matches if m), (None, ()))
        if match is None and not name.endswith("num_batches_tracked"):
            return None
        resolved = []
        for axis in axes:
            key = None if axis is None or match is None else match.expand(axis)
            while key in alias:
                key = alias[key]
            resolved.append(key)
        keys[name] = tuple(resolved)
    return keys


Layout = dict[str, list[tuple[Segments, Segments]]]
"""Student's tensor name → for each axis its segments with the teacher's and with the
student's sizes.
"""


def _lay_out(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    keys: Mapping[str, tuple[str | None, ...]],
    split: Callable[[str, int], Segments],
) -> Layout | None:
    """Segments of every axis; None where two axes of one key differ in size (grouped
    convolutions, gates).
    """
    layout: Layout = {}
    sizes: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        layout[name] = []
        for axis, (t, s) in enumerate(zip(tensor.shape, shapes[name], strict=True)):
            key = keys[name][axis] if axis < len(keys[name]) else None
            own_key = key or f"{name}#{axis}"
            of_teacher = split(own_key, t)
            of_student = split(own_key, s)
            for (part, t_size), (_, s_size) in zip(of_teacher, of_student, strict=True):
                if sizes.setdefault(part, (t_size, s_size)) != (t_size, s_size):
                    return None
            layout[name].append((of_teacher, of_student))
    return layout


def _lay_out_by_size(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> Layout:
    """One key per pair of sizes; a fused qkv axis is three segments."""
    layout: Layout = {}
    for name, tensor in tensors.items():
        layout[name] = []
        for axis, (t, s) in enumerate(zip(tensor.shape, shapes[name], strict=True)):
            parts = (
                3
                if axis == 0 and re.search(r"\bqkv\b", name) and t % 3 == s % 3 == 0
                else 1
            )
            key = f"{t // parts} to {s // parts}"
            layout[name].append(
                ([(key, t // parts)] * parts, [(key, s // parts)] * parts)
            )
    return layout


def _choose_heads(
    qk: Tensor, v: Tensor, size: int, heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Indices into qk and v of the student's `size`, and those inside a head for q and k
    (None: not by heads).
    """
    t_heads, s_heads = heads
    by_heads = s_heads <= t_heads and size // s_heads <= len(qk) // t_heads
    if not by_heads:
        return strongest(qk, size), strongest(v, size), None
    qk = qk.view(t_heads, -1)
    v = v.view(t_heads, -1)
    kept = strongest((qk + v).sum(1), s_heads)
    inside = [strongest(score[kept].sum(0), size // s_heads) for score in (qk, v)]
    qk_index, v_index = (
        (kept[:, None] * qk.shape[1] + dims).flatten() for dims in inside
    )
    return qk_index, v_index, inside[0]


def magnitude_indices(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    student: nn.Module,
    heads: Mapping[str, tuple[int, int]],
) -> tuple[dict[str, list[Tensor]], str]:
    """The rule `magnitude` for a whole model.

    Args:
        tensors: by the student's names, what the student takes from (only these are scored;
            of them, buffers are cut but not scored).
        shapes: the student's shapes for these names.
        student: the student's module (on any device), whose names and family decide the keys.
        heads: attention block (`blocks.3`) → numbers of heads in the teacher and in the student.

    Returns:
        Indices per tensor and axis, and how keys were found: "axis roles" or "axis sizes".
    """
    split = _splitter(student)
    keys = axis_keys(student, list(tensors))
    layout = None if keys is None else _lay_out(tensors, shapes, keys, split)
    grouping = "axis sizes" if layout is None else "axis roles"
    layout = layout or _lay_out_by_size(tensors, shapes)

    scores, sizes = _score(
        tensors, layout, {name for name, _ in student.named_parameters()}
    )
    index: dict[str, Tensor] = {}
    for block, counts in heads.items():
        qk = f"{block}.qk"
        v = f"{block}.v"
        if qk in scores:
            index[qk], index[v], inside = _choose_heads(
                scores[qk], scores[v], sizes[qk], counts
            )
            if inside is not None:
                index[f"{block}.qk_dim"] = inside
    for key, score in scores.items():
        index.setdefault(key, strongest(score, sizes[key]))

    chosen = {}
    for name, axes in layout.items():
        chosen[name] = [_joined(of_teacher, index) for of_teacher, _ in axes]
    return chosen, grouping


def _joined(segments: Segments, index: Mapping[str, Tensor]) -> Tensor:
    """One axis' indices: each segment's, moved to where the segment starts."""
    parts = []
    start = 0
    for key, size in segments:
        parts.append(index[key] + start)
        start += size
    return torch.cat(parts)


def _score(
    tensors: Mapping[str, Tensor], layout: Layout, parameters: set[str]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """L1 score (T,) in float64 and the student's size S of every key."""
    scores: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        for axis, (of_teacher, of_student) in enumerate(layout[name]):
            parts = l1_norms(tensor, axis).split([size for _, size in of_teacher])
            for (key, t), (_, s), part in zip(
                of_teacher, of_student, parts, strict=True
            ):
                zero = torch.zeros(t, dtype=torch.float64)
                scores[key] = scores.get(key, zero) + (
                    part if name in parameters else zero
                )
                sizes[key] = s
    return scores, sizes
