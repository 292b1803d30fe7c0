"""deploy/rayjob.yaml against KubeRay's own definition, deploy/ray-cluster.yaml against Ray's own
schema of `ray up`, without a cluster.

python deploy/try/crds.py KUBERAY     a checkout of KubeRay; needs jsonschema

A field that the definition does not know is a mistake: the API server would drop it in silence.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from jsonschema import Draft202012Validator

CRDS = "ray-operator/config/crd/bases/ray.io_rayjobs.yaml"
DEPLOY = Path(__file__).parents[1]
JOB, CLUSTER = DEPLOY / "rayjob.yaml", DEPLOY / "ray-cluster.yaml"


def closed(schema: Any) -> Any:
    """The schema of an object takes the named properties alone, unless it says otherwise."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def main() -> int:
    definition = yaml.safe_load((Path(sys.argv[1]) / CRDS).read_text())
    job = yaml.safe_load(JOB.read_text())
    version = job["apiVersion"].rpartition("/")[2]
    schema = next(
        each["schema"]["openAPIV3Schema"]
        for each in definition["spec"]["versions"]
        if each["name"] == version
    )
    schema["properties"]["metadata"] = {}
    up = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    wrong = _print_mistakes(JOB, closed(schema))
    wrong += _print_mistakes(CLUSTER, json.loads(up.read_text()))
    return 1 if wrong else 0


def _print_mistakes(path: Path, schema: Any) -> int:
    """Print what is wrong with a YAML file; how much that is."""
    content = yaml.safe_load(path.read_text())
    mistakes = list(Draft202012Validator(schema).iter_errors(content))
    for mistake in mistakes:
        print(f"{'.'.join(map(str, mistake.absolute_path))}: {mistake.message[:200]}")
    print(f"{path.name}: {len(mistakes)} mistakes")
    return len(mistakes)


if __name__ == "__main__":
    sys.exit(main())
