"""What this project does on a GPU, measured by one command in at most eight minutes.

    python benchmarks/gpu_check.py [--out results/gpu.json] [--parts card,train_224] [--minutes 8]

The parts (`benchmarks/gpu_parts.py`) are ordered by worth. Each runs in a process of its
own, which is killed at the part's time limit. Whatever a part measures is printed as one
JSON line, and appended to `--out`, at that moment; one more line says how the part ended.
So a run that was cut off still tells.

Without a CUDA device, or with --tiny, all sizes are tiny: that only shows that the command works.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import gpu_bench
import gpu_parts
import torch

Line = dict[str, Any]


class _Report:
    """Prints JSON lines and appends them to a file, each at once."""

    def __init__(self, out: Path | None) -> None:
        self.out = out

    def __call__(self, line: Line) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(text + "\n")


class _TellError:
    """Sends the error that ends its block, which then goes its way."""

    def __init__(self, sender: Connection) -> None:
        self.sender = sender

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.sender.send(
                {"error": "".join(traceback.format_exception_only(error)).strip()}
            )


def _work(name: str, tiny: bool, sender: Connection) -> None:
    """The process of one part."""
    os.setsid()  # so that the processes that it starts can be ended together with it
    with _TellError(sender):
        cuda = torch.cuda.is_available()
        device = torch.device("cuda" if cuda else "cpu")
        if not cuda:
            torch.set_num_threads(
                1
            )  # tiny sizes only; other work may share the machine
        gpu_parts.PARTS[name].run(
            gpu_bench.Bench(device, tiny or not cuda, sender.send)
        )


def _lines_until(process: Any, receiver: Connection, deadline: float) -> Iterator[Line]:
    """What the process sends until it ends or its time is over."""
    ended = False
    while not ended and (left := deadline - time.monotonic()) > 0:
        ended = process.sentinel in wait([receiver, process.sentinel], left)
        while receiver.poll():
            try:
                yield receiver.recv()
            except EOFError:
                break


def run_part(
    name: str, limit_s: float, tiny: bool, start: str, report: Callable[[Line], None]
) -> str:
    """Run one part within its limit and report all it measures; "ok", "failed" or "cut off"."""
    context: Any = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, tiny, sender))
    begin = time.monotonic()
    process.start()
    sender.close()
    for line in _lines_until(process, receiver, begin + limit_s):
        report({"part": name, **line})
    process.join(0.5)  # one that has just ended
    cut_off = process.exitcode is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what a part has started and left
    process.join()
    status = "cut off" if cut_off else "failed" if process.exitcode else "ok"
    report(
        {
            "part": name,
            "status": status,
            "seconds": round(time.monotonic() - begin, 1),
            "limit_s": round(limit_s),
        }
    )
    return status


def main() -> None:
    """Run the parts that were asked for, in order, while there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="file to which the JSON lines are appended"
    )
    parser.add_argument(
        "--parts",
        default=",".join(gpu_parts.PARTS),
        help="which, in which order (default: all)",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time for all parts together"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, as without a CUDA device"
    )
    parser.add_argument(
        "--start", choices=("fork", "spawn"), default="fork",
        help="how a part's process starts: fork imports torch once for all, spawn once for each",
    )  # fmt: skip
    options = parser.parse_args()
    names = options.parts.split(",")
    unknown = [name for name in names if name not in gpu_parts.PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(gpu_parts.PARTS)}")
    vars(gpu_bench.timm.optim)  # imported here, once for all parts that are forked
    for part in gpu_parts.PARTS.values():
        with contextlib.suppress(ImportError):  # the part will say it
            importlib.import_module(part.module)
    report = _Report(options.out)
    end = time.monotonic() + 60 * options.minutes
    failed = []
    for name in names:
        limit_s = min(gpu_parts.PARTS[name].limit_s, end - time.monotonic())
        if limit_s <= 0:
            report({"part": name, "status": "no time left"})
        elif run_part(name, limit_s, options.tiny, options.start, report) == "failed":
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
