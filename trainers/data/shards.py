"""Which file of a folder belongs to which split, by its name: layouts of the Hugging Face Hub and
of WebDataset.

    data/train-00000-of-00002.parquet    default/train/0000.parquet    train.parquet
    plain_text/test-00000-of-00001.parquet    imagenet-train-000012.tar
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from trainers.config import DataConfig
from trainers.data.info import ALL_NAMES, named

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → words that name it, those of Hugging Face `datasets`."""

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(?!\d)")
_PATTERN = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class Shards:
    """Files of the splits, sorted by path, and what a user must know of the choice."""

    train: tuple[Path, ...]
    test: tuple[Path, ...] | None
    validation: tuple[Path, ...] | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A file with the split that its path names (None: none) and the folder of its data set."""

    path: PurePosixPath
    split: str | None
    group: str


def root_folder(config: DataConfig) -> Path:
    """`data.root`.

    Raises:
        ValueError: it is not given, or is no folder.
    """
    if config.root is None:
        raise ValueError(
            f"data.dataset {config.dataset!r} needs data.root, the folder of the"
            " data set"
        )
    if config.root.is_file():
        raise ValueError(
            f"data.root {config.root}: this is a file; give the folder of the {config.dataset}"
            " data set, for an archive that into which it was unpacked"
        )
    if not config.root.is_dir():
        raise ValueError(
            f"data.root {config.root}: no such folder; give the folder of the"
            f" {config.dataset} data set"
        )
    return config.root


def find_shards(root: Path, config: DataConfig, suffix: str) -> Shards:
    """The shards below `root` that `config` means.

    Raises:
        ValueError: no file; several data sets in one folder; a shard that is missing by its
            number.
    """
    names = sorted(_files(root, suffix))
    if not names:
        raise ValueError(
            f"{root}: no file *{suffix} is there, nor in a folder below; expected are"
            f" names such as train-00000-of-00001{suffix} or data/train-*{suffix}"
        )
    if _is_pattern(config.train_split, suffix) or _is_pattern(
        config.test_split, suffix
    ):
        return _by_pattern(root, config, names)
    wanted = (config.train_split or "train", config.test_split)
    found = [_classified(PurePosixPath(name), wanted) for name in names]
    if all(item.split is None for item in found) and config.train_split is None:
        found = [replace(item, split="train") for item in found]
    group, remarks = _group(root, config, found)
    splits: dict[str, list[Path]] = {}
    left_out = []
    for item in found:
        if item.split is None:
            left_out.append(str(item.path))
        elif item.group == group:
            splits.setdefault(item.split, []).append(root / item.path)
    if left_out:
        remarks.append(
            f"Files whose name tells no split are left out: {_shown(left_out)}."
        )
    for files in splits.values():
        remarks += missing_shards(files)
    return _chosen(root, config, {k: tuple(v) for k, v in splits.items()}, remarks)


def _files(root: Path, suffix: str) -> Iterator[str]:
    """Paths below `root`, with forward slashes; no hidden entry, no folder twice."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] not in "._@")
        for name in files:
            if name.lower().endswith(suffix) and name[0] not in "._":
                yield Path(parent, name).relative_to(root).as_posix()


def _classified(path: PurePosixPath, wanted: tuple[str, str | None]) -> _Found:
    """The split that the file's name tells, or else its innermost folder that tells one."""
    own = split_named(path.stem, wanted)
    if own is not None:
        return _Found(path, own, _group_name(path.parent.parts))
    for depth in reversed(range(len(path.parent.parts))):
        split = split_named(path.parts[depth], wanted)
        if split is not None:
            return _Found(path, split, _group_name(path.parts[:depth]))
    return _Found(path, None, _group_name(path.parent.parts))


def _group_name(folders: tuple[str, ...]) -> str:
    return "/".join(folders) or "."


def split_named(name: str, wanted: tuple[str | None, ...] = ()) -> str | None:
    """The split whose word stands first in `name`, apart from other letters.

    Args:
        wanted: splits beside the usual ones that have their own name.
    """
    words = {word: split for split, some in WORDS.items() for word in some}
    words |= {split.lower(): split for split in wanted if split and split not in WORDS}
    places: dict[tuple[int, int], str] = {}
    for word, split in words.items():
        match = re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", name.lower())
        if match:
            places.setdefault((match.start(), -len(word)), split)
    return places[min(places)] if places else None


def _group(
    root: Path, config: DataConfig, found: list[_Found]
) -> tuple[str, list[str]]:
    """The folder of the data set that is meant, and a remark where there are others."""
    train = config.train_split or "train"
    groups = sorted({item.group for item in found if item.split == train})
    if config.subset is not None:
        fits = [g for g in groups if config.subset in (g, g.rsplit("/", 1)[-1])]
        if len(fits) != 1:
            raise ValueError(
                f"data.subset {config.subset!r}: {root} has the subsets"
                f" {_shown(groups)}; give one of them"
            )
        return fits[0], []
    if not groups:
        raise ValueError(
            f"{root}: no file is of the split {train!r} by its name; files are"
            f" {_shown([str(item.path) for item in found])}. Rename them, or name them"
            " with data.train_split and data.test_split (patterns are allowed)"
        )
    if len(groups) == 1:
        return groups[0], []
    for usual in (".", "data"):
        if usual in groups:
            others = [group for group in groups if group != usual]
            place = root if usual == "." else root / usual
            return usual, [
                f"Training shards in {place} are used, those in {_shown(others)} are"
                " not; data.subset picks others."
            ]
    raise ValueError(
        f"{root}: several data sets are there: {_shown(groups)}; data.subset picks one"
    )


