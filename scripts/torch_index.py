"""Print the index of PyTorch's CPU builds where they are the right ones, else nothing.

`make demo` and `make test` ask this before they install. On Linux pip's own index has the CUDA
build alone, with libraries of NVIDIA of several gigabytes, which a machine without a GPU never
uses. On macOS and Windows pip's index has the CPU build. Only the standard library is used: this
runs in a venv that has nothing installed.

An index that was chosen already (in `PIP_ARGS`, in pip's configuration or its environment) is
left alone, and so is an installed torch. Without an answer from the index, pip's own is taken.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TIMEOUT_SECONDS = 3.0


def is_chosen_already(pip_args: str) -> bool:
    """Whether the user, or who set up this machine, says where packages come from."""
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    chosen = pip_args + settings + " ".join(k for k in os.environ if "PIP_" in k)
    words = (
        "index-url",
        "INDEX_URL",
        "find-links",
        "FIND_LINKS",
        "no-index",
        "NO_INDEX",
    )
    return any(word in chosen for word in words)


def has_gpu() -> bool:
    """Whether this machine has a driver of NVIDIA's or of AMD's."""
    drivers = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd")
    return bool(shutil.which("nvidia-smi")) or any(map(os.path.exists, drivers))


def answers(index: str) -> bool:
    request = urllib.request.Request(f"{index}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main(pip_args: str) -> None:
    if sys.platform != "linux" or importlib.util.find_spec("torch") or has_gpu():
        return
    if not is_chosen_already(pip_args) and answers(CPU_INDEX):
        print(CPU_INDEX)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
