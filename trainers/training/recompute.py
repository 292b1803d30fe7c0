"""Activations that are computed again in the backward pass in place of being kept."""

from torch import nn


def recompute_activations(module: nn.Module, enable: bool = True) -> None:
    """Switch it on or off, as timm's models offer it.

    Raises:
        ValueError: the model does not offer it.
    """
    switch = getattr(module, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError("it has no set_grad_checkpointing")
        switch(enable)
    except AssertionError as error:  # timm's way to say so
        raise ValueError(
            f"grad_checkpointing: {type(module).__name__} cannot compute its activations"
            f" again ({error}); leave grad_checkpointing out, or lower"
            " max_batch_per_worker to save memory"
        ) from None
