"""Learngenes in your own training loop: an auxiliary network to train, and its descendants."""

from typing import Any, Literal

import torch
from torch import nn

from compress.learngene.lets import LetsAux, LetsExpand
from compress.learngene.shared import Auxiliary, Expansion
from compress.learngene.sweet import SweetAux, SweetExpand
from compress.learngene.sws import SwsAux, SwsExpand
from compress.learngene.tleg import TlegAux, TlegExpand
from compress.learngene.wave import WaveAux, WaveExpand
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState

Method = Literal["sws", "tleg", "lets", "wave", "sweet"]
_STAGES: dict[Method, tuple[type[Auxiliary], type[Expansion]]] = {
    "sws": (SwsAux, SwsExpand),
    "tleg": (TlegAux, TlegExpand),
    "lets": (LetsAux, LetsExpand),
    "wave": (WaveAux, WaveExpand),
    "sweet": (SweetAux, SweetExpand),
}
_NOTHING = Arch("timm", "none")
_MANY = 1 << 40  # images: no fit is checked against them here


class Learngene:
    """One auxiliary network, and the plain timm ViTs that it expands into.

    Args:
        method: sws (stages of shared layers), tleg (a line between two layers), lets
            (learned growth in width and depth), wave (templates and Kronecker products) or
            sweet (a core in Tucker form).
        num_classes: of the data.
        image_size: pixels of a square image.
        seed: of the initialisation.
        options: the fields of the method's stage `<method>_aux` that describe its network:
            patch_size, embed_dim, num_heads, repeats, depth, …

    Attributes:
        network: the auxiliary network; train it as you like.

    Raises:
        ValueError: options that do not fit together.
    """

    def __init__(
        self,
        method: Method,
        *,
        num_classes: int,
        image_size: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        auxiliary, self._expansion = _STAGES[method]
        self._info = DataInfo(num_classes, image_size, _MANY)
        self.arch = auxiliary.model_validate(options).check(_NOTHING, self._info)
        self.network: nn.Module = ModelState.initialised(self.arch, seed).build()

    def expand(self, *, seed: int = 0, **options: Any) -> nn.Module:
        """A descendant, initialised from the network as it is now; in eval mode, on the
        network's device.

        Args:
            seed: of a fresh classifier.
            options: the fields of the method's stage `<method>_expand`: depth,
                layers_source, width, head, …

        Raises:
            ValueError: a size that the network cannot expand into.
        """
        device = next(self.network.parameters()).device
        expansion = self._expansion.model_validate(options)
        state = ModelState.from_module(self.arch, self.network)
        with torch.no_grad():
            descendant = expansion.expand(state, self._info, seed)
        return descendant.build().to(device)
