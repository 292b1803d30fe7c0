"""A cluster: addresses that lead nowhere, nodes that could run no trial, and a node that
dies under its trials.

The clusters are simulated in a process of their own (`ray.cluster_utils.Cluster`), beside
this session's Ray.
"""

import json
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray._private.utils
from typer.testing import CliRunner

from benchmarks.nursery import Nursery
from sweeps.check import check_spec
from sweeps.cli.main import app
from sweeps.drive import cluster, node_checks
from sweeps.drive.cluster import check_address
from sweeps.drive.driver import run_sweep
from sweeps.drive.node_checks import check_nodes
from sweeps.drive.room import early_threads
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.reproduce import reproduce
from tests.sweeps.helpers import records

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", r"--address head: write local, auto, host:port or ray://host:port"),
        ("head:port", r"write local, auto, host:port or ray://host:port"),
        (
            "127.0.0.1:1",
            (
                r"nothing answers there .*; is the head node up, and its port open from"
                r" here\?"
            ),
        ),
        ("127.0.0.1:99999", r"nothing answers there"),
        ("ray://127.0.0.1:1", r"nothing answers there"),
    ],
)
def test_addresses_that_lead_nowhere(
    raw: dict[str, Any], tmp_path: Path, address: str, message: str
) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(raw))
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "spec.yaml"), "--address", address]
    )
    assert result.exit_code == 2
    with pytest.raises(SpecError, match=message) as refusal:
        check_address(address)
    assert str(refusal.value) in result.output.replace("\n", " ")


def test_a_connected_process_does_not_change_its_cluster(
    ray_session: None,
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = ray.get_runtime_context().gcs_address
    with cluster.connected(here):
        pass
    assert ray.is_initialized()  # used and left
    (tmp_path / "spec.yaml").write_text(json.dumps(raw))
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "spec.yaml"), "--address", "127.0.0.1:1"]
    )
    assert result.exit_code == 2
    assert "nothing answers there" in result.output.replace("\n", " ")
    monkeypatch.setattr(
        cluster, "check_address", lambda address: None
    )  # a Ray answers there, but another one
    with pytest.raises(
        SpecError,
        match=rf"connected to {here} already; give that address, or call ray\.shutdown",
    ):
        run_sweep(check_spec(spec_from(raw), local=False), address="far:6379")
    assert records(Path(raw["storage"]) / "small") == {}


def test_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.5)
    told = r"something listens there, but no Ray head answered in 0 s"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(SpecError, match=told),
    ):
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def failing_with(
    monkeypatch: pytest.MonkeyPatch, statement: str, address: str = "auto"
) -> str:
    """What a user reads where Ray's connection ends like this."""
    monkeypatch.setattr(cluster, "_check_port", lambda address: None)
    probe = cluster._PROBE.replace("import ray\n", "").replace(
        'ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")',
        statement,
    )
    monkeypatch.setattr(cluster, "_PROBE", probe)
    with pytest.raises(SpecError) as refusal:
        check_address(address)
    return str(refusal.value)


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError) as refusal:
        ray._private.utils.check_version_info(
            {"ray_version": "2.9.0", "python_version": "3.8.1"}, "here"
        )
    raised = f"raise RuntimeError({str(refusal.value)!r})"
    said = failing_with(monkeypatch, raised, "head:6379")
    assert said.startswith(
        "--address head:6379: the cluster does not take this process"
    )
    for version in (ray.__version__, platform.python_version(), "2.9.0", "3.8.1"):
        assert version in said
    assert "\n" not in said


