"""Class folders as people have them: `root/train/CLASS/*` beside `root/test` or `root/val`, or the
classes directly in `root`.

What systems and programs leave (`.ipynb_checkpoints`, `@eaDir`, `Thumbs.db`, …) is ignored
without a word; what else is not read is counted in a remark.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainers.data.decoding import suffixes
from trainers.data.parts import OWN_VALIDATION, Dataset, FilePart
from trainers.data.stratify import stratified_test
from trainers.words import listed, printable

TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "validation", "valid")

LEFT_BY_SYSTEMS = frozenset(
    (
        *(
            "@eadir",
            "@tmp",
            "@recycle",
            "@sharebin",
            "#recycle",
            "#snapshot",
            "~snapshot",
        ),
        *(
            "__macosx",
            "__pycache__",
            "icon\r",
            "network trash folder",
            "temporary items",
        ),
        *("$recycle.bin", "recycler", "system volume information", "found.000"),
        *("lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
"""Lower-case names of files and folders that no user made; beside these, all with a leading dot."""

_NAMED = 5


@dataclass
class _Found:
    """What lies in one folder of classes, or in one class.

    Attributes:
        images: paths relative to the folder of the classes, with forward slashes.
        left_out: lower-case suffix → files that are not read.
        loops: links that lead to a folder that is read anyway.
    """

    images: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Classes:
    """A folder of class folders: name of each → what is in it, and what lies beside them."""

    folder: Path
    by_name: dict[str, _Found]
    loose: int
    dangling: list[str]
    loops: list[str]

    def empty(self) -> list[str]:
        return [name for name, found in self.by_name.items() if not found.images]


def read_folders(root: Path) -> Dataset:
    """The class folders under `root`; classes are in the order of their names as text, as in
    torchvision, so that 10 comes before 2.

    Raises:
        ValueError: no class folders, a class without images or one that training lacks, a
            folder that may not be read.
    """
    parts = {
        name: _one_of(root, names)
        for name, names in (("train", TRAIN), ("test", TEST), ("val", VAL))
    }
    remarks: list[str] = []
    if parts["train"] is None:
        _refuse_without_train(root, parts)
        train = _read(root)
        remarks.append(f"{root} has no folder train: each of its folders is a class.")
    else:
        train = _read(parts["train"])
    _check_train(train)
    remarks += _class_remarks(train)
    held_out = _held_out(train, parts, remarks)
    for part in (train, *held_out):
        remarks += _left_remarks(part)
    names = tuple(train.by_name)
    train_part = _part(train, names)
    if held_out:
        test, *validation = (_part(part, names) for part in held_out)
        place = f"{train.folder} and {' and '.join(p.folder.name for p in held_out)}"
        return Dataset(
            names, train_part, test, place, tuple(remarks), next(iter(validation), None)
        )
    remarks.append(
        "There is no test part: a fifth of the images of each class, always the same, is"
        " taken for it."
    )
    train_part, test_part = _hold_out(train_part)
    return Dataset(names, train_part, test_part, str(train.folder), tuple(remarks))


# ------------------------------------------------------------------ which folder is which part


def _one_of(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of `root` with the first of these names that is there, whatever its capitals."""
    for name in names:
        found = [entry for entry in _folders(root) if entry.name.lower() == name]
        if len(found) > 1:
            raise ValueError(
                f"{root}: {' and '.join(entry.name for entry in found)} differ only in"
                " capitals; keep one"
            )
        if found:
            return Path(found[0].path)
    return None


def _refuse_without_train(root: Path, parts: dict[str, Path | None]) -> None:
    """Refuse a root that is not that of a data set."""
    there = [part.name for part in parts.values() if part is not None]
    if there:
        raise ValueError(
            f"{root}: the training images must be in a folder train; there is only"
            f" {' and '.join(there)}"
        )
    for entry in _folders(root):
        if _one_of(Path(entry.path), TRAIN) is not None:
            raise ValueError(
                f"{root}: there is no folder train here, but one in {entry.name}; set"
                f" data.root to {entry.path}"
            )
    if root.name.lower() in (*TRAIN, *TEST, *VAL) and _folders(root):
        raise ValueError(
            f"{root}: data.root is the folder that holds {root.name}, not {root.name}"
            f" itself; set it to {root.parent}"
        )


