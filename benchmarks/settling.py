"""How many passes does a model take to settle, right after another model had the processor?

Run: python benchmarks/settling.py [MODEL OTHER] [--runtime openvino] [--rounds 60]

Two of timm's models with random weights take turns of 20 passes each, of one image on one thread
(default: a small MobileNetV3 beside a large one). Printed is the median, over the rounds, of the
passes 1, 2, 3, 5, 10, 15 and 20, in milliseconds and over the median of the last five. That is what
`compress.measure.latency.SETTLE_MS` comes from.
"""

import argparse

import numpy as np

from compress.measure.options import RuntimeOptions
from compress.runtimes.onnx_file import example_images
from compress.runtimes.registry import session
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

PASSES = 20
SHOWN = (1, 2, 3, 5, 10, 15, 20)
LAST = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="mobilenetv3_small_100")
    parser.add_argument("other", nargs="?", default="mobilenetv3_large_100")
    parser.add_argument("--runtime", default="openvino", help="default: openvino")
    parser.add_argument("--image-size", type=int, default=224, help="default: 224 px")
    parser.add_argument("--rounds", type=int, default=60, help="default: 60")
    options = parser.parse_args()
    runtime = RuntimeOptions(runtime=options.runtime, batch_size=1, threads=1)
    passes = []
    for name in (options.model, options.other):
        arch = make_arch(name, num_classes=10, image_size=options.image_size)
        state = ModelState.initialised(arch, 0)
        images = example_images(state, options.image_size, 1).numpy()
        there = session(state, options.image_size, runtime)
        passes.append(there.timed_pass(images))
    # (rounds, models, passes)
    times = np.array(
        [
            [[run() for _ in range(PASSES)] for run in passes]
            for _ in range(options.rounds)
        ]
    )
    medians = np.median(times, axis=0)
    print("pass        " + "".join(f"{number:>15d}" for number in SHOWN))
    for name, values in zip((options.model, options.other), medians, strict=True):
        settled = np.median(values[-LAST:])
        cells = [
            f"{values[number - 1]:.2f} ms {values[number - 1] / settled:.2f}x"
            for number in SHOWN
        ]
        print(f"{name}\n            " + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
