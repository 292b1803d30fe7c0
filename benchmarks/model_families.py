"""The model families of `model_matrix.py`: one small member of each, at a small image size.

Widths and depths are reduced where timm takes them as arguments. `larger` is what the member
is made from by weight selection: its teacher, no smaller in any axis.
"""

import re
from dataclasses import dataclass, field
from typing import Any

VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2}
LARGER_VIT = {"embed_dim": 96, "depth": 3, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
LARGER_SWIN = SWIN | {"embed_dim": 48, "depths": [2, 2], "num_heads": [2, 4]}
STAGES = {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 40]}
LARGER_STAGES = {"depths": [2, 2, 2, 2], "dims": [24, 32, 48, 64]}
RESNET = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
LARGER_RESNET = {"layers": [2, 2, 2, 2], "channels": [32, 64, 128, 256]}


@dataclass(frozen=True)
class Family:
    """One row of the matrix.

    Attributes:
        name: of the family.
        kind: the heading that it stands under.
        model: a timm name.
        args: arguments of its builder that make it small.
        larger: arguments of the model that weight selection takes it from; None: the same.
        larger_model: that model's name; None: the same.
        image_size: pixels of the square images.
    """

    name: str
    kind: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)
    larger: dict[str, Any] | None = None
    larger_model: str | None = None
    image_size: int = 32

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"\W+", "-", self.name.lower()).strip("-")


def _vits() -> list[Family]:
    names = {
        "ViT": "vit_tiny_patch16_224",
        "ViT, registers, mean pooling": "vit_little_patch16_reg4_gap_256",
        "ViT, rotary positions": "vit_betwixt_patch16_rope_reg4_gap_256",
        "DINOv2 (patch 14)": "vit_small_patch14_dinov2",
        "DINOv2, registers": "vit_small_patch14_reg4_dinov2",
        "DINOv3": "vit_small_patch16_dinov3_qkvb",
        "DeiT": "deit_tiny_patch16_224",
        "DeiT, distilled": "deit_tiny_distilled_patch16_224",
        "DeiT III (LayerScale)": "deit3_small_patch16_224",
        "SigLIP (attention pooling)": "vit_base_patch16_siglip_224",
        "CLIP's ViT": "vit_base_patch32_clip_224",
        "BEiT": "beit_base_patch16_224",
        "BEiT v2": "beitv2_base_patch16_224",
        "EVA-02": "eva02_tiny_patch14_224",
        "CaiT": "cait_xxs24_224",
        "XCiT": "xcit_nano_12_p16_224",
        "ConViT": "convit_tiny",
    }
    # cross-covariance attention and gates: heads that the narrower model has too
    same_heads = LARGER_VIT | {"num_heads": 2}
    found = [
        Family(
            name,
            "Vision transformers",
            model,
            VIT,
            same_heads if name in ("CaiT", "XCiT", "ConViT") else LARGER_VIT,
        )
        for name, model in names.items()
    ]
    qk_norm = VIT | {"qk_norm": True, "init_values": 0.1}
    return [
        *found[:3],
        Family(
            "ViT, qk-norm and LayerScale",
            "Vision transformers",
            "vit_tiny_patch16_224",
            qk_norm,
            LARGER_VIT | {"qk_norm": True, "init_values": 0.1},
        ),
        *found[3:],
    ]


