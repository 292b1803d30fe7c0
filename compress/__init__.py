"""Methods as stages of a pipeline, and as plain functions. Runs without Ray.

    import compress

    result = compress.run("resnet20_cifar", "digits", ["finetune", "kmeans_quant"])
    model = result.model.build()

The methods for your own modules and training loops are in the packages: `compress.selection`,
`compress.learngene`, `compress.nvit`, `compress.wfn`, `compress.codec`; see docs/library.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.library import measured, run

__all__ = ["measured", "run"]


def __getattr__(name: str) -> Any:
    """Import the library's functions when one is asked for: they need torch."""
    if name in __all__:
        from compress import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