def test_no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a ConnectionError there, whatever it says in it."""
    said = failing_with(monkeypatch, "raise ConnectionError('words')")
    assert "no Ray runs on this machine; start one (`ray start --head`)" in said


def test_ray_may_end_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = "print('GCS is gone', file=sys.stderr); sys.exit(1)"
    said = failing_with(monkeypatch, ended, "head:6379")
    assert said.startswith("--address head:6379: Ray does not connect: GCS is gone; ")
    assert "RAY_AUTH_TOKEN" in said


def test_the_client_needs_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_check_port", lambda address: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install 'compression-sweeps\[client\]'"):
        check_address("ray://head:10001")


def test_from_outside_the_storage_must_be_the_cluster_s(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(raw | {"storage": "runs"}))
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "spec.yaml"), "--address", "ray://127.0.0.1:1"]
    )
    assert result.exit_code == 2
    assert "storage: runs is a folder of this machine" in result.output


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"versions": {"torch": None, "numpy": "2.0"}},
            r"node far lacks torch; install our requirements in its image",
        ),
        (
            {"problem": "FileNotFoundError: /runs"},
            (
                r"node far cannot write to .* \(FileNotFoundError: /runs\); storage"
                r" must be"
            ),
        ),
    ],
)
def test_nodes_that_could_run_nothing(
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
    message: str,
) -> None:
    told = json.dumps(
        {
            "host": "far",
            "versions": {"torch": "2", "timm": "1", "numpy": "2", "optuna": "5"},
            "problem": None,
        }
        | answer
    )
    assert check_nodes(tmp_path) == []  # the real probe, on this machine
    monkeypatch.setattr(node_checks, "_node_probe", lambda: lambda folder, token: told)
    with pytest.raises(SpecError, match=message):
        check_nodes(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_libraries_are_told(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "1.0", "timm": "0", "numpy": "1", "optuna": "1"}
    told = json.dumps({"host": "far", "versions": versions, "problem": None})
    monkeypatch.setattr(node_checks, "_node_probe", lambda: lambda folder, token: told)
    lines = check_nodes(tmp_path)
    assert len(lines) == 4
    assert lines[0].startswith("node far has torch 1.0, this process ")


def test_what_cannot_be_placed_is_refused_at_once(
    raw: dict[str, Any], ray_session: None
) -> None:
    raw["resources"] = {"cpus_per_worker": 3}
    with pytest.raises(
        SpecError,
        match=(
            r"a trial needs 1 x \(3 CPUs, 0 GPUs\).*room for 0 of them \(nodes: 2 CPUs"
        ),
    ):
        run_sweep(check_spec(spec_from(raw), local=False))
    assert records(Path(raw["storage"]) / "small") == {}


@pytest.mark.parametrize(
    ("resources", "trials", "threads"),
    [
        ({"cpus": 2}, 4, 1),
        ({"cpus": 8, "cpus_per_worker": 2}, 40, None),  # four of eight processes
        ({"cpus": 8, "concurrent": 5}, 40, 1),
        ({"cpus": 8, "concurrent": 4}, 40, None),
        ({"cpus": 8}, 4, None),
        ({"cpus": 3, "cpus_per_worker": 3}, 4, None),
        ({"cpus": 1}, 1, 1),
        ({"cpus": 2, "workers": 2}, 4, None),
    ],
)
def test_processes_import_early_where_trials_take_most_of_them(
    raw: dict[str, Any], resources: dict[str, int], trials: int, threads: int | None
) -> None:
    raw |= {"resources": resources, "search": raw["search"] | {"trials": trials}}
    assert early_threads(spec_from(raw)) == threads


SIMULATED = """
import json, os, sys, threading, time
from pathlib import Path
from benchmarks.nursery import use_nursery
from ray.cluster_utils import Cluster
from sweeps.check import check_spec
from sweeps.drive.cluster import set_environment
from sweeps.drive.driver import run_sweep
from sweeps.run.record import trial_records
from sweeps.spec.load import spec_from
from trainers.files import write_atomic

raw, nodes, ship, epochs, trained, nursery = json.loads(sys.argv[1])
set_environment()
if nursery:
    use_nursery(*nursery)
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
added = [cluster.add_node(num_cpus=1) for _ in range(nodes)]

