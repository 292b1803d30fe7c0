"""What the docs site has beside docs/*.md: a hook of mkdocs (`make docs`).

The pages of the repository's root become pages of the site (README.md its first), the reference
of options and methods is generated, and links are turned: what a page of the site holds is
linked there, and other files of the repository are named only.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ADDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/solar_cells/README.md": "solar_cells.md",
    "examples/plugin/README.md": "example_plugin.md",
}
"""File of the repository → page of the site."""
LEFTOVERS = "More"
"""Group of the navigation for pages that it does not name."""
GENERATED = ("options.md", "methods.md")
"""Pages that no file of the repository holds."""
_LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]"  # words, or an image
    r"\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)"
)


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name at its end."""
    named = set(_paths(config.nav))
    found = [path.relative_to(ROOT / "docs").as_posix() for path in _pages()]
    rest = sorted(path for path in found if path not in named)
    if rest:
        config.nav.append({LEFTOVERS: rest})
    return config


def on_files(files: "Files", config: Any) -> "Files":
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / file).read_text("utf-8") for file, page in ADDED.items()}
    texts |= dict(zip(GENERATED, (options_page(), methods_page()), strict=True))
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: "Files") -> str:
    """Turn a page's links."""
    origin = {page_name: file for file, page_name in ADDED.items()}
    here = origin.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return turned_links(text, here)


def turned_links(text: str, here: str) -> str:
    """Links between files of the repository as links between pages of the site.

    Args:
        here: the file that the text is from.
    """
    site = ADDED.get(here, here.removeprefix("docs/"))

    def turn(match: re.Match[str]) -> str:
        image, words, target, anchor = match.groups(default="")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        page = _page_of(place)
        if page is None:
            return words if "`" in words else f"{words} (`{place}`)"
        way = posixpath.relpath(page, posixpath.dirname(site) or ".")
        return f"{image}[{words}]({way}{anchor})"

    return _LINK.sub(turn, text)


def _page_of(place: str) -> str | None:
    """The site's file for a path of the repository; None where it is not on the site."""
    for file in (place, f"{place}/README.md"):
        if file in ADDED:
            return ADDED[file]
    return place.removeprefix("docs/") if place.startswith("docs/") else None


def options_page() -> str:
    """The reference of a spec's sections."""
    from sweeps.describe import options_as_markdown
    from sweeps.spec.options import options_of_section, options_of_spec, sections

    parts = [
        "# Options of a spec",
        "Generated from the classes that check a spec; `sweeps options SECTION` prints the same."
        " [The spec](spec.md) explains how the parts work together, [methods](methods.md) lists"
        " the options of the stages.",
        "## The spec",
        options_as_markdown(options_of_spec()),
    ]
    for name, meaning in sections().items():
        parts += [
            f"## {name}",
            f"{meaning[:1].upper()}{meaning[1:]}.",
            options_as_markdown(options_of_section(name)),
        ]
    return "\n\n".join(parts)


def methods_page() -> str:
    """The reference of all stages."""
    from compress.pipeline import stages
    from sweeps.describe import options_as_markdown, purpose
    from sweeps.spec.options import options_of_stage

    parts = [
        "# Methods and their options",
        "Every method is a stage of a pipeline. Generated from the classes that check a spec;"
        " `sweeps options METHOD` prints the same.",
    ]
    for name, stage in stages().items():
        paper = f"*{stage.paper}*" if stage.paper else ""
        table = options_as_markdown(options_of_stage(stage))
        parts += [f"## {name}", f"{purpose(stage)} ({stage.phase})", paper, table]
    return "\n\n".join(part for part in parts if part)


def _pages() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md"))


def _paths(entry: Any) -> list[str]:
    """The paths in a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [path for part in parts for path in _paths(part)]
