"""Messages about what a runtime cannot do."""


def check_installed(what: str, missing: list[str], extra: str) -> None:
    """Refuse what cannot be done without the modules that are missing.

    Raises:
        ValueError: names them, and how to install them.
    """
    if missing:
        install = f"'compression-sweeps[{extra}]'" if extra else " ".join(missing)
        raise ValueError(f"{what} needs {', '.join(missing)}; pip install {install}")


def first_line(error: BaseException) -> str:
    """The first line of the error that began it all: runtimes wrap it into advice to their
    own developers.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0].rstrip(".!") or type(error).__name__
