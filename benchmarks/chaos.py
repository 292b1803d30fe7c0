"""Sweeps that are disturbed at random moments, resumed to their end, and then checked.

python benchmarks/chaos.py [--only driver,trial] [--rounds 5] [--out results/chaos.jsonl]

A round is a small sweep (TPE, moasha, two replicates, a slot, two trials at a time: 16 trials) that
is hit by one kind of fault several times, then resumed until it comes to its end. Then every trial
must be there, none twice, each with the values that its configuration must give; what had ended
before a fault must be what it was; the front must be that of an undisturbed sweep, nothing may be
recorded as running, and every file must be whole. A round is a line in `--out`; `--rounds` counts
those that are there, so that the command can be stopped and given again. `--table` prints the table
of what was done so far. A round's moments follow from its seed, which is its number.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from chaos_faults import (
    AskedToEnd,
    CacheDeleted,
    DriverKill,
    Fault,
    LocalDriverKill,
    NodeLoss,
    Scene,
    SecondDriver,
    SharedCache,
    Stopped,
    TrialKill,
)
from chaos_machine import ClockSteps, OutOfMemory
from chaos_ray import KeptCluster, Nursery
from chaos_storage import BadStore, DiskFull
from chaos_sweep import checked, litter, remove, spec, verdict

from trainers.files import write_atomic

FAULTS: dict[str, type[Fault]] = {
    "driver": DriverKill,
    "local_driver": LocalDriverKill,
    "trial": TrialKill,
    "memory": OutOfMemory,
    "node": NodeLoss,
    "clock": ClockSteps,
    "stop": Stopped,
    "signal": AskedToEnd,
    "second": SecondDriver,
    "cache": CacheDeleted,
    "shared_cache": SharedCache,
    "disk": DiskFull,
    "store": BadStore,
}
"""Name in the command → the fault."""

COUNTS = ("lost", "doubled", "rerun", "wrong", "running", "torn", "problems")
FRONT = [0, 1, 2, 3]
"""Of the undisturbed sweep: the configurations that the spec names. `--undisturbed` shows it."""


class Place:
    """What rounds share: the nursery, and a cluster for each number of nodes."""

    def __init__(self, home: Path) -> None:
        self.nursery = Nursery(home)
        self.clusters: dict[int, KeptCluster] = {}

    def cluster(self, fault: Fault) -> KeptCluster | None:
        """The cluster for a fault, begun at the first call; None where each driver starts Ray."""
        if not fault.on_cluster:
            return None
        nodes = fault.nodes
        if nodes not in self.clusters:
            self.clusters[nodes] = KeptCluster(self.nursery, nodes, 2 // nodes)
        return self.clusters[nodes]

    def close(self) -> None:
        for cluster in self.clusters.values():
            cluster.close()
        self.nursery.close()


def one_round(kind: str, seed: int, place: Place, folder: Path) -> dict[str, Any]:
    """Disturb a sweep, bring it to its end, and say what became of it."""
    fault: Fault = FAULTS[kind]()
    begun = time.monotonic()
    scene = Scene(folder, seed, place.nursery, place.cluster(fault))
    line: dict[str, Any] = {"fault": kind, "seed": seed}
    try:
        fault.set_up(scene)
        fault.disturb(scene, random.Random(seed))
        scene.to_the_end()
        found = verdict(scene.sweep, scene.run, scene.cache, scene.seen)
        left = litter(scene.run, scene.cache)
        line |= {"hits": scene.hits, "starts": scene.starts, **found._asdict()}
        line |= {"litter": len(left), "problems": len(scene.problems)}
        line["notes"] = [*scene.problems, *scene.notes, *found.notes, *left[:3]]
    except Exception:  # noqa: BLE001 (a round that breaks is a line, too)
        line |= {"hits": scene.hits, "broken": traceback.format_exc()[-1500:]}
        line["notes"] = [*scene.problems, *scene.notes]
    finally:
        fault.clean_up(scene)
    return line | {"seconds": round(time.monotonic() - begun, 1)}


def is_clean(line: dict[str, Any]) -> bool:
    """Whether all holds that must."""
    fine = "broken" not in line and not any(line.get(count) for count in COUNTS)
    return fine and line["front"] == FRONT


def in_a_fork(kind: str, seed: int, place: Place, keep: bool) -> dict[str, Any]:
    """A round in a process of its own; its folder stays where something is wrong."""
    place.cluster(FAULTS[kind]())
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{kind}-{seed}-"))
    answer = folder / "answer.json"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        line = one_round(kind, seed, place, folder)
        write_atomic(answer, json.dumps(line, default=str).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    line = json.loads(answer.read_text()) if answer.exists() else {"broken": "it died"}
    line = {"fault": kind, "seed": seed} | line
    if is_clean(line) and not keep:
        remove(folder)
    else:
        line["folder"] = str(folder)
    return line


def done(out: Path) -> list[dict[str, Any]]:
    """The rounds that a file has."""
    if not out.exists():
        return []
    return [json.loads(text) for text in out.read_text().splitlines() if text.strip()]


def table(lines: list[dict[str, Any]]) -> str:
    """What was done, a row a fault, as Markdown."""
    by_fault: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_fault[line["fault"]].append(line)
    rows = [
        "| fault | sweeps | faults | trials lost | doubled | ended ones run again | wrong"
        " values | left running | files torn | otherwise wrong | front as undisturbed |",
        "|---" * 11 + "|",
    ]
    for kind, found in by_fault.items():
        whole = [line for line in found if "broken" not in line]
        sums = [str(sum(line.get(key, 0) for line in whole)) for key in COUNTS]
        same = sum(line["front"] == FRONT for line in whole)
        hits = sum(line["hits"] for line in found)
        broken = (
            f" ({len(found) - len(whole)} broken)" if len(found) > len(whole) else ""
        )
        cells = [
            FAULTS[kind].name,
            f"{len(found)}{broken}",
            str(hits),
            *sums,
            f"{same} of {len(whole)}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(FAULTS), help=", ".join(FAULTS))
    parser.add_argument("--rounds", type=int, default=5, help="of each fault")
    parser.add_argument("--out", type=Path, default=Path("results/chaos.jsonl"))
    parser.add_argument(
        "--table", action="store_true", help="print it, and run nothing"
    )
    parser.add_argument("--keep", action="store_true", help="the folders of all rounds")
    options = parser.parse_args()
    kinds = options.only.split(",")
    if unknown := set(kinds) - FAULTS.keys():
        parser.error(f"--only: {', '.join(unknown)}; valid: {', '.join(FAULTS)}")
    if options.table:
        print(table(done(options.out)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    had = {(line["fault"], line["seed"]) for line in done(options.out)}
    os.environ["SWEEPS_DATA_CACHE"] = tempfile.mkdtemp(prefix="chaos-data-")
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    place = Place(home)
    clean = True
    # once, in this process, what each round would import and make
    checked(spec(home / "none", 0, home))
    try:
        for seed, kind in itertools.product(range(options.rounds), kinds):
            if (kind, seed) in had:
                continue
            line = in_a_fork(kind, seed, place, options.keep)
            clean = clean and is_clean(line)
            with open(options.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    finally:
        place.close()
        remove(home)
        remove(Path(os.environ["SWEEPS_DATA_CACHE"]))
    print(table(done(options.out)))
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
