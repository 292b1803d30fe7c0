"""The runtimes of a spec: whether each is installed here and can do what is asked of it."""

from compress.runtimes.registry import runtime
from sweeps.spec.model import Spec
from sweeps.spec.yaml_text import SpecError


def check_runtimes(spec: Spec) -> None:
    """Refuse a runtime that the trials could not use.

    Raises:
        SpecError: place, rule, value, remedy.
    """
    on_cuda = spec.resources.gpus_per_worker > 0 and spec.resources.device != "cpu"
    for prefix, options in spec.measure.runtimes.items():
        place = f"measure.also.{prefix.removesuffix('_')}" if prefix else "measure"
        chosen = runtime(options.runtime)
        device = "cuda" if on_cuda and "cuda" in chosen.devices else "cpu"
        try:
            chosen.check(options, device)
        except ValueError as error:
            raise SpecError(f"{place}: {error}") from error
