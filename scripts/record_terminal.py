"""Record what the commands print on a terminal of 80 columns, as text: docs/terminal.md.

    pip install pyte
    python scripts/record_terminal.py

Each command runs in a terminal of its own, so that colours, live lines and folding are those that
a user sees; pyte makes the picture of it. The run folder is temporary.
"""

import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pyte

COLUMNS = 80
ROWS = 400
PAGE = Path(__file__).resolve().parent.parent / "docs" / "terminal.md"
BEGIN = """# What the terminal shows

A terminal of 80 columns, recorded by `python scripts/record_terminal.py`.
"""
MISTAKE = "sweeps run demo --tiny search.trails=3"
SWEEP = "sweeps run demo --tiny name=shown resources.cpus=2"
RECORDED = (
    ("Check a spec", "sweeps validate demo"),
    ("A mistake", MISTAKE),
    ("Run a sweep", SWEEP),
    ("How it stands", "sweeps status shown"),
    ("The front", "sweeps front shown"),
    ("One of it", "sweeps front shown --pick knee"),
    ("What an option means", "sweeps options measure"),
    ("What a method takes", "sweeps methods token_merging"),
)


def recorded(command: str, folder: Path, live_after: int = 0) -> tuple[str, str]:
    """The terminal at the end of a command, and at one time while it ran.

    Args:
        live_after: ended trials on the screen after which that time has come; 0: never.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        shlex.split(command),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    live = ""
    last = time.monotonic()
    while True:  # until the terminal has no user any more
        ready = select.select([ours], [], [], 0.2)[0]
        try:
            data = os.read(ours, 65536) if ready else b""
        except OSError:  # closed by its last user
            break
        stream.feed(data)
        if ready and not data:
            break
        if live_after and not live and time.monotonic() - last > 1:
            last = time.monotonic()
            text = shown(screen)
            if text.count("✓") >= live_after:
                live = text
    os.close(ours)
    process.wait()
    return shown(screen), live


def shown(screen: pyte.Screen) -> str:
    """The lines of a terminal, without the empty ones at its end."""
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def block(command: str, text: str, folder: Path) -> str:
    """A command and its output in Markdown, with paths as from the folder."""
    home = text.replace(f"{folder}/", "").replace(str(folder), ".")
    return f"```\n$ {command}\n{home}\n```\n"


def main() -> None:
    """Run the commands in a temporary folder and write the page."""
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    parts = [BEGIN]
    with tempfile.TemporaryDirectory(prefix="shown-") as name:
        folder = Path(name)
        for title, command in RECORDED:
            end, live = recorded(command, folder, 3 if command == SWEEP else 0)
            parts.append(f"## {title}\n")
            if live:
                parts += [
                    "While it runs:\n",
                    block(command, live, folder),
                    "At its end:\n",
                ]
            parts.append(block(command, end, folder))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