def _hierarchical() -> list[Family]:
    kind = "Hierarchical transformers"
    pit = {"base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 4]}
    pvt = {"embed_dims": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
    hiera = {"embed_dim": 16, "stages": [1, 1, 1, 1]}
    davit = {
        "embed_dims": [16, 32, 64, 128],
        "num_heads": [1, 2, 4, 8],
        "depths": [1, 1, 1, 1],
    }
    return [
        Family("Swin", kind, "swin_tiny_patch4_window7_224", SWIN, LARGER_SWIN),
        Family("Swin V2", kind, "swinv2_tiny_window8_256", SWIN, LARGER_SWIN),
        Family(
            "PiT",
            kind,
            "pit_ti_224",
            pit,
            pit | {"base_dims": [16, 16, 16], "depth": [2, 2, 2]},
        ),
        Family(
            "PVT v2",
            kind,
            "pvt_v2_b0",
            pvt | {"num_heads": [1, 2, 5, 8]},
            {
                "embed_dims": [32, 64, 80, 128],
                "depths": [2, 2, 2, 2],
                "num_heads": [1, 2, 5, 8],
            },
        ),
        Family(
            "Twins",
            kind,
            "twins_svt_small",
            {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
            {"embed_dims": [32, 64, 128, 256], "depths": [2, 2, 2, 2]},
        ),
        Family(
            "Hiera",
            kind,
            "hiera_tiny_224",
            hiera,
            hiera | {"embed_dim": 32, "stages": [2, 2, 2, 2]},
        ),
        Family(
            "MaxViT",
            kind,
            "maxvit_pico_rw_256",
            {"embed_dim": [32, 32, 64, 64], "depths": [1, 1, 1, 1]},
            {"embed_dim": [64, 64, 96, 96], "depths": [2, 2, 2, 2]},
        ),
        Family(
            "CoAtNet",
            kind,
            "coatnet_pico_rw_224",
            {"embed_dim": [64, 64, 96, 96], "depths": [1, 1, 1, 1]},
            {"embed_dim": [64, 64, 128, 128], "depths": [2, 2, 2, 2]},
        ),
        Family(
            "DaViT",
            kind,
            "davit_tiny",
            davit,
            davit | {"embed_dims": [32, 64, 128, 256], "depths": [2, 2, 2, 2]},
        ),
        Family("CrossViT", kind, "crossvit_tiny_240", {}, image_size=240),
    ]


def _convolutional() -> list[Family]:
    kind = "Convolutional networks"
    dense = {"growth_rate": 8, "block_config": [1, 1, 1, 1]}
    nfnet = {"depths": [1, 1, 1, 1], "channels": [256, 256, 256, 256]}
    return [
        Family("ResNet", kind, "resnet18", RESNET, LARGER_RESNET),
        Family("ResNet-D", kind, "resnet18d", RESNET, LARGER_RESNET),
        Family(
            "ResNeXt",
            kind,
            "resnext50_32x4d",
            RESNET | {"channels": [16, 32, 32, 64]},
            LARGER_RESNET | {"channels": [32, 32, 64, 64]},
        ),
        Family("SE-ResNet", kind, "seresnet18", RESNET, LARGER_RESNET),
        Family(
            "ResNet v2 (BiT)",
            kind,
            "resnetv2_50x1_bit",
            {"channels": [128, 128, 256, 256]},
        ),
        Family(
            "ResNeSt",
            kind,
            "resnest14d",
            {"channels": [16, 32, 64, 64]},
            {"channels": [32, 64, 64, 128]},
        ),
        Family("RegNet X", kind, "regnetx_002", {}),
        Family("RegNet Y", kind, "regnety_002", {}),
        Family("ConvNeXt", kind, "convnext_atto", STAGES, LARGER_STAGES),
        Family("ConvNeXt V2", kind, "convnextv2_atto", STAGES, LARGER_STAGES),
        Family("InceptionNeXt", kind, "inception_next_atto", STAGES, LARGER_STAGES),
        Family(
            "DenseNet",
            kind,
            "densenet121",
            dense,
            dense | {"block_config": [2, 2, 2, 2]},
        ),
        Family("VGG", kind, "vgg11_bn", {"mlp_ratio": 0.02}),
        Family("Inception v3", kind, "inception_v3", {}, image_size=96),
        Family(
            "NFNet",
            kind,
            "nfnet_l0",
            nfnet,
            {"depths": [2, 2, 2, 2], "channels": [256, 512, 512, 512]},
        ),
        Family("RepVGG", kind, "repvgg_a0", {}),
        Family("HGNet V2", kind, "hgnetv2_b0", {"head_hidden_size": 64}),
    ]


def _mobile() -> list[Family]:
    kind = "Mobile and hybrid networks"
    form = {"depths": [1, 1, 1, 2], "embed_dims": [16, 24, 32, 40]}
    return [
        Family(
            "MobileNet V3",
            kind,
            "mobilenetv3_small_050",
            larger_model="mobilenetv3_small_075",
        ),
        Family(
            "MobileNet V4",
            kind,
            "mobilenetv4_conv_small_035",
            larger_model="mobilenetv4_conv_small_050",
        ),
        Family("MobileNet V4, hybrid", kind, "mobilenetv4_hybrid_medium"),
        Family("EfficientNet", kind, "efficientnet_b0"),
        Family("EfficientNet-Lite", kind, "efficientnet_lite0"),
        Family("EfficientNet V2", kind, "tf_efficientnetv2_b0"),
        Family("TinyNet", kind, "tinynet_e", larger_model="tinynet_d"),
        Family("GhostNet", kind, "ghostnet_050", larger_model="ghostnet_100"),
        Family("ReXNet", kind, "rexnet_100", larger_model="rexnet_130"),
        Family("MobileViT", kind, "mobilevit_xxs", larger_model="mobilevit_xs"),
        Family("MobileViT v2", kind, "mobilevitv2_050", larger_model="mobilevitv2_075"),
        Family(
            "LeViT",
            kind,
            "levit_128s",
            {"embed_dim": [32, 48, 64], "depth": [1, 1, 1], "num_heads": [2, 3, 4]},
            {"embed_dim": [32, 64, 96], "depth": [2, 2, 2], "num_heads": [2, 4, 6]},
        ),
        Family(
            "EfficientFormer",
            kind,
            "efficientformer_l1",
            form | {"num_vit": 1},
            {"depths": [2, 2, 2, 2], "embed_dims": [24, 32, 48, 64], "num_vit": 1},
            image_size=224,
        ),
        Family("EfficientFormer V2", kind, "efficientformerv2_s0"),
        Family(
            "FastViT",
            kind,
            "fastvit_t8",
            {"layers": [1, 1, 1, 1], "embed_dims": [32, 64, 128, 256]},
            {"layers": [2, 2, 2, 2], "embed_dims": [48, 96, 192, 384]},
        ),
        Family(
            "RepViT",
            kind,
            "repvit_m0_9",
            {"embed_dim": [16, 24, 32, 40], "depth": [1, 1, 2, 1]},
            {"embed_dim": [24, 32, 48, 64], "depth": [2, 2, 2, 2]},
        ),
        Family(
            "TinyViT",
            kind,
            "tiny_vit_5m_224",
            {
                "embed_dims": [16, 32, 64, 128],
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 4, 8],
            },
            {
                "embed_dims": [32, 64, 128, 256],
                "depths": [2, 2, 2, 2],
                "num_heads": [1, 2, 4, 8],
            },
        ),
        Family(
            "EdgeNeXt",
            kind,
            "edgenext_xx_small",
            {"depths": [2, 2, 2, 2], "dims": [32, 64, 128, 256]},
            {"depths": [3, 3, 3, 3], "dims": [24, 48, 64, 80]},
        ),
    ]


def _without_attention() -> list[Family]:
    kind = "MLPs and pooling"
    return [
        Family("MLP-Mixer", kind, "mixer_s16_224", {"mlp_ratio": [0.25, 0.25]}),
        Family("ResMLP", kind, "resmlp_12_224"),
        Family("gMLP", kind, "gmlp_ti16_224"),
        Family("PoolFormer", kind, "poolformer_s12"),
        Family("MambaOut", kind, "mambaout_femto", STAGES, LARGER_STAGES),
    ]


FAMILIES: tuple[Family, ...] = (
    *_vits(),
    *_hierarchical(),
    *_convolutional(),
    *_mobile(),
    *_without_attention(),
)
"""Every row, in the order of the page."""
