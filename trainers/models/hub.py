"""Whether the Hugging Face Hub can be reached, known within seconds.

huggingface_hub asks six times for a file that it has not kept, half a minute where there is no
network, and timm asks for two files.
"""

import socket
from collections.abc import Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 10.0
"""That the Hub may take to answer."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names that timm asks for."""


def check_hub(repository: str, files: Sequence[str]) -> None:
    """Refuse a download that cannot be.

    Args:
        repository: OWNER/NAME, perhaps with @REVISION.
        files: of which one is wanted. Where this machine has kept one, nothing is asked.

    Raises:
        ConnectionError: none is kept, and the Hub does not answer. Where there is a proxy, it is
            left to tell.
    """
    import huggingface_hub as hub

    name, _, revision = repository.partition("@")
    kept = (
        hub.try_to_load_from_cache(name, file, revision=revision or None)
        for file in files
    )
    if any(isinstance(path, str) for path in kept):
        return
    address = urlsplit(hub.constants.ENDPOINT)
    host = address.hostname or ""
    proxies = getproxies()
    if (address.scheme in proxies or "all" in proxies) and not proxy_bypass(host):
        return
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"{host} does not answer ({error})") from error
