"""Write the tutorials as notebooks: docs/tutorial_*.md to docs/tutorial_*.ipynb.

    python scripts/notebooks.py

The Markdown is the source: it reads on any page and in any diff. Text becomes cells of text; code
in `python` runs as it stands, `yaml` is saved as NAME.yaml, `bash` is run by bash, and blocks of
no language, which show what was printed, stay text. The tests run the notebooks' cells.
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
_BLOCK = re.compile(r"```(python|yaml|bash)\n(.*?)```\n?", re.DOTALL)


def notebook_of(markdown: str) -> dict[str, Any]:
    """A notebook of format 4.5 with the cells of a page, none of them run."""
    cells, end = [], 0
    for match in _BLOCK.finditer(markdown):
        cells.append(_cell("markdown", markdown[end : match.start()]))
        cells.append(_cell("code", _code(match[1], match[2])))
        end = match.end()
    cells.append(_cell("markdown", markdown[end:]))
    kept = [cell for cell in cells if cell["source"]]
    for number, cell in enumerate(kept):
        cell["id"] = f"cell-{number:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": kept,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _code(language: str, text: str) -> str:
    if language == "bash":
        return f"%%bash\n{text}"
    if language == "yaml":
        name = re.findall(r"^name: (\S+)", text)[0]
        return f"%%writefile {name}.yaml\n{text}"
    return text


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": {}, "source": text.strip()}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def text_of(markdown: str) -> str:
    """The file of a notebook."""
    return json.dumps(notebook_of(markdown), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for page in sorted(DOCS.glob("tutorial_*.md")):
        text = text_of(page.read_text("utf-8"))
        page.with_suffix(".ipynb").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
