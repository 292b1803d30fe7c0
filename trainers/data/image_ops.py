"""Pillow's image operations on whole batches.

Images are uint8 (B, 3, H, W); arguments hold one value per image, (B,), on the images'
device. Results are those of PIL.ImageOps / ImageEnhance / Image.transform up to rounding,
so that augmentation magnitudes mean what they mean in timm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = str  # "bilinear" or "bicubic"


def to_uint8(images: Tensor) -> Tensor:
    """Float images in about [0, 255], rounded."""
    return images.round_().clamp_(0, 255).to(torch.uint8)


def per_image(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), to broadcast over images."""
    return values.view(-1, 1, 1, 1)


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate), clipped and truncated as Image.blend;
    factor (B,).
    """
    base = degenerate.float()
    return (
        base.add((images.float() - base).mul_(per_image(factor)))
        .clamp_(0, 255)
        .to(torch.uint8)
    )


def grey(images: Tensor) -> Tensor:
    """Luma as Image.convert("L"): uint8 (B, 1, H, W)."""
    r, g, b = images.int().split(1, dim=1)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).to(torch.uint8)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Color: 0 is grey, 1 the image."""
    return blend(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Contrast: 0 is the mean grey level, 1 the image."""
    mean = grey(images).double().mean(dim=(1, 2, 3)).add_(0.5).floor_()
    return blend(per_image(mean), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Brightness: 0 is black, 1 the image."""
    return (images * per_image(factor)).clamp_(0, 255).to(torch.uint8)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Sharpness: 0 is smoothed, 1 the image, 2 sharpened; the border stays as
    it is.
    """
    # weights 1, in the middle 5, over 13; whole numbers, so no order of sums changes a bit
    levels = images.short()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    total.add_(levels[:, :, 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = total.mul_(2).add_(13).div_(26, rounding_mode="floor")
    return blend(smooth, images, factor)


def auto_contrast(images: Tensor) -> Tensor:
    """ImageOps.autocontrast: each channel stretched to 0..255."""
    low = images.amin(dim=(2, 3), keepdim=True).double()
    high = images.amax(dim=(2, 3), keepdim=True).double()
    # 255 / x would round twice
    scale = torch.full_like(high, 255).div_((high - low).clamp_(min=1))
    stretched = (images * scale).sub_(low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """ImageOps.equalize: each channel's histogram made flat."""
    flat = images.flatten(2).long()
    histogram = torch.zeros(
        *flat.shape[:2], 256, dtype=torch.long, device=images.device
    )
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    last = histogram.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    below = histogram.cumsum(2) - histogram
    table = (below + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.clamp_(max=255).gather(2, flat).view_as(images).to(torch.uint8)


def invert(images: Tensor) -> Tensor:
    """ImageOps.invert."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """ImageOps.posterize: the upper `bits` (int, 0..8) of each value stay."""
    mask = 256 - (1 << (8 - bits.clamp(0, 8)))
    return images & per_image(mask).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """ImageOps.solarize: values from `threshold` (int, 0..256) up are inverted."""
    return torch.where(images < per_image(threshold), images, 255 - images)


def solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    """timm's SolarizeAdd: `addition` (int) is added to values below 128."""
    brighter = (images.int() + per_image(addition)).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of `sigma` px (at most 2), edges repeated, as ImageFilter.GaussianBlur
    approximates it.
    """
    radius = 6
    batch, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (
        (kernel / kernel.sum(1, keepdim=True))
        .to(torch.float32)
        .repeat_interleave(channels, 0)
    )
    planes = F.pad(images.float(), (radius,) * 4, mode="replicate").view(
        1, batch * channels, height + 12, width + 12
    )
    planes = F.conv2d(
        planes, kernel.view(-1, 1, 1, 2 * radius + 1), groups=batch * channels
    )
    planes = F.conv2d(
        planes, kernel.view(-1, 1, 2 * radius + 1, 1), groups=batch * channels
    )
    return to_uint8(planes.view_as(images))


def affine(
    images: Tensor, matrix: Tensor, interpolation: Interpolation, fill: Tensor
) -> Tensor:
    """Image.transform(AFFINE): `matrix` (B, 2, 3) maps output to input positions in [-1, 1].

    Pixels whose centre falls outside the image become `fill` ((3,), 0..255).
    """
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(
        images.float(), grid, interpolation, padding_mode="border", align_corners=False
    )
    inside = ((grid >= -1) & (grid < 1)).all(dim=-1).unsqueeze(1)
    return to_uint8(torch.where(inside, moved, fill.view(1, 3, 1, 1)))


def resized_crop(
    images: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: Interpolation
) -> Tensor:
    """Crop and resize in one sampling, without antialiasing: float (B, 3, size, size) in [0, 255].

    Args:
        boxes: (B, 4) top, left, height, width in px.
        flip: (B,) bool: mirror left to right.
    """
    height, width = images.shape[2:]
    top, left, box_height, box_width = boxes.float().unbind(1)
    zero = torch.zeros_like(top)
    mirror = torch.where(flip, -1.0, 1.0)
    rows = [
        torch.stack(
            [mirror * box_width / width, zero, (2 * left + box_width) / width - 1],
            dim=1,
        ),
        torch.stack(
            [zero, box_height / height, (2 * top + box_height) / height - 1], dim=1
        ),
    ]
    grid = F.affine_grid(
        torch.stack(rows, dim=1), [len(images), 3, size, size], align_corners=False
    )
    sampled = F.grid_sample(
        images.float(), grid, interpolation, padding_mode="border", align_corners=False
    )
    return sampled.clamp_(0, 255)


def resize(images: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Antialiased resize to `size` px: float (B, 3, size, size) in [0, 255]."""
    return F.interpolate(
        images.float(), (size, size), mode=interpolation, antialias=True
    ).clamp_(0, 255)


def padded_crop(
    images: Tensor, padding: int, size: int, top: Tensor, left: Tensor, flip: Tensor
) -> Tensor:
    """Crop a square of `size` px at (top, left) (int) from the image padded with black, then
    mirror where `flip`.
    """
    batch, channels = images.shape[:2]
    padded = F.pad(images, (padding,) * 4)
    x = torch.arange(size, device=images.device)
    columns = torch.where(flip.view(-1, 1), size - 1 - x, x) + left.view(-1, 1)
    rows = (x + top.view(-1, 1)) * padded.shape[3]
    places = (rows.unsqueeze(2) + columns.unsqueeze(1)).view(batch, 1, size * size)
    cropped = padded.flatten(2).gather(2, places.expand(-1, channels, -1))
    return cropped.view(batch, channels, size, size)
