"""What is fuzzed: each kind makes one case from a `Random`, and a case is a call that must return,
or refuse with a ValueError or OSError in plain text.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
import zstandard
from fuzz_material import SPEC, Material
from fuzz_mutations import NASTY, as_json, damaged, damaged_json, mutated
from safetensors.torch import save_file
from typer.testing import CliRunner

import analysis
from analysis.numbers import THIN_SPACE
from compress.codec.file import decode_bytes
from sweeps.check import load_spec
from sweeps.cli.main import app
from sweeps.resume import resumed_spec
from sweeps.run.record import trial_records
from trainers.config import SourceConfig
from trainers.models.source import load_source, source_facts

Case = Callable[[], None]

SQL_ATTACKS = (
    "select * from read_csv('{secret}')",
    "select * from read_text('{secret}')",
    "select * from read_blob('{secret}')",
    "select * from read_parquet('{secret}')",
    "select * from read_json('{secret}')",
    "select * from '{secret}'",
    "select * from glob('/*')",
    "select content from read_text('/etc/passwd')",
    "copy trials to '{out}'",
    "copy (select 1) to '{out}' (format parquet)",
    "export database '{out}'",
    "import database '{out}'",
    "attach '{out}' as other",
    "attach '{out}' as other (type sqlite)",
    "install httpfs",
    "load httpfs",
    "install '{out}'",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "pragma enable_external_access",
    "create secret (type s3, key_id 'a', secret 'b')",
    "select getenv('HOME')",
    "select * from sniff_csv('{secret}')",
    "set temp_directory = '{out}'; select 1",
    "select 1; copy trials to '{out}'",
)
MARKERS = (
    "<script>window.hit=1</script>",
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror=window.hit=1>',
    "'><svg onload=window.hit=1>",
    "<!--<script>",
    "]]><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "\\u003cscript\\u003ewindow.hit=1",
    "</style><script>window.hit=1</script>",
    "`${window.hit=1}`",
    "{{constructor.constructor('window.hit=1')()}}",
    "</title><iframe src=javascript:window.hit=1>",
)


def bad(condition: bool, what: str) -> None:
    """A right result was wanted. Raises AssertionError where `condition` does not hold."""
    if not condition:
        raise AssertionError(what)


# ------------------------------------------------------------------ specs


def specs(material: Material, rng: random.Random) -> Case:
    """A spec file with other values, or with damaged text, through all that `validate` checks."""
    path = material.fresh("spec.yaml")
    raw = SPEC | {"storage": str(material.folder)}
    text = yaml.safe_dump(raw, sort_keys=False).encode()
    if rng.random() < 0.3:
        path.write_bytes(damaged(text, rng))
    else:
        path.write_bytes(_as_yaml(mutated(raw, rng)))
    return lambda: _keep_nothing(load_spec(str(path)))


def _as_yaml(tree: Any) -> bytes:
    """YAML in blocks; JSON, which is YAML too, where it is nested too deep for that."""
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except RecursionError:
        return as_json(tree)
    return text.encode("utf-8", "surrogatepass")


def _keep_nothing(result: object) -> None:
    """A case returns nothing: a right result is one that was reached."""


# ------------------------------------------------------------------ run folders


def records(material: Material, rng: random.Random) -> Case:
    """A run folder with one to three damaged JSON files, through the commands that read it."""
    run = material.copy_of_run(ignore="parquet" if rng.random() < 0.7 else "")
    files = [p for p in sorted(run.rglob("*")) if p.suffix in (".json", ".jsonl")]
    for path in rng.sample(files, rng.choice((1, 1, 2, 3))):
        path.write_bytes(damaged_json(path.read_bytes(), rng))
    return partial(_read_run, run, _way(rng))


def tables(material: Material, rng: random.Random) -> Case:
    """Parquet tables alone, with damaged bytes, columns or metadata."""
    run = material.copy_of_run()
    shutil.rmtree(run / "trials")
    if rng.random() < 0.5:
        (run / "run.json").unlink()
    path = rng.choice(sorted(run.rglob("*.parquet")))
    if rng.random() < 0.6:
        path.write_bytes(damaged(path.read_bytes(), rng))
    else:
        pq.write_table(_other_table(pq.read_table(path), rng), path)
    return partial(_read_run, run, _way(rng))


def _other_table(table: pa.Table, rng: random.Random) -> pa.Table:
    names = table.column_names
    index = rng.randrange(len(names))
    name, rows = names[index], table.num_rows
    kind = rng.randrange(6)
    if kind == 0:
        return table.drop_columns([name])
    if kind == 1:
        return table.rename_columns(
            [rng.choice(names) if n == name else n for n in names]
        )
    if kind == 2:
        texts = [as_json(rng.choice(NASTY))[:1000] for _ in range(rows)]
        return table.set_column(index, name, pa.array(texts))
    if kind == 3:
        nested = pa.array([{"a": [1, None]}] * rows)
        return table.set_column(index, name, nested)
    if kind == 4:
        header = dict(table.schema.metadata or {})
        return table.replace_schema_metadata(
            {key: damaged_json(value, rng) for key, value in header.items()}
        )
    odd: list[Any] = [
        rng.choice((None, float("nan"), float("inf"), -1.0, 1e308))
    ] * rows
    return table.set_column(index, name, pa.array(odd, pa.float64()))


def _way(rng: random.Random) -> str:
    """How a run is read; those that take long less often."""
    ways = ("status", "front", "records", "report", "summary", "resume")
    return rng.choices(ways, (6, 6, 4, 1, 2, 1))[0]


def _read_run(run: Path, way: str) -> None:
    """Through a command, or what another one reads."""
    if way == "summary":
        found = analysis.load(run)
        analysis.write_markdown(found, run / "summary.md")
    elif way == "records":
        for record in trial_records(run):
            record.to_json()
    elif way == "resume":
        resumed_spec(run, [])
    else:
        _command(way, str(run))


def _command(*arguments: str) -> None:
    """A command that must end with 0 or with one message and 2, and print nothing but text."""
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    bad(done.exit_code in (0, 2), f"{arguments[0]} ended with {done.exit_code}")
    bad("Traceback" not in done.output, f"{arguments[0]} printed a traceback")
    # numbers are printed with thin spaces between thousands
    ours = "\n\t" + THIN_SPACE
    odd = {c for c in done.output if not c.isprintable() and c not in ours}
    bad(not odd, f"{arguments[0]} printed {odd}")


# ------------------------------------------------------------------ models


def coded(material: Material, rng: random.Random) -> Case:
    """A coded model with a fitting checksum, and other bytes or another header."""
    content = material.coded[:-32]
    content = damaged(content, rng) if rng.random() < 0.5 else _forged(content, rng)
    if rng.random() < 0.9:
        content += hashlib.sha256(content).digest()
    return lambda: _decode(content)


def _forged(content: bytes, rng: random.Random) -> bytes:
    prefix = struct.Struct("<8sHHII")
    magic, version, packing, stored, _ = prefix.unpack_from(content)
    text = content[prefix.size : prefix.size + stored]
    text = zstandard.ZstdDecompressor().decompress(text) if packing else text
    header = as_json(mutated(json.loads(text), rng))
    sizes = len(header), len(header)
    return (
        prefix.pack(magic, version, 0, *sizes)
        + header
        + content[prefix.size + stored :]
    )


def _decode(content: bytes) -> None:
    state = decode_bytes(content, "the file")
    built = state.build()
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    for name, tensor in state.weights.items():
        bad(shapes[name] == tensor.shape, f"{name} has another shape")


def checkpoints(material: Material, rng: random.Random) -> Case:
    """safetensors files and folders of ours with another header, other bytes or another model."""
    folder = material.fresh("checkpoint")
    state = material.state
    kind = rng.randrange(3)
    weights = {name: w.contiguous() for name, w in state.weights.items()}
    if kind == 0:
        state.save(folder)
        path = rng.choice([p for p in sorted(folder.iterdir()) if p.suffix == ".json"])
        path.write_bytes(damaged_json(path.read_bytes(), rng))
        return lambda: _open_model(SourceConfig(checkpoint=folder))
    path = folder.with_suffix(".safetensors")
    save_file(weights, path)
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    if kind == 1:
        header = as_json(mutated(json.loads(content[8 : 8 + size]), rng))
        size_of = rng.choice((len(header),) * 5 + (2**63, 0, len(header) - 1))
        path.write_bytes(struct.pack("<Q", size_of) + header + content[8 + size :])
    else:
        path.write_bytes(damaged(content[: 8 + size], rng) + content[8 + size :])
    args = {"width": 2}
    return lambda: _open_model(
        SourceConfig(model="resnet20_cifar", args=args, checkpoint=path)
    )


def _open_model(config: SourceConfig) -> None:
    source_facts(config, 3, 32, trained=True)
    state = load_source(config, num_classes=3, image_size=32, seed=0)
    for name, tensor in state.weights.items():
        bad(bool(torch.isfinite(tensor.float()).all()), f"{name} is not finite")


class _Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def pickles(material: Material, rng: random.Random) -> Case:
    """Pickles that would write a file, under the names that checkpoints have."""
    path = material.fresh(
        "model" + rng.choice((".pt", ".pth", ".bin", ".ckpt", ".safetensors"))
    )
    hit = path.parent / "hit"
    bomb = _Bomb(
        *rng.choice(
            (
                (open, str(hit), "w"),
                (Path.touch, hit),
                (eval, f"open({str(hit)!r}, 'w')"),
            )
        )
    )
    content = {"state_dict": {"a": torch.zeros(2)}, "more": bomb}
    buffer = io.BytesIO()
    if rng.random() < 0.5:
        torch.save(content, buffer)
    else:
        pickle.dump(content, buffer, protocol=rng.randrange(6))
    path.write_bytes(buffer.getvalue())

    def case() -> None:
        config = SourceConfig(model="resnet20_cifar", checkpoint=path)
        try:
            _open_model(config)
        finally:
            bad(not hit.exists(), "the pickle wrote a file")
        bad(False, "the pickle was taken for a checkpoint")

    return case


# ------------------------------------------------------------------ queries and the report


def queries(material: Material, rng: random.Random) -> Case:
    """SQL that would read or write a file, or ease what is locked."""
    run = material.copy_of_run()
    secret, out = run.parent / "secret", run.parent / "out"
    secret.write_text("do not read\n")
    sql = rng.choice(SQL_ATTACKS).format(secret=secret, out=out)

    def case() -> None:
        try:
            found = analysis.query(run, sql)
            bad("do not read" not in found.to_string(), "the query read a file")
            bad("root:" not in found.to_string(), "the query read /etc/passwd")
        finally:
            bad(not out.exists(), "the query wrote a file")

    return case


def scripts(material: Material, rng: random.Random) -> Case:
    """A report whose names, values and errors are scripts: no element or handler comes of them."""
    run = material.copy_of_run(ignore="parquet")
    files = [p for p in sorted(run.rglob("*")) if p.suffix in (".json", ".jsonl")]
    for path in rng.sample(files, 6):
        lines = (
            path.read_bytes().splitlines()
            if path.suffix == ".jsonl"
            else [path.read_bytes()]
        )
        changed = [as_json(_marked(json.loads(line), rng)) for line in lines]
        path.write_bytes(b"\n".join(changed) + b"\n")

    def case() -> None:
        page = analysis.write_report(analysis.load(run)).read_text()
        seen = _Elements()
        seen.feed(page)
        bad(not seen.handlers, f"handlers in the page: {seen.handlers}")
        bad("iframe" not in seen.tags, "a frame in the page")
        bad(seen.scripts == material_scripts(material), "another script in the page")
        summary = run / "summary.md"
        analysis.write_markdown(analysis.load(run), summary)

    return case


def _marked(tree: Any, rng: random.Random) -> Any:
    """Each text, and some names, become scripts."""
    if isinstance(tree, dict):
        return {
            key + rng.choice(MARKERS) if rng.random() < 0.03 else key: _marked(
                value, rng
            )
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [_marked(value, rng) for value in tree]
    if isinstance(tree, str) and rng.random() < 0.3:
        return tree + rng.choice(MARKERS)
    return tree


class _Elements(HTMLParser):
    """Tags, handlers and addresses of a page, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.handlers: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            runs = (value or "").strip().lower().startswith("javascript:")
            if name.startswith("on") or runs:
                self.handlers.add(f"{tag} {name}={value}"[:200])


def material_scripts(material: Material) -> int:
    """How many script elements the report of the undamaged run has."""
    seen = _Elements()
    out = material.folder / "clean.html"
    if not out.exists():
        analysis.write_report(analysis.load(material.run), out)
    seen.feed(out.read_text())
    return seen.scripts


Kind = Callable[[Material, random.Random], Case]

KINDS: dict[str, tuple[Kind, int]] = {
    "specs": (specs, 10_000),
    "records": (records, 5_000),
    "tables": (tables, 5_000),
    "coded": (coded, 5_000),
    "checkpoints": (checkpoints, 1_000),
    "pickles": (pickles, 100),
    "queries": (queries, 100),
    "scripts": (scripts, 400),
}
"""Name → kind and how many cases the whole benchmark tries."""
