"""What `sweeps shrink` sees of a user's photos and model, and how it says what is missing."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor, nn

from sweeps.shrink import look as looking
from sweeps.shrink.methods import training_config
from sweeps.spec.yaml_text import SpecError
from tests.trainers.data.pictures import class_folders
from trainers.config import SourceConfig
from trainers.models.arch import Arch
from trainers.models.source import load_source


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights, of two classes."""
    folder = tmp_path_factory.mktemp("model") / "model"
    config = SourceConfig(model="resnet20_cifar")
    load_source(config, num_classes=2, image_size=32, seed=0).save(folder)
    return folder


def looked_at(model: Path, photos: Path) -> looking.Look:
    section = looking.data_section(str(photos))
    return looking.look(looking.source_section(str(model), None), section, ("torch",))


@pytest.mark.parametrize(
    ("size", "kept"), [((128, 128), "yes"), ((128, 130), None)], ids=["alike", "not"]
)
def test_photos_are_kept_in_memory_where_they_are_squares_of_one_size(
    size: tuple[int, int], kept: str | None, model: Path, tmp_path: Path
) -> None:
    seen = looked_at(model, class_folders(tmp_path / "photos", size=size))
    assert seen.data.get("in_memory") == kept
    said = looking.preprocessing(seen)
    assert said.startswith("224 px, mean 0.485, 0.456, 0.406")
    assert f"{{dataset: folder, root: {tmp_path / 'photos'}, image_size: PX" in said


@pytest.mark.parametrize(("limit", "kept"), [(8, None), (9, "yes")])
def test_photos_in_memory_count_with_their_own_size_and_those_of_the_test_part(
    limit: int, kept: str | None, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of 512 px where the model sees 224: 12 to train on and 4 to test are 12.6 MB."""
    most = int(limit / 8 * 16 * 3 * 512**2)
    monkeypatch.setattr(looking, "_MOST_BYTES_IN_MEMORY", most)
    seen = looked_at(model, class_folders(tmp_path / "photos", size=(512, 512)))
    assert seen.info.image_size == 224
    assert seen.data.get("in_memory") == kept


def test_how_an_option_of_the_data_is_given(model: Path, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", size=(128, 128))
    broken = photos / "train" / "dark" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SpecError, match=r"data\.max_unreadable \(an option .*KEY: VALUE}"
    ):
        looked_at(model, photos)
    Image.new("RGB", (128, 128)).save(broken)
    assert looked_at(model, photos).info.num_classes == 2


def test_a_model_of_grey_images_is_refused(tmp_path: Path) -> None:
    grey = SourceConfig(model="resnet18", args={"in_chans": 1})
    load_source(grey, num_classes=10, image_size=32, seed=0).save(tmp_path / "grey")
    source = looking.source_section(str(tmp_path / "grey"), None)
    with pytest.raises(
        SpecError, match=r"^MODEL: .* resnet18 takes 1 \(in_chans\); give"
    ):
        looking.look(source, {"dataset": "digits"}, ("torch",))


def test_a_run_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    with pytest.raises(SpecError, match=r"is a run folder; .* sweeps export .* TRIAL"):
        looking.source_section(str(tmp_path), None)


class _Flat(nn.Module):
    """As older models write it: a view of all that an image has, in the order of NCHW."""

    def forward(self, images: Tensor) -> Tensor:
        return images.view(len(images), -1)


def test_a_model_of_convolutions_is_trained_channels_last(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can: not a ViT, which has one of them, nor one that needs another layout."""
    photos = class_folders(tmp_path / "photos", size=(128, 128))
    seen = looked_at(model, photos)
    assert training_config(seen, 100)["channels_last"] is True
    section = looking.data_section(str(photos))
    vit = looking.look({"model": "vit_tiny_patch16_224"}, section, ("torch",))
    assert "channels_last" not in training_config(vit, 100)
    for last, works in ((nn.Identity(), True), (_Flat(), False)):
        layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), last)
        monkeypatch.setattr(
            Arch, "build", lambda _, layers=layers: nn.Sequential(*layers)
        )
        assert (
            looking._runs_channels_last(Arch("timm", f"works_{works}", {}), 32) is works
        )
