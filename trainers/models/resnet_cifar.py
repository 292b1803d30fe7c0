"""CIFAR ResNets of He et al. 2016, section 4.2: 6n+2 layers, 16/32/64 channels, option-A shortcuts.

Parameter names are those of the widely used public checkpoints:
`conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

RESNET_CIFAR = {
    "resnet20_cifar": 3,
    "resnet32_cifar": 5,
    "resnet44_cifar": 7,
    "resnet56_cifar": 9,
}
"""Name → blocks per stage (n)."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; a shape-changing shortcut subsamples and pads channels with zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        low = (channels - in_channels) // 2
        self.channel_pad = (low, channels - in_channels - low)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if any(self.channel_pad):
            shortcut = F.pad(shortcut, (0, 0, 0, 0, *self.channel_pad))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNetCifar(nn.Module):
    """Input (B, 3, H, W), H and W at least 4; output (B, num_classes)."""

    def __init__(
        self, blocks_per_stage: int, num_classes: int, width: int = 16
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks_per_stage, 1)
        self.layer2 = self._stage(width, 2 * width, blocks_per_stage, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks_per_stage, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        self.num_classes = num_classes
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(
        in_channels: int, channels: int, blocks: int, stride: int
    ) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(
            first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1))
        )

    def get_classifier(self) -> nn.Module:
        """The classifying layer (timm's name for it)."""
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet_cifar(name: str, *, num_classes: int, width: int = 16) -> ResNetCifar:
    """Build a member of `RESNET_CIFAR`; `width` is the first stage's channels (paper: 16)."""
    return ResNetCifar(RESNET_CIFAR[name], num_classes, width)
