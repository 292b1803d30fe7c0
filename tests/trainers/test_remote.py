"""Storage by URI, on `file://` (pyarrow's own) and on fsspec's `local://`: the same code as for
a bucket.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.cache import Artifact, StageCache
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.remote import Remote, is_uri


@pytest.fixture(params=["file", "local"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    if request.param == "file":
        yield Remote((tmp_path / "bucket").as_uri())
    else:
        yield Remote(f"local://{tmp_path}/bucket")


def test_files_make_the_round_trip(remote: Remote, tmp_path: Path) -> None:
    remote.check_writable()
    assert remote.files() == []
    assert remote.files("nothing") == []
    tree = tmp_path / "tree"
    for name in ("a.json", "deep/b.bin", "deep/.hidden"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(name.encode() * 100)
    remote.upload_folder(tree, "run", last="a.json")
    assert remote.files("run") == ["run/a.json", "run/deep/b.bin"]
    assert remote.exists("run/a.json")
    assert not remote.exists("run/c")
    back = tmp_path / "back"
    assert remote.download_missing("run", back, skip=["b.bin"]) == 1
    (back / "a.json").write_text("mine")
    assert remote.download_missing("run", back) == 1
    assert (back / "a.json").read_text() == "mine"
    assert (back / "deep/b.bin").read_bytes() == b"deep/b.bin" * 100
    remote.delete_folder("run/deep")
    remote.delete_folder("run/deep")
    assert remote.files("run") == ["run/a.json"]
    assert sorted(p.name for p in back.rglob("*")) == ["a.json", "b.bin", "deep"]


def test_nodes_share_artifacts(remote: Remote, tmp_path: Path) -> None:
    state = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=3, image_size=32, args={"width": 2}), 0
    )
    built = []

    def build(workdir: Path) -> Artifact:
        built.append(workdir)
        return Artifact(state, 1.5, {"x": 1})

    nodes = [StageCache(tmp_path / f"node-{i}", remote=remote) for i in range(3)]
    assert nodes[0].get_or_build("key", build)[1] is False
    found, cached = nodes[1].get_or_build("key", build)
    assert cached
    assert len(built) == 1
    assert found.model.hash() == state.hash()
    assert found.metrics == {"x": 1}
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"half")
    remote.upload(damaged, "key/model.safetensors")
    # built again, and mended in the store
    assert nodes[2].get_or_build("key", build)[1] is False
    assert StageCache(tmp_path / "node-3", remote=remote).get_or_build("key", build)[1]
    assert len(built) == 2


def test_bad_places_are_refused(tmp_path: Path) -> None:
    assert is_uri("s3://bucket/x")
    assert not is_uri("runs/x")
    with pytest.raises(
        ValueError, match="nonsense://x is no storage that can be reached"
    ):
        Remote("nonsense://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        Remote((tmp_path / "file" / "inside").as_uri()).check_writable()
