"""One forward pass tells whether a model takes the images of a data set."""

import pytest

from compress.measure.model import forward_pass, static_cost
from compress.measure.passes import check_forward, check_training_pass
from trainers.models.arch import Arch
from trainers.models.make import make_arch

SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8}


def vit(image_size: int = 32) -> Arch:
    name = "vit_tiny_patch16_224"
    return make_arch(name, num_classes=5, image_size=image_size, args=SMALL)


def test_a_pass_counts_the_same_with_and_without_values() -> None:
    """Attention pooling draws its query from parameters alone."""
    pooled = make_arch(
        "vit_base_patch16_siglip_224", num_classes=5, image_size=32, args=SMALL
    )
    for arch in (vit(), pooled):
        quick, thorough = (forward_pass(arch, 32, quickly=q) for q in (True, False))
        assert quick == thorough
        assert quick.outputs == (1, 5)
        assert static_cost(arch, 32)["gmacs"] == quick.gmacs > 0


def test_a_model_that_takes_the_images_passes() -> None:
    check_forward(vit(), 32, 5)
    check_training_pass(vit(), 32, 1)


def test_other_images_and_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"64 px \(img_size\), and the data gives 32"):
        check_forward(vit(64), 32, 5)
    with pytest.raises(ValueError, match=r"shape \(5,\) .* data has 7 classes"):
        check_forward(vit(), 32, 7)


def test_one_image_in_a_batch_needs_a_model_that_takes_it() -> None:
    resnet = make_arch("resnet18", num_classes=5, image_size=32)
    check_training_pass(resnet, 32, 2)
    with pytest.raises(ValueError, match=r"resnet18 has a layer .*2 images or more"):
        check_training_pass(resnet, 32, 1)
