"""Every object is one that Kubernetes 1.29 and newer know, field by field, without a cluster."""

import copy
import functools
import pathlib
import shutil
import tempfile

from chart import CHART, KUBERNETES, NAMES, Case, default_values, env, find, helm, label, load, put, render, values_of

import jsonschema
from kubernetes_validate import utils

# One definition file is read for all objects of a version.
utils.schema_contents = functools.lru_cache(None)(utils.schema_contents)

VERSIONS = sorted({utils.major_minor(version) for version in utils.all_versions()}, key=lambda v: int(v.split(".")[1]))


def close(schema):
    """A custom resource's schema as Kubernetes' strict mode takes it: what isn't named is refused."""
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@functools.lru_cache(None)
def customs():
    """Schemas of custom resources by apiVersion and kind."""
    found = {}
    for path in sorted((KUBERNETES / "crds").glob("*.yaml")):
        (crd,) = load(path.read_text())
        for version in crd["spec"]["versions"]:
            schema = close(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return found


def problems(each, version):
    """What this version of Kubernetes would say against it."""
    try:
        custom = customs().get((each["apiVersion"], each["kind"]))
        if custom:
            jsonschema.Draft202012Validator(custom).validate(each)
        else:
            utils.validate(each, version, strict=True)
    except jsonschema.ValidationError as error:
        return [f"{label(each)} on {version}: {'.'.join(map(str, error.path))}: {error.message[:300]}"]
    return []


def notes_of(values):
    """NOTES.txt, which helm shows only where there is a cluster: rendered as an object's text."""
    with tempfile.TemporaryDirectory() as folder:
        chart = shutil.copytree(CHART, pathlib.Path(folder) / "tranche")
        (chart / "templates" / "notes.yaml").write_text(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\n"
            'data:\n  notes: {{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}\n'
        )
        return find(render(values, chart=chart), "ConfigMap", "notes")["data"]["notes"]


class Kubernetes(Case):
    def test_the_versions_that_are_promised_are_there(self):
        self.assertEqual([f"1.{minor}" for minor in range(29, 38)], VERSIONS)

    def test_lint_has_nothing_to_say(self):
        for name in NAMES:
            with self.subTest(name):
                done = helm("lint", "--strict", CHART, values=values_of(name))
                self.assertIn("0 chart(s) failed", done.stdout)
                self.assertNotIn("WARNING", done.stdout)

    def test_every_example_is_valid_in_every_version(self):
        for name in NAMES:
            objects = render(values_of(name))
            self.assertGreater(len(objects), 8)
            for version in VERSIONS:
                with self.subTest(name, version=version):
                    self.assertEqual([], [found for each in objects for found in problems(each, version)])

    def test_what_is_optional_is_valid_too(self):
        trial, production, pools = map(values_of, ("trial", "production", "pools"))
        cases = {
            "no claim for etcd": put(trial, "etcd.trial.persistence", {"enabled": False}),
            "no policies": put(trial, "networkPolicy.enabled", False),
            "no workers": put(trial, "workerPools", {}),
            "directory of the pod": put(put(trial, "objects", {"emptyDir": True}), "commonLabels", {"a": "b"}),
            "account of others": put(trial, "serviceAccount", {"create": False, "name": "builder"}),
            "user by the cluster": put(trial, "podSecurity", {"runAsUser": None, "runAsGroup": None, "fsGroup": None}),
            "IPv6": put(trial, "coordinator.listenHost", "[::]"),
            "certificates for workers": put(
                put(production, "workerDefaults.identity", {"certificateSecret": "c"}),
                "tests.identity",
                {"certificateSecret": "c"},
            ),
            "CA of the machine": put(production, "tls.ca.system", True),
            "token for Prometheus": put(production, "serviceMonitor.token.secret", "prometheus"),
            "CA of a ConfigMap for Prometheus": put(pools, "serviceMonitor.enabled", True),
            "budget as a share": put(production, "coordinator.podDisruptionBudget.maxUnavailable", "50%"),
            "more volumes": put(
                put(trial, "coordinator.extraVolumes", [{"name": "x", "emptyDir": {}}]),
                "coordinator.extraVolumeMounts",
                [{"name": "x", "mountPath": "/x"}],
            ),
            "other namespaces": put(
                put(trial, "coordinator.extraIngress", [{"from": [{"namespaceSelector": {}}]}]),
                "coordinator.extraEgress",
                [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 4317}]}],
            ),
        }
        for name, values in cases.items():
            with self.subTest(name):
                objects = render(values)
                for version in (VERSIONS[0], VERSIONS[-1]):
                    self.assertEqual([], [found for each in objects for found in problems(each, version)])

    def test_a_wrong_field_is_noticed(self):
        """Of each kind: else the tests above could say nothing."""
        seen = set()
        for name in NAMES:
            for each in render(values_of(name)):
                seen.add(each["kind"])
                wrong = copy.deepcopy(each)
                wrong["spec" if "spec" in each else "metadata"]["nonsense"] = 1
                if each["apiVersion"].count(".") and each["kind"] in ("ConfigMap", "ServiceAccount"):
                    continue
                self.assertTrue(problems(wrong, VERSIONS[0]), label(each))
        self.assertLessEqual(
            {"StatefulSet", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "Pod", "ConfigMap"}
            | {"PersistentVolumeClaim", "HorizontalPodAutoscaler", "ServiceAccount"}
            | {"ScaledObject", "Certificate", "ServiceMonitor", "PodMonitor"},
            seen,
        )

    def test_names_stay_within_63_characters(self):
        values = put(values_of("trial"), "workerPools", {"a" * 15: {"handlers": ["noop"]}})
        for each in render(values, release="r" * 53, namespace="n" * 63):
            name = each["metadata"]["name"]
            # A StatefulSet's pods have its name and a hash as a label, KEDA puts `keda-hpa-` before a pool's.
            longest = {"StatefulSet": 52, "ScaledObject": 54, "Deployment": 53}.get(each["kind"], 63)
            self.assertLessEqual(len(name), longest, label(each))
            for value in each["metadata"]["labels"].values():
                self.assertLessEqual(len(value), 63, label(each))

    def test_two_releases_in_one_namespace_share_no_name(self):
        names = [
            {label(each) for each in render(values_of("trial"), release=release)} for release in ("one", "two")
        ]
        self.assertEqual(set(), names[0] & names[1])

    def test_a_pools_own_zero_wins_over_the_default(self):
        objects = render(values_of("pools"))
        self.assertEqual(0, find(objects, "Deployment", "t-tranche-worker-check")["spec"]["replicas"])
        self.assertIn("prefetch = 0\n", find(objects, "ConfigMap", "t-tranche-worker-check")["data"]["worker.toml"])
        scaled = find(objects, "ScaledObject", "t-tranche-worker-vectors")
        self.assertEqual(0, scaled["spec"]["minReplicaCount"])

    def test_what_a_pool_does_not_say_is_as_the_defaults_say(self):
        (pods,) = [
            each["spec"]["template"]["spec"]
            for each in render(values_of("pools"))
            if each["metadata"]["name"] == "t-tranche-worker-pictures" and each["kind"] == "Deployment"
        ]
        security = pods["securityContext"]
        self.assertEqual((1500, 1500, 65532, [2000]), tuple(
            security[key] for key in ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups")
        ))
        self.assertEqual("60s", env(pods["containers"][0])["TRANCHE_WORKER_DRAIN_TIMEOUT"])

    def test_no_pod_count_is_set_where_something_else_scales(self):
        for each in render(values_of("pools")):
            if each["kind"] == "Deployment" and not each["metadata"]["name"].endswith("-check"):
                self.assertNotIn("replicas", each["spec"])

    def test_the_defaults_alone_say_what_is_missing(self):
        done = helm("template", "t", CHART, values=default_values(), check=False)
        for field in ("etcd.endpoints", "objects", "tls", "identities.existingSecret"):
            self.assertIn(f"  - {field}: ", done.stderr)

    def test_notes_tell_how_to_submit(self):
        for name, scheme in (("trial", "http"), ("production", "https"), ("pools", "https")):
            notes = notes_of(values_of(name))
            self.assertIn(f"export TRANCHE_COORDINATOR={scheme}://localhost:7070", notes)
            self.assertIn("tranche submit --manifest -", notes)
            self.assertEqual(name == "trial", "INSECURE" in notes)
            self.assertNotIn("<no value>", notes)