def trial(plan, site):
    import time
    import ray
    import sweeps
    from sweeps.trial.attempt import run_trial
    from sweeps.trial.execute import Execution, execute

    def lost_node(site):
        note = site.run.parent / "lost-node"
        return note.read_text() if note.exists() else ""

    def work(plan, site, on_epoch, on_stage):
        node = ray.get_runtime_context().get_node_id()
        on_epoch({"stage": "where", "node": node, "code": sweeps.__file__})
        if trained:
            return execute(plan, site, on_epoch, on_stage)
        for epoch in range(8):
            on_epoch({"stage": "finetune", "epoch": epoch})
            while epoch == 4 and lost_node(site) in ("", node):
                time.sleep(0.02)  # no trial may end before a node does, and none on it
        metrics = {"accuracy": plan.number / 10, "gmacs": 1.0}
        return Execution(metrics, [], 1.0, 1.0, {})

    return run_trial(plan, site, work)

checked = check_spec(spec_from(raw), local=False)
run = checked.spec.run_folder
options = {"trial": trial, "address": cluster.address, "ship": ship}
sweep = threading.Thread(target=run_sweep, args=(checked,), kwargs=options)
sweep.start()

def victim():
    for record in trial_records(run):
        rows = record.epochs() if record.status == "running" else []
        fresh = [r for r in rows if r["stage"] == "finetune" and not r.get("cached")]
        if len(fresh) >= epochs:
            node = next(n for n in added if n.node_id == rows[0]["node"])
            return record.trial_id, node

while (found := victim()) is None:
    assert sweep.is_alive(), "the sweep ended before a node was removed"
    time.sleep(0.02)
cluster.remove_node(found[1], allow_graceful=False)
write_atomic(run.parent / "lost-node", found[1].node_id.encode())
begun = time.monotonic()
sweep.join()
seconds = time.monotonic() - begun
print(json.dumps({"trial": found[0], "node": found[1].node_id, "seconds": seconds}))
cluster.shutdown()
"""


def simulated(raw: dict[str, Any], tmp_path: Path, **options: Any) -> dict[str, Any]:
    """A sweep on `nodes` one-core nodes; one is removed as soon as a trial there has had
    `epochs` epochs. Workers come from `nursery`, unless they get their code from the driver.
    """
    nursery: Nursery | None = options.get("nursery")
    wanted = [
        raw,
        options["nodes"],
        options["ship"],
        options["epochs"],
        options["trained"],
        nursery and [str(nursery.path), str(nursery.client)],
    ]
    (tmp_path / "script.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SIMULATED}"
    )
    command = [sys.executable, str(tmp_path / "script.py"), json.dumps(wanted)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_node_dies(
    raw: dict[str, Any], tmp_path: Path, nursery: Nursery | None
) -> None:
    raw["search"]["trials"] = 4
    options = {"nodes": 2, "ship": False, "epochs": 2, "trained": False}
    lost = simulated(raw, tmp_path, **options, nursery=nursery)
    found = records(Path(raw["storage"]) / "small")
    assert {k: r.status for k, r in found.items()} == {
        f"0000{i}": "complete" for i in range(4)
    }
    assert {k: r.attempts for k, r in found.items() if r.attempts > 1} == {
        lost["trial"]: 2
    }
    rows = found[lost["trial"]].epochs()
    assert rows[0]["node"] != lost["node"]
    assert [r["epoch"] for r in rows[1:]] == list(range(8))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_dies_under_training(
    raw: dict[str, Any], tmp_path: Path, data_cache: Path
) -> None:
    """The code is sent to the nodes; the trial goes on from its checkpoint elsewhere, and
    its bits are the same.
    """
    raw["stages"]["finetune"]["epochs"] = 30
    raw["search"]["trials"] = 6
    lost = simulated(raw, tmp_path, nodes=3, ship=True, epochs=4, trained=True)
    found = records(Path(raw["storage"]) / "small")
    assert [r.status for r in found.values()] == ["complete"] * 6
    assert found[lost["trial"]].attempts == 2
    for record in found.values():
        rows = record.epochs()
        assert "runtime_resources" in rows[0]["code"]
        trained = [r["epoch"] for r in rows if r["stage"] == "finetune"]
        assert trained == list(range(30))
    again = reproduce(found[lost["trial"]], data_cache=data_cache)
    assert again.conditions == []
    assert again.same
