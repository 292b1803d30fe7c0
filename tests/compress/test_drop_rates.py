"""What a fit asks of its model is checked before it runs."""

import pytest

from compress.finetune import Finetune
from trainers.data.splits import Data
from trainers.models.make import make_arch

SHORT = {"epochs": 1, "batch_size": 8, "warmup": 0}
DENSE = {"growth_rate": 8, "block_config": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ({"drop_path": 0.1}, "drop_path: densenet121 does not take drop_path_rate"),
        ({"drop_path": 0.1, "drop": 0.1}, "drop_path: densenet121"),
    ],
)
def test_a_rate_that_the_model_lacks_is_refused_by_name(
    rates: dict[str, float], named: str, digits: Data
) -> None:
    arch = make_arch("densenet121", num_classes=10, image_size=32, args=DENSE)
    stage = Finetune.model_validate(SHORT | rates)
    with pytest.raises(ValueError, match="leave drop") as caught:
        stage.check(arch, digits.info)
    assert str(caught.value).startswith(named)


def test_a_rate_that_the_model_has_passes(digits: Data) -> None:
    arch = make_arch("densenet121", num_classes=10, image_size=32, args=DENSE)
    stage = Finetune.model_validate(SHORT | {"drop": 0.1})
    assert stage.check(arch, digits.info) == arch
