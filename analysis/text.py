"""Text from a run folder, made fit for UTF-8."""


def clean_text(value: str) -> str:
    """`value` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    if value.isascii():
        return value
    return value.encode("utf-8", "replace").decode("utf-8")
