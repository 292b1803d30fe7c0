"""Options of training augmentation; `trainers.data.augment` does it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trainers.option_types import Config, Shares

_USED_BY_FLIP = {"preset", "hflip", "crop", "crop_padding_px", "crop_scale"}


class AugmentConfig(Config):
    """Training augmentation (DeiT's by default; `augment: {preset: none}` switches all off)."""

    preset: Literal["deit", "flip", "none"] = Field(
        "deit",
        description="deit: as the fields say; flip: crop and flip only; none: nothing",
    )
    hflip: float = Field(0.5, ge=0, le=1, description="probability")
    crop: Literal["auto", "resized", "padded", "random", "none"] = Field(
        "auto",
        description=(
            "auto: padded random crop at <= 32 px, random resized crop above; random:"
            " resize as at evaluation (data.crop_fraction), then crop at random"
        ),
    )
    crop_padding_px: int = Field(4, ge=0, description="padded crop: black border")
    crop_scale: Shares = Field(
        (0.08, 1.0), description="resized crop: smallest and largest share of the area"
    )
    color_jitter: float = Field(
        0.4, ge=0, description="used where `auto_augment` is off, as in timm"
    )
    auto_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="timm's notation, or null"
    )
    three_augment: bool = Field(
        False, description="DeiT III: one of grey, solarise, blur, then colour jitter"
    )
    erase_prob: float = Field(0.25, ge=0, le=1, description="random erasing")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel",
        description="what fills a rectangle: zeros, one random colour, a colour a pixel",
    )
    erase_count: int = Field(1, ge=1, description="rectangles at most")
    erase_resplit: bool = Field(
        False, description="leave the first of the repeated copies clean of erasing"
    )
    repeats: int = Field(
        3,
        ge=1,
        description=(
            "repeated augmentation: copies of an image in an epoch's order; 1 is off"
        ),
    )
    mixup: float = Field(0.8, ge=0, description="alpha; 0 is off")
    cutmix: float = Field(1.0, ge=0, description="alpha; 0 is off")
    cutmix_minmax: Shares | None = Field(
        None, description="sides of the cut, as shares of the image's; alpha is then 1"
    )
    mix_prob: float = Field(
        1.0, ge=0, le=1, description="probability of mixup or cutmix for a batch"
    )
    mix_switch_prob: float = Field(
        0.5, ge=0, le=1, description="probability of cutmix where both are on"
    )
    mix_mode: Literal["batch", "pair", "elem"] = Field(
        "batch", description="what shares one mixing ratio: a batch, a pair, an image"
    )

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "AugmentConfig":
        if self.preset != "deit":
            used = _USED_BY_FLIP if self.preset == "flip" else {"preset"}
            fields = type(self).model_fields
            idle = [
                name
                for name in fields
                if name not in used and getattr(self, name) != fields[name].default
            ]
            if idle:
                raise ValueError(
                    f"preset {self.preset!r} does not read {', '.join(idle)}; leave"
                    " them out, or take preset deit and switch off there what you do"
                    " not want"
                )
        return self

    @property
    def mixes(self) -> bool:
        """Whether targets become soft (mixup or cutmix on)."""
        return (
            self.preset == "deit"
            and self.mix_prob > 0
            and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)
        )


def _augment_by_name(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


Augment = Annotated[
    AugmentConfig,
    BeforeValidator(
        _augment_by_name,
        json_schema_input_type=AugmentConfig | Literal["deit", "flip", "none"],
    ),
]
"""An `AugmentConfig`, or just the name of its preset."""
