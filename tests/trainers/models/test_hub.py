"""Whether the Hub can be reached: told at once, and not asked where it need not be."""

import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from trainers.models.hub import WEIGHTS, check_hub

MODEL = "somebody/some-vit"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub on this machine that takes connections until it is closed; no proxy, nothing kept."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None, raising=False
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield server


def test_a_hub_that_does_not_answer_is_refused_at_once(hub: socket.socket) -> None:
    check_hub(MODEL, WEIGHTS)
    hub.close()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 does not answer \("):
        check_hub(MODEL, WEIGHTS)


def test_what_is_kept_and_what_a_proxy_gives_asks_nobody(
    hub: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.close()
    with monkeypatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:1")
        check_hub(MODEL, WEIGHTS)

    def kept(name: str, file: str, revision: str | None) -> str | None:
        assert (name, revision) == (MODEL, "v2")
        return str(tmp_path) if file == WEIGHTS[1] else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", kept)
    check_hub(f"{MODEL}@v2", WEIGHTS)
