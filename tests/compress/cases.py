"""The smallest config of every stage on each kind of model, for the tests that run them all."""

from typing import Any

TRAIN = {"epochs": 2, "batch_size": 40, "lr": 1e-3, "warmup": 0, "augment": "flip"}
WFN = {
    "percentages": [0.5, 1.0],
    "first_epoch": 1,
    "fixing_epochs": 1,
    "batch_size": 40,
    "lr": 1e-3,
    "augment": "flip",
    "distance_allowed": 0.1,
}
AUX = TRAIN | {
    "patch_size": 16,
    "embed_dim": 16,
    "num_heads": 2,
    "distill": {"teacher": "source", "kind": "soft", "alpha": 1},
}
NVIT = TRAIN | {
    "latency": "macs",
    "measure": False,
    "latency_target": 0.3,
    "interval_prune": 2,
    "prune_per_iter": 48,
    "groups": {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8},
}
CHANNELS = TRAIN | {
    "target": {"macs": 0.5},
    "importance_images": 40,
    "compensate_images": 40,
    "multiple": 1,
}
PWFN = {name: WFN[name] for name in WFN if name != "distance_allowed"}
LAYERWISE = {"rounding": "layerwise", "calibration_images": 40}
CASES: dict[str, dict[str, Any]] = {
    "finetune": {"vit": TRAIN, "resnet": TRAIN},
    "random_init": {
        "vit": {"args": {"embed_dim": 16}},
        "resnet": {"args": {"width": 4}},
    },
    "weight_selection": {
        "vit": {"args": {"embed_dim": 16, "depth": 1}},
        "resnet": {
            "args": {"width": 4},
            "element_rule": "activation",
            "compensate": True,
            "selection_images": 40,
        },
    },
    "sws_aux": {"vit": AUX | {"repeats": [1, 2]}},
    "sws_expand": {"vit": {"layers_source": [0, 1, 1]}},
    "lets_aux": {"vit": AUX | {"gene_dim": 8, "depth": 4}},
    "lets_expand": {"vit": {"width": 8, "depth": 3}},
    "tleg_aux": {"vit": AUX | {"depth": 3}},
    "tleg_expand": {"vit": {"depth": 2}},
    "wave_aux": {"vit": AUX | {"depth": 2, "template_dim": 8, "num_templates": 3}},
    "wave_expand": {"vit": TRAIN | {"width": 8, "depth": 3}},
    "sweet_aux": {"vit": AUX | {"depth": 2, "ranks": [6, 10, 9]}},
    "sweet_expand": {"vit": TRAIN | {"width": 24, "depth": 3}},
    "nvit": {"vit": NVIT, "resnet": "is a ViT or DeiT"},
    "low_rank": {
        "vit": {"target": {"params": 0.8}, "images": 40},
        "resnet": "no Linear layer and no 1×1 convolution",
    },
    "prune_channels": {
        "vit": CHANNELS | {"pruning": "iterative", "prune_epochs": 2, "intervals": 2},
        "resnet": CHANNELS | {"blocks": True},
    },
    "token_merging": {"vit": {"r": 1}, "resnet": "is a ViT or DeiT"},
    "asp": {"vit": {"measure": False}, "resnet": "no Linear layer"},
    "pwfn": {"vit": PWFN, "resnet": PWFN},
    "wfn": {"vit": WFN, "resnet": WFN | LAYERWISE},
    "int8": {"vit": TRAIN | {"images": 8}, "resnet": TRAIN | {"images": 8}},
    "uniform_quant": {"vit": LAYERWISE | {"bits": 4}, "resnet": {"bits": 4}},
    "kmeans_quant": {
        "vit": {"clusters": 8},
        "resnet": LAYERWISE | {"clusters": 8, "scope": "network"},
    },
}
"""Stage → source → config, or a text that its refusal must hold."""
FIRST = {
    f"{method}_expand": f"{method}_aux"
    for method in ("sws", "lets", "tleg", "wave", "sweet")
}
"""Stage → the stage that makes its input; others take the source."""
