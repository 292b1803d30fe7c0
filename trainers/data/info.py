"""What is known about a data set before it is used: facts, and what a user must know of it."""

from dataclasses import dataclass

from trainers.data.decoding import PLAIN, Decoding
from trainers.words import printable

ALL_NAMES = 10
"""Classes up to which a description names every one; of more it names the first few."""
FIRST_NAMES = 5
LONGEST_NAME = 40


@dataclass(frozen=True)
class DataInfo:
    """Facts about a data set that a model, a check of a spec and a reader of a run need.

    Attributes:
        num_classes: classes.
        image_size: side of the square that the model sees, px.
        num_train: images to train on, after `limit` and the validation split. As all counts
            without the images that were found to be unreadable; those of `Data.info` hold them
            where images stream, since there another one stands for each.
        class_names: in the order of the model's outputs.
        num_val: images of the validation part, which is split from the training images.
        num_test: images of the test part, after `limit_test`.
        size_from: where `image_size` comes from: "data.image_size", or words such as "the
            images".
        place: where the images lie, for messages: a folder, or the data set's name.
        remarks: what a user must know: whole sentences in plain English, one a fact, about
            what was left out, remapped or assumed.
        in_memory: whether images are decoded once and augmented as batches; else they stream.
        decoded_bytes: of all images of both parts at their own size, as a cache of decoded
            images holds them; None where they are not squares of one size.
        unvalidated: classes of which the validation part has no image; none where there is no
            such part.
        decoding: how image files become pixels.
    """

    num_classes: int
    image_size: int
    num_train: int
    class_names: tuple[str, ...] = ()
    num_val: int = 0
    num_test: int = 0
    size_from: str = ""
    place: str = ""
    remarks: tuple[str, ...] = ()
    in_memory: bool = True
    decoded_bytes: int | None = None
    unvalidated: tuple[str, ...] = ()
    decoding: Decoding = PLAIN

    def describe(self) -> str:
        """The facts on one line: "2 classes (dark, light), 34 train, 12 val, 14 test, 32 px, from
        /data/photos".
        """
        return (
            f"{self.num_classes:,} classes ({named(self.class_names)}),"
            f" {self.num_train:,} train, {self.num_val:,} val, {self.num_test:,} test,"
            f" {self.image_size} px, from {self.place}"
        )


def named(names: tuple[str, ...]) -> str:
    """Names of classes in a sentence: all of few, the first of many, none of them too long."""
    few = names if len(names) <= ALL_NAMES else names[:FIRST_NAMES]
    shown = [
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        for name in map(printable, few)
    ]
    return ", ".join(shown if len(few) == len(names) else [*shown, "…"])
