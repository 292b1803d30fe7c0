"""Validated configuration of data and training: every option of the published recipes has
its place.

Defaults are those of the DeiT family. Names that carry a unit say it; durations are `Duration`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from trainers.augment_options import Augment, AugmentConfig
from trainers.hashing import LATER
from trainers.option_types import (
    MAY_BE_GONE,
    Config,
    Deviation,
    Duration,
    ModelName,
    Shares,
    SourceName,
    UserPath,
    YesOrNo,
)
from trainers.shard_options import ShardOptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataConfig(Config, ShardOptions):
    """A labelled image data set, its validation split and how images reach the model."""

    dataset: str = Field(
        "digits",
        description=(
            "digits is bundled; folder, parquet and webdataset read `root`, hf `root` or"
            " `name`; cifar10, cifar100, flowers102, pets, stl10, food101, dtd, svhn and"
            " eurosat come through torchvision; plugins may offer more"
        ),
    )
    root: UserPath | None = Field(None, description="folder of the data set")
    download: bool = Field(
        False, description="let torchvision download the set into `root`"
    )
    image_size: int | None = Field(
        None,
        ge=4,
        json_schema_extra={"unit": "px"},
        description=(
            "pixels that the model sees; default: the size of the images where all are"
            " squares of one size up to 96 px, and 224 where most are larger"
        ),
    )
    mean: tuple[float, float, float] = Field(
        IMAGENET_MEAN, description="per channel, of images in [0, 1]"
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        IMAGENET_STD, description="per channel, of images in [0, 1]"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bicubic", description="how images are resized"
    )
    crop_fraction: float = Field(
        0.875,
        gt=0,
        le=1,
        description=(
            "centre crop at evaluation (224 of 256); images of at most 32 px are not"
            " cropped"
        ),
    )
    resize: Annotated[Literal["side", "warp"], LATER] = Field(
        "side",
        description=(
            "before a crop. side: the shorter side, the aspect ratio stays; warp: both"
            " sides, to a square"
        ),
    )
    val_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description=(
            "part of the training set that the search sees and no trial trains on; 0:"
            " train on all, and then there is nothing that could guide a search"
        ),
    )
    val_from: Annotated[Literal["auto", "train"], LATER] = Field(
        "auto",
        description=(
            "where the images that the search sees come from. auto: the data set's own"
            " validation part, where it has one and a test part; train: the training part,"
            " of which val_fraction is split off, as where there is no such part"
        ),
    )
    split_seed: int = Field(
        0, ge=0, description="seed of the validation split, the same for all trials"
    )
    limit: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "images"},
        description="use only this many training images (before the split, seeded)",
    )
    limit_test: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "images"},
        description="use only this many test images",
    )
    in_memory: YesOrNo = Field(
        "auto",
        description=(
            "auto: images of at most 96 px are decoded once and shared; larger ones"
            " stream"
        ),
    )
    workers: int = Field(
        2, ge=0, description="loader processes of a trial when images stream"
    )
    pin_memory: bool = Field(
        True, description="load batches into page-locked memory, for a GPU"
    )
    max_unreadable: int = Field(
        0,
        ge=0,
        json_schema_extra={"unit": "images"},
        description="unreadable images to skip (each is named) before it is an error",
    )
    exif_rotation: bool = Field(
        False,
        description=(
            "turn images as their EXIF orientation says; off, as in torchvision's and"
            " timm's loaders"
        ),
    )
    white_level: float | None = Field(
        None,
        gt=0,
        description=(
            "value of white in images of more than 8 bits a channel; default: 1 for real"
            " numbers up to 1, else the first of 255, 4095 and 65535 that no training"
            " image exceeds"
        ),
    )


class DistillConfig(Config):
    """Knowledge distillation as in DeiT (Touvron et al. 2021, section 4)."""

    teacher: ModelName = Field(
        description=(
            "'source', 'stage:NAME' (an earlier stage's model), a folder with a model, or"
            " a timm model name (pretrained)"
        )
    )
    teacher_checkpoint: UserPath | None = Field(
        None, description="weights of a timm-named teacher"
    )
    kind: Literal["soft", "hard"] = Field(
        "hard", description="towards the teacher's probabilities, or its decisions"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the distillation term")
    tau: float = Field(1.0, gt=0, description="temperature (soft)")
    base_loss_heads: Annotated[Literal["class", "mean"], LATER] = Field(
        "class",
        description=(
            "logits that the loss of labels takes from a model of two heads. class: the"
            " class head's, as in DeiT; mean: the mean of both heads', as NViT's code"
        ),
    )


class EmaConfig(Config):
    """Exponential moving average of the weights."""

    decay: float = Field(
        0.99996, gt=0, lt=1, description="share of the average that a step keeps"
    )
    device: str | None = Field(
        None,
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="'cpu' keeps the copy off the accelerator",
    )
    use: bool = Field(False, description="evaluate and return the averaged weights")


_Momentum = Annotated[float, Field(ge=0, lt=1)]


class FitOptions(Config):
    """All options of a fit except its length: schedule, optimiser, regularisation,
    augmentation, precision.
    """

    batch_size: int = Field(
        512, ge=1, description="global, over all workers and accumulation steps"
    )
    images_per_epoch: int | None = Field(
        None,
        ge=1,
        description=(
            "length of an epoch, drawn anew for each; default: every training image"
            " once"
        ),
    )
    max_batch_per_worker: int | None = Field(
        None, ge=1, description="memory limit; accumulation is derived from it"
    )
    lr: float = Field(5e-4, gt=0, description="at a global batch of 512")
    lr_scaling: Literal["linear", "unscaled"] = Field(
        "linear", description="linear: lr, min_lr and warmup_lr times batch_size / 512"
    )
    min_lr: float = Field(1e-5, ge=0, description="where the schedule ends")
    warmup_lr: float = Field(1e-6, ge=0, description="where the warm-up begins")
    scale_min_lr: Annotated[bool, LATER] = Field(
        True,
        description=(
            "scale min_lr and warmup_lr as lr is scaled; false: take them as they are"
        ),
    )
    warmup: Duration = Field(
        "10%", description="epochs, or 'N steps', 'N%' of the training"
    )
    schedule: Literal["cosine", "step", "plateau", "constant"] = Field(
        "cosine", description="how lr falls after the warm-up"
    )
    schedule_step: Annotated[Literal["step", "epoch", "epoch_start"], LATER] = Field(
        "step",
        description=(
            "when lr changes. step: with every optimiser step; epoch: once an epoch, to"
            " the schedule's value at the start of the epoch before, as in DeiT's code"
            " (the first two epochs have the same lr); epoch_start: once an epoch, to its"
            " value at the start of this epoch"
        ),
    )
    cosine_span: Annotated[Literal["whole", "after_warmup"], LATER] = Field(
        "whole",
        description=(
            "whole: the cosine begins with the fit, and warm-up takes its first part;"
            " after_warmup: it begins at lr when warm-up ends"
        ),
    )
    decay_rate: float = Field(0.1, gt=0, le=1, description="step and plateau")
    decay_epochs: float = Field(30, gt=0, description="step")
    cooldown_epochs: int = Field(
        0, ge=0, description="cosine: last ones, at min_lr; plateau: rest after a fall"
    )
    patience_epochs: int = Field(10, ge=0, description="plateau")
    lr_noise: Shares | None = Field(
        None, description="range of the fit, as fractions, in which lr is noisy"
    )
    lr_noise_pct: float = Field(0.67, gt=0, description="largest, as a share of lr")
    lr_noise_std: float = Field(1.0, gt=0, description="its standard deviation")

    optimizer: str = Field("adamw", description="any timm optimiser name")
    eps: float | None = Field(
        1e-8, gt=0, description="the optimiser's epsilon; null: its own default"
    )
    betas: tuple[_Momentum, _Momentum] | None = Field(
        None, description="of optimisers that have them; null: the optimiser's default"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of optimisers that have it")
    weight_decay: float = Field(
        0.05, ge=0, description="of matrices and kernels; biases and norms have none"
    )
    weight_decay_end: float | None = Field(
        None, ge=0, description="cosine from weight_decay to this"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="factor of lr from each layer to the one below"
    )
    clip_grad: float | None = Field(None, gt=0, description="gradient norm")

    drop: float = Field(0.0, ge=0, lt=1, description="dropout before the classifier")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="default: as the model was built (DeiT: 0.1)"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of a label that all classes get"
    )
    ema: EmaConfig | None = Field(None, description="averaged weights")
    train_mode: Annotated[bool, LATER] = Field(
        True,
        description=(
            "false: layers stay in eval mode while they are trained (no dropout, no"
            " stochastic depth, BatchNorm by its running statistics)"
        ),
    )
    augment: Augment = Field(AugmentConfig(), description="how images are varied")

    amp: Literal["none", "bf16", "fp16"] = Field(
        "none", description="autocast; fp16 with a gradient scaler"
    )
    channels_last: bool = Field(
        False, description="memory layout NHWC, which convolutions on GPUs prefer"
    )
    compile: bool = Field(False, description="torch.compile")
    grad_checkpointing: Annotated[bool, LATER] = Field(
        False,
        description=(
            "keep fewer activations for the backward pass and compute the others again:"
            " less memory for more time, the same losses"
        ),
    )
    tf32: bool = Field(
        True, description="let GPUs multiply float32 matrices in TensorFloat-32"
    )
    eval_every: int = Field(
        1,
        ge=1,
        json_schema_extra={"unit": "epochs"},
        description="epochs between evaluations on the validation part",
    )
    checkpoint_every: int = Field(
        1,
        ge=1,
        json_schema_extra={"unit": "epochs"},
        description="epochs between checkpoints",
    )
    keep_checkpoints: int = Field(1, ge=1, description="newest ones that stay on disk")

    def scaled(self, rate: float) -> float:
        """`rate` (stated at a batch of 512) at this global batch size."""
        return rate * self.batch_size / 512 if self.lr_scaling == "linear" else rate

    def scaled_low(self, rate: float) -> float:
        """`min_lr` or `warmup_lr` at this global batch size."""
        return self.scaled(rate) if self.scale_min_lr else rate

    def accumulation(self, world_size: int) -> tuple[int, int]:
        """(micro-batch per worker, accumulation steps) whose product over workers is `batch_size`.

        Raises:
            ValueError: the global batch does not divide by the world size.
        """
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by {world_size} workers;"
                " choose a multiple"
            )
        per_worker = self.batch_size // world_size
        limit = min(self.max_batch_per_worker or per_worker, per_worker)
        steps = math.ceil(per_worker / limit)
        while per_worker % steps:
            steps += 1
        return per_worker // steps, steps


class TrainConfig(FitOptions):
    """All options of a fit."""

    epochs: int = Field(300, ge=0, description="length of the fit")
    schedule_epochs: Annotated[int | None, LATER] = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "epochs"},
        description=(
            "length of the fit that the schedule is laid out for; default: `epochs`. With more, the"
            " fit ends before its schedule does, and one with more epochs goes on from its end"
        ),
    )

    @property
    def scheduled_epochs(self) -> int:
        """Epochs over which the schedule runs."""
        return self.schedule_epochs or self.epochs


class SourceConfig(Config):
    """The model that a pipeline starts from."""

    model: SourceName | None = Field(
        None,
        description=(
            "a timm model name (hf-hub:OWNER/NAME and local-dir:FOLDER too),"
            " resnet20_cifar, 32, 44, 56 or revit; not needed with a folder that says it"
        ),
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="builder arguments: patch_size, embed_dim, depth, drop_rate, …",
    )
    pretrained: bool = Field(
        False, description="timm's pretrained weights (needs the internet once)"
    )
    checkpoint: UserPath | None = Field(
        None,
        description="a file of safetensors or torch.save, or a folder of ours or of the Hub",
    )
    checkpoint_key: str | None = Field(
        None,
        description=(
            "place of the weights in the file (model, state_dict_ema, …); default: found"
            " by names and shapes, averaged weights first"
        ),
    )
    checkpoint_prefix: str = Field(
        "", description="prefix to strip from parameter names; usual ones are found"
    )
    head_init_scale: float | None = Field(
        None, gt=0, description="multiply a re-initialised classifier by this"
    )

    @model_validator(mode="after")
    def _one_source(self, info: ValidationInfo) -> "SourceConfig":
        must_exist = not (info.context or {}).get(MAY_BE_GONE, False)
        if self.model is None and (
            self.checkpoint is None or (must_exist and not self.checkpoint.is_dir())
        ):
            wanted = "a folder with model.json or config.json"
            raise ValueError(f"`model` is needed unless `checkpoint` is {wanted}")
        if self.pretrained and self.checkpoint is not None:
            raise ValueError("give either `pretrained: true` or `checkpoint`, not both")
        if must_exist and self.checkpoint is not None and not self.checkpoint.exists():
            raise ValueError(f"`checkpoint`: no such file: {self.checkpoint}")
        return self
