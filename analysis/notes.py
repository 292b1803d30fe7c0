"""What people have noted about trials: `notes/<trial>.json` in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.contract import NOTES_FOLDER
from analysis.tables.json_files import read_json
from analysis.text import clean_text

LONGEST_NOTE = 4_000
MOST_TAGS = 20
LONGEST_TAG = 40


@dataclass(frozen=True)
class Note:
    """What was noted about one trial.

    Attributes:
        text: whole sentences, or nothing.
        tags: words to find it by.
    """

    text: str = ""
    tags: tuple[str, ...] = ()


def read_notes(run: Path, problems: list[str]) -> dict[str, Note]:
    """The notes of a run by trial id; what is malformed is a problem."""
    found = {}
    for path in sorted((run / NOTES_FOLDER).glob("*.json")):
        label = f"{NOTES_FOLDER}/{clean_text(path.name)}"
        content = read_json(path, label, problems)
        if content is None:
            continue
        text, tags = content.get("note", ""), content.get("tags", [])
        if not isinstance(text, str) or not isinstance(tags, list):
            problems.append(f"{label}: note must be a text and tags a list of texts")
            continue
        words = [clean_text(str(tag))[:LONGEST_TAG] for tag in tags[:MOST_TAGS]]
        found[path.stem] = Note(clean_text(text)[:LONGEST_NOTE], tuple(words))
    return found
