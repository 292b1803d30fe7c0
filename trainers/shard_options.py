"""Options of data sets that lie in shards or on the Hugging Face Hub (see docs/data.md)."""

from typing import Annotated

from pydantic import BaseModel, Field

from trainers.hashing import LATER
from trainers.option_types import SetName, UserPath


class ShardOptions(BaseModel):
    """What `parquet`, `hf` and `webdataset` read beside the options of every data set."""

    name: SetName | None = Field(
        None, description="hf: a repository of the Hugging Face Hub, or a local folder"
    )
    subset: str | None = Field(
        None,
        description="parquet, webdataset, hf: which set where a place has several",
    )
    revision: str | None = Field(
        None, description="hf: branch, tag or commit of the repository"
    )
    streaming: bool = Field(
        False,
        description="hf: read from the Hub as a stream, without a copy in its cache",
    )
    train_split: str | None = Field(
        None,
        description=(
            "parquet, webdataset: the word in names of training shards, or a pattern of"
            " files; hf: a split, such as train[:80%]; default: train"
        ),
    )
    test_split: str | None = Field(
        None,
        description="the same for the test part; default: test, or else validation",
    )
    image_column: Annotated[str | None, LATER] = Field(
        None,
        description=(
            "parquet, hf: the column of images; webdataset: their suffix; default: found"
        ),
    )
    label_column: str | None = Field(
        None,
        description=(
            "parquet, hf: the column of labels; webdataset: the key in .json; default:"
            " found"
        ),
    )
    class_names: tuple[str, ...] | UserPath | None = Field(
        None,
        description=(
            "parquet, hf, webdataset: names of labels 0, 1, …, or a text file with one a"
            " line; default: as the files say"
        ),
    )