def _held_out(
    train: _Classes, parts: dict[str, Path | None], remarks: list[str]
) -> list[_Classes]:
    """The labelled test part, and the labelled validation part beside it: of test and val those
    that are there and have labels, of which the first is the test part.
    """
    candidates = [part for part in (parts["test"], parts["val"]) if part is not None]
    labelled, unlabelled = [], []
    for folder in candidates:
        read = _read(folder)
        if not _is_labelled(read, train):
            unlabelled.append(folder)
            continue
        _check_classes(read, train)
        labelled.append(read)
    if labelled and unlabelled:
        remarks.append(
            f"{unlabelled[0]} is not read, since its images are in no class folders;"
            f" {labelled[0].folder.name} is the test part."
        )
    if len(labelled) > 1:
        remarks.append(
            f"The validation part is {labelled[1].folder} ({OWN_VALIDATION})."
        )
    if labelled or not unlabelled:
        return labelled
    raise ValueError(
        f"{' and '.join(map(str, unlabelled))}: no image is in a folder with the name of a class"
        f" ({listed(train.by_name)}), so that none has a label; sort the images of val or test"
        " into class folders, or take the folder away: without val and test a fifth of train is"
        " the test part"
    )


def _is_labelled(part: _Classes, train: _Classes) -> bool:
    """Whether a class of training is among the folders, be it with other capitals."""
    known = {_plain(name).casefold() for name in train.by_name}
    return not known.isdisjoint(_plain(name).casefold() for name in part.by_name)


def _check_train(train: _Classes) -> None:
    folder, names = train.folder, list(train.by_name)
    if not names:
        inside = (
            f"its {train.loose:,} images lie directly in it"
            if train.loose
            else "there is none"
        )
        raise ValueError(
            f"{folder}: one folder per class is needed, as in train/CLASS/IMAGE; {inside}"
        )
    empty = train.empty()
    if len(empty) == len(names):
        raise ValueError(
            f"{folder}: the training part has no images{_what_instead(train, empty)}; add some"
            " or change data.root"
        )
    if empty:
        raise ValueError(
            f"{folder}: class folders with no image: {listed(empty)}"
            f"{_what_instead(train, empty)}; add images, or remove the folders"
        )
    if len(names) == 1:
        within = [entry.name for entry in _folders(folder / names[0])]
        hint = (
            f"; its own folders are {listed(within)}: are those the classes?"
            if within
            else ""
        )
        raise ValueError(
            f"{folder}: a classifier needs two classes, and there is one, {names[0]}{hint}"
        )
    for same in _equal(names, _plain):
        raise ValueError(
            f"{folder}: {' and '.join(map(repr, same))} are one name in two Unicode forms; join"
            " the folders"
        )
    targets = {name: os.path.realpath(folder / name) for name in names}
    for same in _equal(names, targets.__getitem__):
        raise ValueError(
            f"{folder}: the classes {' and '.join(same)} are one folder, by a link; keep one"
        )


def _check_classes(test: _Classes, train: _Classes) -> None:
    """Refuse classes that training does not have."""
    known = {_plain(name) for name in train.by_name}
    extra = sorted(name for name in test.by_name if _plain(name) not in known)
    if extra:
        folded = {name.casefold() for name in known}
        other = any(_plain(name).casefold() in folded for name in extra)
        hint = "; capitals count" if other else ""
        raise ValueError(
            f"{test.folder}: its classes must be among those of {train.folder}"
            f" ({listed(train.by_name)}); {extra[:_NAMED]} are not{hint}"
        )
    if len(test.empty()) == len(test.by_name):
        raise ValueError(
            f"{test.folder}: the test part has no images{_what_instead(test, test.empty())};"
            " add some or remove the folder"
        )


def _hold_out(part: FilePart) -> tuple[FilePart, FilePart]:
    train, test = (
        FilePart(part.root, tuple(part.paths[row] for row in rows), part.labels[rows])
        for rows in stratified_test(part.labels)
    )
    if not len(test.labels):
        raise ValueError(
            f"{part.root}: there is no test part, and a fifth of {len(part.labels)} images gives"
            " none; add images, or a folder test"
        )
    return train, test


def _part(read: _Classes, names: tuple[str, ...]) -> FilePart:
    """The images of `read`, whose folders have the names of classes."""
    label_of = {_plain(name): label for label, name in enumerate(names)}
    found = sorted(
        (label_of[_plain(name)], path)
        for name, each in read.by_name.items()
        for path in each.images
    )
    labels = np.asarray([label for label, _ in found], np.int64)
    return FilePart(read.folder, tuple(path for _, path in found), labels)


# ------------------------------------------------------------------ remarks