def _chosen(
    root: Path,
    config: DataConfig,
    splits: dict[str, tuple[Path, ...]],
    remarks: list[str],
) -> Shards:
    """Training and test files of the splits that were found."""
    train = splits[config.train_split or "train"]
    if config.test_split is not None:
        if config.test_split not in splits:
            raise ValueError(
                f"data.test_split {config.test_split!r}: {root} has the splits"
                f" {_shown(sorted(splits))}; give one of them, or a pattern of files"
            )
        return Shards(train, splits[config.test_split], None, tuple(remarks))
    return Shards(train, splits.get("test"), splits.get("validation"), tuple(remarks))


def missing_shards(files: Sequence[Path]) -> list[str]:
    """A remark where shards of a split are missing by their numbers ("-00001-of-00005").

    Raises:
        ValueError: files of two sets lie side by side.
    """
    shards: dict[int, Path] = {}
    totals: dict[int, Path] = {}
    for file in files:
        match = _NUMBERED.search(file.stem)
        if match is None:
            continue
        twin = shards.setdefault(int(match[1]), file)
        other = totals.setdefault(int(match[2]), file)
        if twin != file or len(totals) > 1:
            other = twin if twin != file else min(totals.values())
            raise ValueError(
                f"{file} and {other.name} are not shards of one set, by their names;"
                " remove the files that do not belong there"
            )
    if not totals:
        return _gaps(files)
    [(total, file)] = totals.items()
    missing = sorted(set(range(total)) - set(shards))
    if not missing:
        return []
    names = [_renumbered(file.name, number) for number in missing[:ALL_NAMES]]
    more = ", …" if len(missing) > ALL_NAMES else ""
    return [
        f"{len(missing)} of {total} shards are missing in {file.parent}:"
        f" {', '.join(names)}{more}."
    ]


def _renumbered(name: str, number: int) -> str:
    """The name of another shard of the same set."""
    match = _NUMBERED.search(name)
    assert match is not None, name
    return f"{name[: match.start(1)]}{number:0{len(match[1])}}{name[match.end(1) :]}"


def _gaps(files: Sequence[Path]) -> list[str]:
    """A remark where numbers at the end of names leave some out."""
    ends = [match for file in files if (match := re.search(r"\d+$", file.stem))]
    numbers = sorted({int(end[0]) for end in ends})
    if len(ends) != len(files) or len({end.string[: end.start()] for end in ends}) > 1:
        return []
    missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    if not missing:
        return []
    width = len(ends[0][0])
    return [
        f"Shards are missing by their numbers in {files[0].parent}:"
        f" {_shown(f'{n:0{width}}' for n in missing)}."
    ]


# ------------------------------------------------------------------ patterns


def _is_pattern(split: str | None, suffix: str) -> bool:
    return split is not None and (
        _PATTERN.search(split) is not None or split.endswith(suffix)
    )


def _by_pattern(root: Path, config: DataConfig, names: list[str]) -> Shards:
    if config.train_split is None or config.test_split is None:
        raise ValueError(
            "data.train_split and data.test_split: where one is a pattern of files, give"
            " both"
        )
    train = _matching(root, config.train_split, names)
    test = _matching(root, config.test_split, names)
    both = sorted(set(train) & set(test))
    if both:
        raise ValueError(
            f"data.train_split and data.test_split both take {_shown(both)}; a file"
            " belongs to one part"
        )
    return Shards(train, test, None, ())


def _matching(root: Path, pattern: str, names: list[str]) -> tuple[Path, ...]:
    """Files that a pattern names: *, ?, [a-z], {0..3}, {a,b}; each alternative must exist."""
    chosen: list[str] = []
    for one in braces(pattern):
        fits = [name for name in names if PurePosixPath(name).match(one)]
        if not fits:
            raise ValueError(
                f"{root}: no file fits {one!r} (of {pattern!r}); files are"
                f" {_shown(names)}"
            )
        chosen += [name for name in fits if name not in chosen]
    return tuple(root / name for name in chosen)


def braces(pattern: str) -> list[str]:
    """A pattern's alternatives: `a-{00..02}.tar` and `{a,b}.tar` as a shell expands them."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        inner = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        inner = match[1].split(",")
    return [
        whole
        for piece in inner
        for whole in braces(pattern[: match.start()] + piece + pattern[match.end() :])
    ]


def _shown(values: Iterable[object]) -> str:
    return named(tuple(str(value) for value in values))
