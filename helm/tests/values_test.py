"""Values: each is documented and in the schema, and wrong ones are refused with words that help."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

from chart import CHART, ROOT, Case, default_values, helm, put, refusal, values_of

import jsonschema

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# What Kubernetes itself says the shape of: its names aren't repeated here, its API server checks them.
FREE = {
    "global",
    "affinity.nodeAffinity",
    "affinity.podAffinity",
    "affinity.podAntiAffinity",
    "env.valueFrom",
    "volume",
    "spread",
    "peer.podSelector",
    "peer.namespaceSelector",
    "peer.ipBlock",
    "netRule.ports",
}


def resolve(schema):
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def leaves(values, path=""):
    for key, value in values.items():
        at = f"{path}.{key}".lstrip(".")
        yield at, value
        if isinstance(value, dict):
            yield from leaves(value, at)


def schema_at(path):
    schema = resolve(SCHEMA)
    for key in path.split("."):
        if key not in schema.get("properties", {}):
            extra = schema.get("additionalProperties")
            if not isinstance(extra, dict):
                return None
            schema = resolve(extra)
        else:
            schema = resolve(schema["properties"][key])
    return schema


def named(schema, path=""):
    """All paths of properties that the schema names."""
    for key, inner in resolve(schema).get("properties", {}).items():
        at = f"{path}.{key}".lstrip(".")
        yield at
        yield from named(inner, at)


TRIAL, PRODUCTION, POOLS = map(values_of, ("trial", "production", "pools"))
WITH_OPS = put(TRIAL, "ops.enabled", True)
POOL = "workerPools.pictures"

# (values, path, wrong value, what helm says)
BY_SCHEMA = [
    (TRIAL, "coordinater", {}, "additional properties 'coordinater' not allowed"),
    (TRIAL, "coordinator.replica", 2, "additional properties 'replica' not allowed"),
    (TRIAL, "coordinator.replicas", "2", "'/coordinator/replicas': got string, want integer"),
    (TRIAL, "coordinator.replicas", 0, "'/coordinator/replicas': minimum: got 0, want 1"),
    (TRIAL, "coordinator.replicas", 2, "'/objects/claim/accessMode': value must be 'ReadWriteMany'"),
    (PRODUCTION, "objects", {"emptyDir": True}, "'/objects/emptyDir': value must be false"),
    (PRODUCTION, "objects.claim.accessMode", "ReadWriteOnce", "'/objects/claim/accessMode': value must be"),
    (TRIAL, "objects.claim.size", "10", "'/objects/claim/size': '10' does not match pattern"),
    (TRIAL, "objects.claim.accessMode", "ReadOnlyMany", "'/objects/claim/accessMode': value must be one of"),
    (TRIAL, "coordinator.port", 70000, "'/coordinator/port': maximum: got 70,000, want 65,535"),
    (TRIAL, "coordinator.listenHost", "localhost", "'/coordinator/listenHost': 'localhost' does not match"),
    (TRIAL, "coordinator.shutdownGraceSeconds", 601, "'/coordinator/shutdownGraceSeconds': maximum: got 601"),
    (TRIAL, "coordinator.startTimeoutSeconds", "30s", "'/coordinator/startTimeoutSeconds': got string"),
    (TRIAL, "coordinator.config.lease_tll", "10s", "additional properties 'lease_tll' not allowed"),
    (TRIAL, "coordinator.config.lease_ttl", "10", "'/coordinator/config/lease_ttl': '10' does not match pattern"),
    (TRIAL, "coordinator.config.log_format", "xml", "'/coordinator/config/log_format': value must be one of"),
    (TRIAL, "coordinator.config.max_watchers", 0, "'/coordinator/config/max_watchers': minimum: got 0, want 1"),
    (TRIAL, "coordinator.config.max_calls_per_second", -1, "'/coordinator/config/max_calls_per_second': minimum: got -1, want 0"),
    (TRIAL, "coordinator.config.open_services", ["admin"], "'/coordinator/config/open_services/0': value must be one of"),
    (TRIAL, "coordinator.config.handlers", ["No op"], "'/coordinator/config/handlers/0': 'No op' does not match"),
    (TRIAL, "coordinator.service.type", "ExternalName", "'/coordinator/service/type': value must be one of"),
    (TRIAL, "coordinator.resources", {"limit": {}}, "additional properties 'limit' not allowed"),
    (TRIAL, "coordinator.resources.limits.memory", "1 GB", "'/coordinator/resources/limits/memory'"),
    (TRIAL, "coordinator.topologySpread.zone", "Never", "'/coordinator/topologySpread/zone': value must be one of"),
    (TRIAL, "coordinator.extraVolumes", [{"name": "tls", "emptyDir": {}}], "'/coordinator/extraVolumes/0/name': 'not' failed"),
    (TRIAL, "podSecurity.runAsUser", 0, "'/podSecurity/runAsUser': minimum: got 0, want 1"),
    (POOLS, f"{POOL}.podSecurity.runAsUser", 0, f"'/{POOL.replace('.', '/')}/podSecurity/runAsUser': minimum"),
    (TRIAL, "podSecurity.supplementalGroups", [0], "'/podSecurity/supplementalGroups/0': minimum: got 0, want 1"),
    (TRIAL, "image.digest", "sha256:1", "'/image/digest': 'sha256:1' does not match pattern"),
    (TRIAL, "image.pullPolicy", "Sometimes", "'/image/pullPolicy': value must be one of"),
    (TRIAL, "image.repository", "", "'/image/repository': '' does not match pattern"),
    (TRIAL, "insecure", "yes", "'/insecure': got string, want boolean"),
    (PRODUCTION, "etcd.endpoints", ["etcd:2379"], "'/etcd/endpoints/0': 'etcd:2379' does not match pattern"),
    (PRODUCTION, "etcd.endpoints", ["https://etcd"], "'/etcd/endpoints/0': 'https://etcd' does not match pattern"),
    (PRODUCTION, "etcd.prefix", "/tranche", "'/etcd/prefix': '/tranche' does not match pattern"),
    (TRIAL, "etcd.trial.replicas", 3, "additional properties 'replicas' not allowed"),
    (TRIAL, "traces.otlpEndpoint", "otel:4317", "'/traces/otlpEndpoint': 'otel:4317' does not match pattern"),
    (TRIAL, "workerPools.trial.ops.port", 0, "'/workerPools/trial/ops/port': minimum: got 0, want 1"),
    (PRODUCTION, "workerDefaults.ops.tlsSecret", 1, "'/workerDefaults/ops/tlsSecret': got number"),
    (TRIAL, "ops.scheme", "https", "'/ops/scheme': value must be one of"),
    (PRODUCTION, "tls.certManager.duration", "90d", "'/tls/certManager/duration': '90d' does not match pattern"),
    (TRIAL, "workerPools", {"Trial": {}}, "'/workerPools': additional properties 'Trial' not"),
    (TRIAL, "workerPools", {"a" * 16: {}}, "'/workerPools': additional properties 'aaaaaaaaaaaaaaaa'"),
    (TRIAL, "workerPools.trial.handler", "noop", "additional properties 'handler' not allowed"),
    (TRIAL, "workerPools.trial.handlers", "noop", "'/workerPools/trial/handlers': got string, want array"),
    (TRIAL, "workerPools.trial.handlers", ["noop", "noop"], "'/workerPools/trial/handlers': items at 0 and 1 are equal"),
    (TRIAL, "workerPools.trial.slots", 1025, "'/workerPools/trial/slots': maximum: got 1,025, want 1,024"),
    (TRIAL, "workerPools.trial.windowBytes", 8388607, "'/workerPools/trial/windowBytes': minimum"),
    (TRIAL, "workerPools.trial.tolerations", [{"operator": "Is"}], "'/workerPools/trial/tolerations/0/operator'"),
    (POOLS, f"{POOL}.allowRoots", ["mnt"], "/allowRoots/0': 'mnt' does not match pattern"),
    (POOLS, f"{POOL}.allowRoots", ["/a:/b"], "/allowRoots/0': '/a:/b' does not match pattern"),
    (POOLS, f"{POOL}.volumes", [{"name": "media"}], "/volumes/0': minProperties: got 1, want 2"),
    (POOLS, f"{POOL}.volumeMounts", [{"name": "media"}], "/volumeMounts/0': missing property 'mountPath'"),
    (POOLS, f"{POOL}.env", [{"value": "1"}], "/env/0': missing property 'name'"),
    (POOLS, f"{POOL}.autoscaling.kind", "vpa", "/autoscaling/kind': value must be one of"),
    (PRODUCTION, f"{POOL}.podDisruptionBudget.maxUnavailable", 0, "/podDisruptionBudget/maxUnavailable'"),
    (TRIAL, "networkPolicy.clients", [{"cidr": "10.0.0.0/8"}], "'/networkPolicy/clients/0'"),
    (TRIAL, "networkPolicy.etcd.ports", [], "'/networkPolicy/etcd/ports': minItems: got 0, want 1"),
    (TRIAL, "tests.tasks", 5001, "'/tests/tasks': maximum: got 5,001, want 5,000"),
    (TRIAL, "commonLabels", {"a": 1}, "'/commonLabels/a': got number, want string"),
]

BY_CHECK = [
    (TRIAL, "etcd.trial.enabled", False, "etcd.endpoints: batches are kept in etcd"),
    (TRIAL, "etcd.endpoints", ["http://e:2379"], "etcd.trial.enabled: there are etcd.endpoints, too"),
    (TRIAL, "insecure", False, "etcd.trial.enabled: the trial's etcd speaks clear text"),
    (PRODUCTION, "etcd.endpoints", ["http://e:2379"], "http://e:2379 is in clear text: write https://"),
    (PRODUCTION, "etcd.endpoints", ["http://e:2379"], "clear text, but etcd.tls.existingSecret is given"),
    (PRODUCTION, "etcd.tls.existingSecret", "", "etcd.tls.existingSecret: https://etcd-0.etcd.etcd.svc:2379 needs a secret"),
    (PRODUCTION, "etcd.tls.keyKey", "", "etcd.tls: give both certKey and keyKey"),
    (POOLS, "etcd.auth.user", "", "etcd.auth: give both user and existingSecret"),
    (TRIAL, "objects.claim.enabled", False, "objects: give exactly one of existingClaim, claim.enabled=true and"),
    (PRODUCTION, "objects.existingClaim", "x", "emptyDir=true, not 2 (existingClaim, claim.enabled)"),
    (PRODUCTION, "tls.certManager.enabled", False, "tls: give tls.existingSecret or tls.certManager, or set insecure"),
    (PRODUCTION, "tls.existingSecret", "x", "tls: give existingSecret or certManager.enabled=true, not both"),
    (PRODUCTION, "tls.certManager.issuerRef.name", "", "tls.certManager.issuerRef.name: name the issuer"),
    (PRODUCTION, "identities.existingSecret", "", "identities.existingSecret: say who may do what"),
    (TRIAL, "tls.clientCa.secret", "x", "tls.clientCa.secret: client certificates need"),
    (TRIAL, "ops.clientCa.secret", "x", "ops.clientCa.secret: client certificates need"),
    (PRODUCTION, "ops.clientCa.secret", "x", "serviceMonitor.certificate.secret: with ops.clientCa"),
    (PRODUCTION, "ops.enabled", False, "ops.enabled: must be true with TLS"),
    (PRODUCTION, "ops.enabled", False, "serviceMonitor.enabled: there is nothing to scrape"),
    (TRIAL, "coordinator.config.open_services", [], "coordinator.config.open_services: must have health"),
    (PRODUCTION, "ops.port", 7070, "ops.port: 7070 is the gRPC port, too"),
    (POOLS, "traces.otlpEndpoint", "http://otel:4317", "traces.ca.secret: a CA is for a collector at https://"),
    (TRIAL, "traces.ca.secret", "otel-ca", "traces.ca.secret: a CA is for a collector at https://"),
    (TRIAL, "workerPools.trial.ops", {"enabled": True, "scheme": "HTTPS"}, "workerPools.trial.ops.tlsSecret: without cert-manager"),
    (POOLS, "workerPools.vectors.ops.tlsSecret", "", "for t-tranche-worker-ops.default.svc.cluster.local; or say ops.scheme=HTTP"),
    (TRIAL, "workerPools.x", {}, "workerPools.x.handlers: name at least one"),
    (TRIAL, "workerPools.x", {"handlers": ["object"]}, "workerPools.x.allowRoots: the handler object needs"),
    (PRODUCTION, f"{POOL}.allowRoots", ["/mnt/media2"], "/mnt/media2 is in none of its volumeMounts"),
    (PRODUCTION, f"{POOL}.volumes", [], "workerPools.pictures.volumeMounts: there is no volume media"),
    (POOLS, f"{POOL}.autoscaling.minReplicas", 0, "an hpa can't go below 1; keda can"),
    (POOLS, f"{POOL}.autoscaling.minReplicas", 21, "minReplicas 21 is more than maxReplicas 20"),
    (POOLS, "workerPools.vectors.autoscaling.prometheusUrl", "", "keda asks Prometheus: where is it?"),
    (TRIAL, "workerPools.x", {"handlers": [f"h{n}" for n in range(64)]}, "65 handlers; a coordinator knows 64"),
    (PRODUCTION, "workerDefaults.identity", {}, "workerPools.pictures.identity: with identities it must say who"),
    (PRODUCTION, "workerDefaults.identity.certificateSecret", "x", "give tokenSecret or certificateSecret, not both"),
    (POOLS, "workerDefaults.identity", {"certificateSecret": "x"}, "certificates are asked for only with tls.clientCa"),
    (POOLS, "coordinator.token.secret", "", "coordinator.token: with identities it must say who it is"),
    (PRODUCTION, "tests.identity", {}, "tests.identity: with identities it must say who it is"),
]


class Values(Case):
    def test_every_default_is_in_the_schema(self):
        for path, _ in leaves(default_values()):
            with self.subTest(path):
                self.assertIsNotNone(schema_at(path))

    def test_every_value_of_the_schema_is_in_the_defaults_where_it_is_explained(self):
        known = {path for path, _ in leaves(default_values())}
        # Made of one definition with workerDefaults; named freely; or a coordinator's setting with its own default.
        free = re.compile(r"^(workerPools|global|coordinator\.config)(\.|$)|\.(affinity|resources)\.")
        self.assertEqual([], [path for path in named(SCHEMA) if path not in known and not free.search(path)])

    def test_the_defaults_are_of_the_schema(self):
        jsonschema.Draft7Validator.check_schema(SCHEMA)
        jsonschema.Draft7Validator(SCHEMA).validate(default_values())

    def test_values_that_documents_name_are_there(self):
        names = 0
        for document in ("deploy.md", "operations.md"):
            text = (ROOT / "docs" / document).read_text()
            for path in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)(?:=[^`]*)?`", text):
                if path.split(".")[0] in SCHEMA["properties"]:
                    names += 1
                    self.assertIsNotNone(schema_at(path), f"{path} in {document}")
        self.assertGreater(names, 20)

    def test_every_object_of_the_schema_is_closed(self):
        open_ones = []

        def walk(schema, path):
            if not isinstance(schema, dict):
                return
            types = schema.get("type", [])
            if "object" in types and "additionalProperties" not in schema:
                open_ones.append(path)
            for key, inner in schema.get("properties", {}).items():
                walk(inner, f"{path}.{key}".lstrip("."))
            walk(schema.get("items"), path)
            walk(schema.get("additionalProperties"), f"{path}.*")

        walk({key: value for key, value in SCHEMA.items() if key != "definitions"}, "")
        for name, schema in SCHEMA["definitions"].items():
            walk(schema, name)
        self.assertEqual(FREE, set(open_ones))

    def test_every_block_of_values_has_a_comment(self):
        before = ""
        for line in (CHART / "values.yaml").read_text().splitlines():
            if re.match(r"^[a-zA-Z]", line):
                alone = line.rstrip().endswith(":")
                self.assertTrue(before.startswith("#") or alone, line)
            before = line

    def test_the_schema_refuses(self):
        self.refuses(BY_SCHEMA, "values don't meet the specifications of the schema")

    def test_the_checks_refuse(self):
        self.refuses(BY_CHECK, "of the values can't be:")

    def refuses(self, cases, by):
        # Helm starts for each: two at a time.
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda case: refusal(put(*case[:3])), cases))
        for (_, path, wrong, message), said in zip(cases, answers):
            with self.subTest(f"{path} = {wrong!r}"):
                self.assertIn(by, said)
                self.assertIn(message, " ".join(said.split()))

    def test_the_bounds_themselves_are_fine(self):
        """N, where the lists above have N + 1."""
        fine = [
            (TRIAL, "coordinator.port", 65535),
            (TRIAL, "coordinator.shutdownGraceSeconds", 600),
            (TRIAL, "coordinator.config.max_watchers", 1),
            (WITH_OPS, "coordinator.config.open_services", []),
            (TRIAL, "coordinator.config.open_services", ["health"]),
            (TRIAL, "podSecurity.runAsUser", 1),
            (TRIAL, "workerPools.trial.slots", 1024),
            (TRIAL, "workerPools.trial.windowBytes", 8388608),
            (TRIAL, "workerPools", {"a" * 15: {"handlers": ["noop"]}}),
            (TRIAL, "workerPools.x", {"handlers": [f"h{n}" for n in range(63)]}),
            (TRIAL, "tests.tasks", 5000),
            (POOLS, f"{POOL}.autoscaling.minReplicas", 20),
            (PRODUCTION, f"{POOL}.allowRoots", ["/mnt/media/a/b"]),
        ]
        for values, path, value in fine:
            with self.subTest(f"{path} = {value!r}"):
                helm("template", "t", CHART, values=put(values, path, value))

    def test_a_null_of_a_pool_leaves_the_user_to_the_cluster(self):
        values = put(POOLS, f"{POOL}.podSecurity", {"runAsUser": None, "runAsGroup": None, "fsGroup": None})
        out = helm("template", "t", CHART, "--show-only", "templates/workers.yaml", values=values).stdout
        block = out.split("name: t-tranche-worker-pictures")[2].split("containers:")[0]
        self.assertNotIn("runAsUser", block)
        self.assertIn("runAsNonRoot: true", block)
