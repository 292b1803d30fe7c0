"""Damaged and hostile files, many of them: a clean refusal or a right result, in bounded time and
memory.

python benchmarks/fuzz.py [--seed 0] [--share 1.0] [--kinds specs,records,...] [--only specs:17]
python benchmarks/fuzz.py --table

The command may be stopped and given again: it goes on after the cases that `--out` has.

Specs go through all that `validate` checks; run folders through `status`, `front`, `report`, the
summary, `resume`'s checks or the reading of records; coded models through the decoder; checkpoints
through what opens a source. A refusal is a ValueError or OSError with a message;
everything else is a fault and is printed with its case, which `--only` repeats alone. Each kind
runs in a process of its own: at most 3 GiB beyond what the libraries take, 20 s of CPU a case.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from fuzz_kinds import KINDS
from fuzz_material import Material

CPU_SECONDS, HUNG_SECONDS, ROOM_BYTES = 20.0, 3600.0, 3 * 2**30
AT_A_TIME = 250
"""Cases of a process, and of a line of the file."""


class TooSlowError(Exception):
    """A case took more CPU time than it may."""


@dataclass
class Found:
    """What came of a kind's cases. `faults`: place and message → its cases."""

    kind: str
    cases: int = 0
    refused: int = 0
    right: int = 0
    slowest_seconds: float = 0.0
    slowest_case: int = 0
    peak_mib: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)


def fuzz(
    kind: str, numbers: Sequence[int] | range, seed: int, material: Material
) -> Found:
    """Try cases of a kind; each follows from seed, kind and its number alone."""
    make, _ = KINDS[kind]
    found = Found(kind)
    for number in numbers:
        case = make(material, random.Random(f"{seed} {kind} {number}"))
        started = time.process_time()
        try:
            with _limited(CPU_SECONDS):
                case()
            found.right += 1
        except (ValueError, OSError) as error:
            fault = _unclear(error)
            found.refused += fault is None
            if fault is not None:
                found.faults.setdefault(fault, []).append(number)
        except Exception as error:  # noqa: BLE001 (the fault that is looked for)
            found.faults.setdefault(_place(error), []).append(number)
        found.cases += 1
        seconds = time.process_time() - started
        if seconds > found.slowest_seconds:
            found.slowest_seconds, found.slowest_case = round(seconds, 2), number
    found.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises TooSlowError after so much CPU time."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlowError(f"more than {seconds:g} s of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _unclear(error: Exception) -> str | None:
    """Why a refusal is no clean one; None where it is."""
    if isinstance(error, UnicodeError | json.JSONDecodeError):
        return _place(error)
    if not str(error).strip():
        return f"an empty message: {_place(error)}"
    return None


def _place(error: Exception) -> str:
    """Type, message and the two innermost lines of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if "site-packages" not in f.filename and "/lib/python" not in f.filename
    ]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in ours[:-4:-1])
    said = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {said} [{where}]"


def _in_process(
    kind: str, numbers: list[int], seed: int, material: Material, out: Any
) -> None:
    """The work of one kind, in a process with limits."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM_BYTES, held + ROOM_BYTES))
    os.chdir(material.folder)
    out.put(asdict(fuzz(kind, numbers, seed, material)))


def in_a_process(kind: str, numbers: list[int], seed: int, material: Material) -> Found:
    """`fuzz` in a process of its own; one that dies or hangs is a fault."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    arguments = (kind, numbers, seed, material, queue)
    child = context.Process(target=_in_process, args=arguments)
    child.start()
    child.join(HUNG_SECONDS)
    if child.exitcode == 0:
        return Found(**queue.get())
    child.kill()
    reason = f"the process ended with {child.exitcode}, or hung"
    return Found(kind, cases=len(numbers), faults={reason: numbers})


def done(out: Path, seed: int) -> dict[tuple[str, int], Found]:
    """What a file has of a seed: kind and number of the first case → what came of the cases."""
    lines = out.read_text().splitlines() if out.exists() else []
    parts = [json.loads(line) for line in lines]
    return {
        (part["kind"], part["first"]): Found(
            **{key: part[key] for key in part if key not in ("seed", "first")}
        )
        for part in parts
        if part["seed"] == seed
    }


def table(found: dict[tuple[str, int], Found]) -> str:
    """What came of all cases, a row a kind, as Markdown."""
    rows = [
        "| kind | cases | right | refused | faults | slowest | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(kind for kind, _ in found):
        parts = [part for (name, _), part in found.items() if name == kind]
        slowest = max(parts, key=lambda part: part.slowest_seconds)
        faults = sum(len(cases) for part in parts for cases in part.faults.values())
        cells = [
            kind,
            f"{sum(part.cases for part in parts):,}",
            f"{sum(part.right for part in parts):,}",
            f"{sum(part.refused for part in parts):,}",
            str(faults),
            f"{slowest.slowest_seconds:.2f} s of CPU (case {slowest.slowest_case})",
            f"{max(part.peak_mib for part in parts)} MiB",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of each kind's cases")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.jsonl"))
    parser.add_argument(
        "--table", action="store_true", help="print it, and try nothing"
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--only", default="", help="one case, as kind:number")
    given = parser.parse_args()
    if given.table:
        print(table(done(given.out, given.seed)))
        return 0
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        material = Material(Path(name))
        if given.only:
            kind, _, number = given.only.partition(":")
            moment = random.Random(f"{given.seed} {kind} {number}")
            KINDS[kind][0](material, moment)()  # with its traceback, where it raises
            return 0
        return _fuzz_all(given, material)


def _fuzz_all(given: argparse.Namespace, material: Material) -> int:
    """All cases that the file lacks, some at a time; the exit code."""
    had = done(given.out, given.seed)
    # in this process what all cases need is imported and made once
    assert material.run.exists()
    for kind in given.kinds.split(","):
        count = max(1, round(KINDS[kind][1] * given.share))
        for first in range(0, count, AT_A_TIME):
            if any(
                kind == name and start <= first < start + part.cases
                for (name, start), part in had.items()
            ):
                continue
            numbers = list(range(first, min(count, first + AT_A_TIME)))
            found = in_a_process(kind, numbers, given.seed, material)
            line = {"seed": given.seed, "first": first, **asdict(found)}
            with open(given.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            had[kind, first] = found
    print(table(had))
    return 1 if any(found.faults for found in had.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
