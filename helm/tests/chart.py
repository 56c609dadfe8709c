"""What the tests of the chart share: helm, and its output as objects."""

import copy
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
CHART = ROOT / "helm" / "tranche"
EXAMPLES = ROOT / "helm" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
HELM = os.environ.get("TRANCHE_HELM", str(TOOLS / "bin" / "helm"))
KUBERNETES = pathlib.Path(os.environ.get("TRANCHE_KUBERNETES", str(TOOLS / "kubernetes")))

if not KUBERNETES.is_dir() or not pathlib.Path(HELM).is_file():
    sys.exit("helm or the schemas of Kubernetes are missing: run tools/fetch helm kubernetes")
sys.path.insert(0, str(KUBERNETES / "python"))

import yaml  # noqa: E402  (it was fetched with the schemas)


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML's users else never notice."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=deep) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# A lone `=` is text in Kubernetes' YAML.
Strict.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))


def load(text):
    """All documents that aren't empty."""
    return [document for document in yaml.load_all(text, Loader=Strict) if document]


def values_of(name):
    """An example's values."""
    return load((EXAMPLES / f"{name}.yaml").read_text())[0]


def default_values():
    """values.yaml."""
    return load((CHART / "values.yaml").read_text())[0]


def put(values, path, value):
    """A copy of the values with another one at `a.b.c`."""
    values = copy.deepcopy(values)
    at = values
    *way, last = path.split(".")
    for key in way:
        at = at.setdefault(key, {})
    at[last] = value
    return values


def helm(*args, values=None, check=True):
    """Runs helm, with these values in a file, out of reach of a cluster and of its user's settings."""
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": os.devnull}
        command = [HELM, *map(str, args)]
        if values is not None:
            path = pathlib.Path(home) / "values.yaml"
            path.write_text(yaml.safe_dump(values))
            command += ["--values", str(path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stderr}")
    return done


def render(values, *args, chart=CHART, release="t", namespace="media"):
    """The objects of a release."""
    return load(helm("template", release, chart, "--namespace", namespace, *args, values=values).stdout)


def refusal(values):
    """What helm says about values that must not be rendered."""
    done = helm("template", "t", CHART, values=values, check=False)
    if done.returncode == 0:
        return "these values were rendered"
    return done.stderr


def find(objects, kind, name):
    """The one object of this kind and name."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} of {kind}/{name} in {[label(each) for each in objects]}")
    return found[0]


def label(each):
    """Kind and name, for messages."""
    return f"{each['kind']}/{each['metadata']['name']}"


def pods(objects):
    """(name, pod's metadata, pod's spec) of all objects that are or make pods."""
    for each in objects:
        if each["kind"] == "Pod":
            yield label(each), each["metadata"], each["spec"]
        elif each["kind"] in ("StatefulSet", "Deployment"):
            template = each["spec"]["template"]
            yield label(each), template["metadata"], template["spec"]


def env(container):
    """A container's environment: a value, or where it is from."""
    names = [entry["name"] for entry in container.get("env", [])]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise AssertionError(f"set twice: {twice}")
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


class Case(unittest.TestCase):
    """Shows long differences whole."""

    maxDiff = None
