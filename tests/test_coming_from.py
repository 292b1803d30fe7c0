"""What the page of translations shows is valid."""

import re
from pathlib import Path

import pytest

from sweeps.check import check_spec
from sweeps.space.overrides import apply_overrides
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import parse_yaml
from tests.optional import needs

PAGE = (Path(__file__).parent.parent / "docs" / "coming_from.md").read_text("utf-8")
NAMES = ("from-nni", "from-sparseml", "from-nncf")


def test_the_page_has_a_spec_of_each() -> None:
    assert tuple(re.findall(r"^name: (\S+)$", PAGE, re.MULTILINE)) == NAMES


@pytest.mark.parametrize(
    "name",
    [
        NAMES[0],
        pytest.param(NAMES[1], marks=needs("nncf")),
        pytest.param(NAMES[2], marks=needs("nncf", "openvino")),
    ],
)
def test_the_specs_hold(name: str, tmp_path: Path) -> None:
    text = re.findall(rf"```yaml\n(name: {name}\n.*?)```", PAGE, re.DOTALL)[0]
    ours = [
        "data={dataset: digits}",  # the reader's photos
        "source={model: resnet18}",  # and weights
        f"storage={tmp_path}",
    ]
    check_spec(spec_from(apply_overrides(parse_yaml(text, name)[0], ours)))
