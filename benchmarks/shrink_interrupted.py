"""Ctrl-C at random moments of `sweeps shrink`: is the folder usable each time?

    python benchmarks/shrink_interrupted.py MODEL DATA [--times 10] [--seconds 60] [--folder F]
    python benchmarks/shrink_interrupted.py MODEL DATA --early

Each time a fresh search begins, and gets SIGINT so many seconds after its first candidate ended, as
are drawn from those given; with --early from its start on. After the first candidate the folder
must have the model (export has loaded it again), the report and the front; before it nothing but
the spec and the run. Prints a line a time, and the counts.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import analysis
from trainers.files import read_json

FAILED, EARLY = "FAILED", "no candidate yet"


def main() -> None:
    """Interrupt so many times; exit with 1 where a folder could not be used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--early", action="store_true")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--folder", type=Path, default=Path("interrupted"))
    options = parser.parse_args()
    # of a shell that runs this in the background, the search would inherit that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(0)
    failed = early = usable = 0
    for index in range(options.times):
        after = rng.uniform(0, options.seconds)
        said = interrupted(options, options.folder / f"{index:02d}", after)
        failed += said.startswith(FAILED)
        early += said.startswith(EARLY)
        usable += said.startswith("usable")
        print(f"{index:2d}  after {after:5.1f} s: {said}", flush=True)
    print(f"{usable} usable, {failed} not, {early} before the first candidate")
    raise SystemExit(bool(failed))


def interrupted(options: argparse.Namespace, folder: Path, after: float) -> str:
    """Start, interrupt, look; what was seen."""
    words = [
        sys.executable,
        "-m",
        "sweeps",
        "shrink",
        options.model,
        "--data",
        options.data,
        "--smallest",
    ]
    words += ["--max-loss", "2%", "--hours", "1", "--runtime", options.runtime]
    process = subprocess.Popen(
        [*words, "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not options.early and process.poll() is None and not complete(folder):
        time.sleep(0.1)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{FAILED}: it did not end within 5 minutes"
    seconds = time.monotonic() - begun
    if process.returncode != 130:
        return f"{FAILED}: exit code {process.returncode}: {output[-300:]}"
    if "Traceback" in output:
        return f"{FAILED}: a traceback: {output[-300:]}"
    return f"{looked_at(folder)}, ended in {seconds:.0f} s"


def complete(folder: Path) -> bool:
    """Whether a candidate has ended."""
    records = (folder / "run" / "trials").glob("*/record.json")
    return any(
        (read_json(record) or {}).get("status") == "complete" for record in records
    )


def looked_at(folder: Path) -> str:
    """Whether the folder is as it must be."""
    run, ended = folder / "run", 0
    if (run / "run.json").is_file():
        ended = len(analysis.load(run).complete())
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not ended:
        return f"{FAILED}: a model of nothing" if "model" in names else EARLY
    missing = {"model", "report.html", "front.csv", "README.md", "shrink.yaml"} - names
    if missing:
        return f"{FAILED}: {ended} complete, {', '.join(sorted(missing))} missing"
    if not any((folder / "model").iterdir()):
        return f"{FAILED}: an empty model folder"
    return f"usable, {ended} complete"


if __name__ == "__main__":
    main()