def _class_remarks(train: _Classes) -> list[str]:
    names = list(train.by_name)
    remarks = [
        f"The classes {' and '.join(same)} differ only in capitals; they are two classes."
        for same in _equal(names, str.casefold)
    ]
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        remarks.append(
            "The class folders are numbers, in the order of text as in torchvision: output 2"
            f" of the model is {names[2]}."
        )
    return remarks


def _left_remarks(part: _Classes) -> list[str]:
    remarks = []
    left: Counter[str] = Counter()
    for found in part.by_name.values():
        left += found.left_out
    if left:
        remarks.append(
            f"{part.folder}: left out, since Pillow reads no images from such files:"
            f" {_counted(left)}."
        )
    if part.loose:
        remarks.append(
            f"{part.folder}: left out, since they lie in no class folder: {part.loose:,} images."
        )
    loops = list(part.loops)
    for found in part.by_name.values():
        loops += found.loops
    if loops:
        remarks.append(
            f"{part.folder}: links to folders that are read anyway were left out:"
            f" {listed(loops)}."
        )
    if part.dangling:
        remarks.append(
            f"{part.folder}: links that lead nowhere were left out: {listed(part.dangling)}."
        )
    return remarks


def _what_instead(part: _Classes, empty: Sequence[str]) -> str:
    left: Counter[str] = Counter()
    for name in empty:
        left += part.by_name[name].left_out
    return f" (Pillow does not read {_counted(left)})" if left else ""


def _counted(suffix_counts: Counter[str]) -> str:
    each = [
        f"{count:,} {suffix or 'without a suffix'}"
        for suffix, count in suffix_counts.most_common(_NAMED)
    ]
    return ", ".join([*each, "…"] if len(suffix_counts) > _NAMED else each)


# ------------------------------------------------------------------ walking


def _read(folder: Path) -> _Classes:
    entries = _entries(folder)
    within = os.path.realpath(folder)
    classes, loops, dangling = {}, [], []
    loose = 0
    for entry in entries:
        if _is_folder(entry):
            real = os.path.realpath(entry.path)
            if _holds(real, within):
                loops.append(entry.name)
            else:
                classes[entry] = real
        elif entry.is_symlink() and not Path(entry.path).exists():
            dangling.append(entry.name)
        elif _suffix(entry.name) in suffixes():
            loose += 1
    read = (within, *classes.values())
    by_name = {entry.name: _walk(folder, entry, read) for entry in classes}
    for name in by_name:
        if any("\ud800" <= each <= "\udfff" for each in name):
            raise ValueError(
                f"{folder}: the name of the class folder {printable(name)} is not UTF-8; rename it"
            )
    return _Classes(folder, by_name, loose, dangling, loops)


def _walk(folder: Path, top: os.DirEntry[str], read: tuple[str, ...]) -> _Found:
    """All images under the class folder `top` of `folder`, in the order of their paths.

    Args:
        read: real paths of `folder` and of all its classes.

    A link to a folder is followed where that leads out of the data set. A loop, or a link to
    another class, would give images a second label.
    """
    found = _Found()
    inside = os.path.realpath(top.path)
    # (name relative to `folder`, path, real path, real paths of the folders above)
    waiting: list[tuple[str, str, str, tuple[str, ...]]]
    waiting = [(top.name, top.path, inside, (inside,))]
    while waiting:
        above_name, path, real, above = waiting.pop()
        for entry in _entries(path):
            name, suffix = f"{above_name}/{entry.name}", _suffix(entry.name)
            if _is_folder(entry):
                target = f"{real}{os.sep}{entry.name}"
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if _leads_back(target, (*read, *above)):
                        found.loops.append(name)
                        continue
                waiting.append((name, entry.path, target, (*above, target)))
            elif suffix not in suffixes():
                found.left_out[suffix] += 1
            elif (
                _is_file(entry) or entry.is_symlink()
            ):  # a link to nowhere is unreadable
                found.images.append(name)
            else:
                found.left_out["that is no file"] += 1
    found.images.sort()
    return found


def _leads_back(target: str, read: Iterable[str]) -> bool:
    """Whether a folder holds one of those that are read, or lies in one."""
    return any(_holds(target, folder) or _holds(folder, target) for folder in read)


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What a user put into a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if not _is_left_by_systems(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise ValueError(
            f"{printable(str(folder))}: the folder cannot be read: {error.strerror}; change its"
            " permissions or remove it"
        ) from error


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_left_by_systems(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def _suffix(name: str) -> str:
    """In small letters, with the dot, as `Path.suffix` has it, which takes ten times as long."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _plain(name: str) -> str:
    """A name in one Unicode form: macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def _equal(names: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    """Groups of two or more names with one key."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
