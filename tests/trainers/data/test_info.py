"""What a data set says of itself."""

from trainers.config import DataConfig
from trainers.data.info import DataInfo, named
from trainers.data.splits import data_info


def test_the_digits_describe_themselves() -> None:
    info = data_info(DataConfig(limit=60, limit_test=20, val_fraction=0.25))
    assert info.describe() == (
        "10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), 45 train, 15 val, 20 test, 32 px,"
        " from digits"
    )
    assert (info.size_from, info.remarks) == ("the images", ())


def test_of_many_names_the_first_are_shown() -> None:
    many = tuple(f"n{k:08d}" for k in range(1000))
    info = DataInfo(1000, 224, 1_200_000, many, num_test=50_000, place="/imagenet")
    assert info.describe() == (
        "1,000 classes (n00000000, n00000001, n00000002, n00000003, n00000004, …),"
        " 1,200,000 train, 0 val, 50,000 test, 224 px, from /imagenet"
    )
    assert len(named(("x" * 300,))) == 40


def test_names_cannot_steer_a_terminal() -> None:
    assert named(("a\nb", "c\x1b[31md", "caf\u00e9", "\udcff")) == (
        r"a\nb, c\x1b[31md, café, \udcff"
    )


def test_classes_that_the_split_leaves_untrained_are_told() -> None:
    told = data_info(DataConfig(limit=10, val_fraction=0.5)).remarks
    assert len(told) == 1
    assert told[0].startswith("No image to train on is left of ")
    assert told[0].endswith("after data.limit and the validation part are taken.")
