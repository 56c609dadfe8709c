"""What must hold for every rendered release. Each rule is also tried on an output that was made wrong, so that it is
known to notice."""

import copy
import pathlib
import shutil
import tempfile

from chart import CHART, NAMES, Case, env, find, label, pods, put, render, values_of

# A setting with one of these in its name is a file's path, never the secret itself.
SECRET_WORDS = ("password", "secret", "token", "key")


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def no_root(objects):
    for name, _, spec in pods(objects):
        context = spec["securityContext"]
        if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
            yield f"{name} may run as root"
        for container in containers(spec):
            if container.get("securityContext", {}).get("runAsUser") == 0:
                yield f"{name}/{container['name']} runs as root"


def no_privileges(objects):
    for name, _, spec in pods(objects):
        if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
            yield f"{name} shares the host's namespaces"
        if spec["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        for container in containers(spec):
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{name}/{container['name']} may gain privileges"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name}/{container['name']} has capabilities"


def read_only_root(objects):
    for name, _, spec in pods(objects):
        for container in containers(spec):
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{name}/{container['name']} can write to its image"


def no_api_token(objects):
    for each in objects:
        if each["kind"] == "ServiceAccount" and each.get("automountServiceAccountToken") is not False:
            yield f"{label(each)} gives a token"
        if each["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
            yield f"{label(each)}: nothing here needs rights"
    for name, _, spec in pods(objects):
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token"


def no_service_links(objects):
    """A coordinator refuses TRANCHE_COORDINATOR_PORT, which the kubelet sets for a service of that name."""
    for name, _, spec in pods(objects):
        if spec.get("enableServiceLinks") is not False:
            yield f"{name} gets the services' variables"


def memory_is_limited(objects):
    for name, _, spec in pods(objects):
        for container in containers(spec):
            resources = container.get("resources", {})
            if "memory" not in resources.get("limits", {}) or not resources.get("requests", {}).keys() >= {"cpu", "memory"}:
                yield f"{name}/{container['name']} has no requests, or no limit of memory"


def probes(objects):
    for name, meta, spec in pods(objects):
        component = meta["labels"]["app.kubernetes.io/component"]
        if component == "test":
            continue
        for container in containers(spec):
            ports = {port["containerPort"] for port in container.get("ports", [])}
            # A worker's start takes no time, and without a port there is nothing to ask.
            wanted = ["livenessProbe", "readinessProbe"] if ports else []
            for probe in wanted if component.startswith("worker-") else ["startupProbe", *wanted]:
                if probe not in container:
                    yield f"{name} has no {probe}"
            if not ports and not component.startswith("worker-"):
                yield f"{name} has no port"
            for probe in {"startupProbe", "livenessProbe", "readinessProbe"} & container.keys():
                action = container.get(probe, {}).get("grpc") or container.get(probe, {}).get("httpGet") or {}
                if action.get("port") not in ports:
                    yield f"{name}: {probe} asks a port that isn't there"
                if "TRANCHE_COORDINATOR_TLS_CERT" in env(container):
                    # The kubelet's gRPC probes speak clear text only.
                    if "grpc" in container.get(probe, {}) or action.get("scheme") != "HTTPS":
                        yield f"{name}: {probe} doesn't speak TLS"
            readiness, liveness = container.get("readinessProbe"), container.get("livenessProbe")
            if readiness and liveness and "httpGet" in readiness and readiness["httpGet"]["path"] == liveness["httpGet"]["path"]:
                yield f"{name}: liveness and readiness are the same"


def seconds(text):
    return int(text.removesuffix("s"))


def time_to_end(objects):
    """The kubelet must not kill a process that still drains, nor a start that still waits for the store."""
    for name, _, spec in pods(objects):
        (container,) = spec["containers"]
        settings = env(container)
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if "TRANCHE_COORDINATOR_SHUTDOWN_GRACE" in settings:
            needed = seconds(settings["TRANCHE_COORDINATOR_SHUTDOWN_GRACE"]) + seconds(
                settings["TRANCHE_COORDINATOR_CALL_TIMEOUT"]
            )
            if grace <= needed:
                yield f"{name} is killed after {grace} s, and may need more than {needed} s"
            probe = container["startupProbe"]
            if probe["periodSeconds"] * probe["failureThreshold"] <= seconds(
                settings["TRANCHE_COORDINATOR_START_TIMEOUT"]
            ):
                yield f"{name} is killed while it waits for the store"
        if "TRANCHE_WORKER_DRAIN_TIMEOUT" in settings and grace <= seconds(settings["TRANCHE_WORKER_DRAIN_TIMEOUT"]):
            yield f"{name} is killed while it drains"


def disruption(objects):
    """Several coordinators: one may be gone at a time, they are spread, and share one volume."""
    for each in objects:
        if each["kind"] != "StatefulSet" or each["spec"]["replicas"] < 2:
            continue
        spec = each["spec"]["template"]["spec"]
        labels = each["spec"]["template"]["metadata"]["labels"]
        budgets = [
            budget
            for budget in objects
            if budget["kind"] == "PodDisruptionBudget"
            and budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ]
        if len(budgets) != 1:
            yield f"{label(each)} has {len(budgets)} budgets"
        keys = {spread["topologyKey"] for spread in spec.get("topologySpreadConstraints", [])}
        if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{label(each)} is spread over {keys}"
        (objects_volume,) = [volume for volume in spec["volumes"] if volume["name"] == "objects"]
        claim = objects_volume.get("persistentVolumeClaim", {}).get("claimName")
        if not claim or each["spec"].get("volumeClaimTemplates"):
            yield f"{label(each)} doesn't share its objects"
        for made in objects:
            if made["kind"] == "PersistentVolumeClaim" and made["metadata"]["name"] == claim:
                if made["spec"]["accessModes"] != ["ReadWriteMany"]:
                    yield f"{label(made)} can't be shared"


def selectors(objects):
    """What selects something selects a pod of ours, and every port that is named is there."""
    ours = [
        (meta["labels"], {port["name"]: port["containerPort"] for c in spec["containers"] for port in c.get("ports", [])})
        for _, meta, spec in pods(objects)
    ]
    for each in objects:
        if each["kind"] == "Service":
            selected = [ports for labels, ports in ours if each["spec"]["selector"].items() <= labels.items()]
            if len(selected) != 1:
                yield f"{label(each)} selects {len(selected)} kinds of pods"
            for port in each["spec"]["ports"]:
                if not all(port["targetPort"] in ports for ports in selected):
                    yield f"{label(each)}: no port {port['targetPort']}"
        elif each["kind"] == "NetworkPolicy":
            wanted = each["spec"]["podSelector"]["matchLabels"].items()
            if sum(wanted <= labels.items() for labels, _ in ours) != 1:
                yield f"{label(each)} selects none, or too much"
        elif each["kind"] in ("StatefulSet", "Deployment"):
            template = each["spec"]["template"]["metadata"]["labels"]
            if not each["spec"]["selector"]["matchLabels"].items() <= template.items():
                yield f"{label(each)} doesn't select its own pods"
            if any("version" in key or "chart" in key for key in each["spec"]["selector"]["matchLabels"]):
                yield f"{label(each)}: its selector changes with the version, which can't be upgraded"
        elif each["kind"] == "ServiceMonitor":
            services = [
                service
                for service in objects
                if service["kind"] == "Service"
                and each["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            ]
            if len(services) != 1:
                yield f"{label(each)} selects {len(services)} services: each coordinator is scraped as often"
            elif each["spec"]["endpoints"][0]["port"] not in [port["name"] for port in services[0]["spec"]["ports"]]:
                yield f"{label(each)} scrapes no port of {label(services[0])}"


def policies(objects):
    """Every pod that stays has a policy that says what comes in and what goes out."""
    selected = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    for name, meta, spec in pods(objects):
        if meta["labels"]["app.kubernetes.io/component"] == "test":
            continue
        mine = [
            spec for spec in selected if spec["podSelector"]["matchLabels"].items() <= meta["labels"].items()
        ]
        if len(mine) != 1 or set(mine[0]["policyTypes"]) != {"Ingress", "Egress"}:
            yield f"{name} has no policy of its own for both directions"
            continue
        for direction in ("ingress", "egress"):
            if any(not rule for rule in mine[0].get(direction, [])):
                yield f"{name}: an empty rule of {direction} lets all through"
        if meta["labels"]["app.kubernetes.io/component"].startswith("worker-"):
            opened = {port["containerPort"] for c in containers(spec) for port in c.get("ports", [])}
            for rule in mine[0].get("ingress", []):
                if not rule.get("from") or {port.get("port") for port in rule.get("ports", [])} != opened:
                    yield f"{name}: somebody may connect to a worker"


def secrets(objects):
    """Secrets come from secrets, by files that only the pod's group reads; no pod has a key that isn't its own."""
    for name, meta, spec in pods(objects):
        for container in containers(spec):
            for key, value in env(container).items():
                secret = any(word in key.lower() for word in SECRET_WORDS)
                if secret and isinstance(value, str) and not value.startswith("/etc/tranche/"):
                    yield f"{name}: {key} is in clear"
            for argument in container.get("command", []) + container.get("args", []):
                if any(word in argument.lower() for word in ("password=", "token=")):
                    yield f"{name}: a secret in the arguments"
        if meta["labels"]["app.kubernetes.io/component"] == "coordinator":
            server = {v["secret"]["secretName"] for v in spec["volumes"] if v["name"] == "tls"}
            for other, other_meta, other_spec in pods(objects):
                if other_meta["labels"]["app.kubernetes.io/component"] == "coordinator":
                    continue
                for volume in other_spec.get("volumes", []):
                    secret = volume.get("secret", {})
                    items = [item["key"] for item in secret.get("items", [])]
                    if secret.get("secretName") in server and (not items or "tls.key" in items):
                        yield f"{other} has the coordinators' key"


def mounts(objects):
    """Every volume is mounted, every mount has a volume, and every path that a setting names is in a mount."""
    for name, _, spec in pods(objects):
        there = [volume["name"] for volume in spec.get("volumes", [])]
        if len(there) != len(set(there)):
            yield f"{name}: two volumes have one name"
        for each in objects:
            if each["kind"] == "StatefulSet" and label(each) == name:
                there += [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
        for container in containers(spec):
            mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            if set(mounted.values()) != set(there):
                yield f"{name}: volumes {there}, mounted {sorted(mounted.values())}"
            for key, value in env(container).items():
                if isinstance(value, str) and value.startswith("/") and key != "TRANCHE_COORDINATOR_PREFIX":
                    for path in value.split(":"):
                        if not any(path == at or path.startswith(f"{at}/") for at in mounted):
                            yield f"{name}: {key} = {path} is in no mount"


RULES = {
    rule.__name__: rule
    for rule in (
        no_root,
        no_privileges,
        read_only_root,
        no_api_token,
        no_service_links,
        memory_is_limited,
        probes,
        time_to_end,
        disruption,
        selectors,
        policies,
        secrets,
        mounts,
    )
}


def coordinator(objects):
    return find(objects, "StatefulSet", "t-tranche")["spec"]


def coordinator_pod(objects):
    return coordinator(objects)["template"]["spec"]


def worker_pod(objects):
    return find(objects, "Deployment", "t-tranche-worker-pictures")["spec"]["template"]["spec"]


def edit(kind, name, change):
    return lambda objects: change(find(objects, kind, name))


def rename(container, key, value):
    for entry in container["env"]:
        if entry["name"] == key:
            entry["value"] = value


# (rule, how the production example's output is made wrong). Every rule must be here.
WRONG = [
    ("no_root", lambda o: coordinator_pod(o)["securityContext"].update(runAsNonRoot=False)),
    ("no_root", lambda o: worker_pod(o)["securityContext"].update(runAsUser=0)),
    ("no_root", lambda o: worker_pod(o)["containers"][0]["securityContext"].update(runAsUser=0)),
    ("no_privileges", lambda o: worker_pod(o).update(hostNetwork=True)),
    ("no_privileges", lambda o: worker_pod(o)["securityContext"].pop("seccompProfile")),
    ("no_privileges", lambda o: worker_pod(o)["containers"][0]["securityContext"].pop("capabilities")),
    ("no_privileges", lambda o: worker_pod(o)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")),
    ("read_only_root", lambda o: coordinator_pod(o)["containers"][0]["securityContext"].pop("readOnlyRootFilesystem")),
    ("no_api_token", lambda o: coordinator_pod(o).pop("automountServiceAccountToken")),
    ("no_api_token", edit("ServiceAccount", "t-tranche", lambda e: e.update(automountServiceAccountToken=True))),
    ("no_api_token", lambda o: o.append({"kind": "ClusterRole", "metadata": {"name": "x"}})),
    ("no_service_links", lambda o: coordinator_pod(o).update(enableServiceLinks=True)),
    ("memory_is_limited", lambda o: worker_pod(o)["containers"][0]["resources"]["limits"].pop("memory")),
    ("memory_is_limited", lambda o: worker_pod(o)["containers"][0]["resources"]["requests"].pop("cpu")),
    ("probes", lambda o: coordinator_pod(o)["containers"][0].pop("livenessProbe")),
    ("probes", lambda o: coordinator_pod(o)["containers"][0]["readinessProbe"]["httpGet"].update(port=1)),
    ("probes", lambda o: coordinator_pod(o)["containers"][0]["readinessProbe"]["httpGet"].update(scheme="HTTP")),
    ("probes", lambda o: coordinator_pod(o)["containers"][0]["readinessProbe"]["httpGet"].update(path="/livez")),
    ("probes", lambda o: worker_pod(o)["containers"][0].pop("livenessProbe")),
    ("probes", lambda o: worker_pod(o)["containers"][0]["readinessProbe"]["httpGet"].update(port=1)),
    ("probes", lambda o: coordinator_pod(o)["containers"][0].pop("ports")),
    ("time_to_end", lambda o: coordinator_pod(o).update(terminationGracePeriodSeconds=15)),
    ("time_to_end", lambda o: worker_pod(o).update(terminationGracePeriodSeconds=30)),
    ("time_to_end", lambda o: coordinator_pod(o)["containers"][0]["startupProbe"].update(failureThreshold=15)),
    ("disruption", edit("PodDisruptionBudget", "t-tranche", lambda e: e["spec"]["selector"]["matchLabels"].update(a="b"))),
    ("disruption", lambda o: coordinator_pod(o)["topologySpreadConstraints"].pop()),
    ("disruption", lambda o: coordinator_pod(o)["volumes"].__setitem__(0, {"name": "objects", "emptyDir": {}})),
    (
        "disruption",
        edit("PersistentVolumeClaim", "t-tranche-objects", lambda e: e["spec"].update(accessModes=["ReadWriteOnce"])),
    ),
    ("selectors", edit("Service", "t-tranche", lambda e: e["spec"]["selector"].update(a="b"))),
    ("selectors", edit("Service", "t-tranche", lambda e: e["spec"]["ports"][0].update(targetPort="http"))),
    ("selectors", edit("NetworkPolicy", "t-tranche", lambda e: e["spec"]["podSelector"]["matchLabels"].clear())),
    ("selectors", lambda o: coordinator(o)["selector"]["matchLabels"].update({"app.kubernetes.io/version": "0.1.0"})),
    ("selectors", edit("Service", "t-tranche", lambda e: e["metadata"]["labels"].update({"tranche-service": "peers"}))),
    ("selectors", edit("ServiceMonitor", "t-tranche", lambda e: e["spec"]["endpoints"][0].update(port="metrics"))),
    ("policies", lambda o: o.remove(find(o, "NetworkPolicy", "t-tranche-worker-pictures"))),
    ("policies", edit("NetworkPolicy", "t-tranche", lambda e: e["spec"].update(policyTypes=["Ingress"]))),
    ("policies", edit("NetworkPolicy", "t-tranche", lambda e: e["spec"]["egress"].append({}))),
    (
        "policies",
        edit("NetworkPolicy", "t-tranche-worker-pictures", lambda e: e["spec"].update(ingress=[{"ports": []}])),
    ),
    (
        "policies",
        edit("NetworkPolicy", "t-tranche-worker-pictures", lambda e: e["spec"]["ingress"][0].pop("from")),
    ),
    ("secrets", lambda o: rename(worker_pod(o)["containers"][0], "TRANCHE_WORKER_TOKEN_FILE", "abc")),
    ("secrets", lambda o: worker_pod(o)["containers"][0].update(args=["--token=abc"])),
    (
        "secrets",
        lambda o: worker_pod(o)["volumes"].append({"name": "x", "secret": {"secretName": "t-tranche-tls"}}),
    ),
    ("mounts", lambda o: worker_pod(o)["containers"][0]["volumeMounts"].pop()),
    ("mounts", lambda o: worker_pod(o)["volumes"].pop()),
    ("mounts", lambda o: worker_pod(o)["volumes"].append(worker_pod(o)["volumes"][0])),
    ("mounts", lambda o: rename(coordinator_pod(o)["containers"][0], "TRANCHE_COORDINATOR_OBJECTS", "/tmp/x")),
]


class Policy(Case):
    def test_every_example_keeps_every_rule(self):
        for name in NAMES:
            objects = render(values_of(name))
            for rule in RULES.values():
                with self.subTest(name, rule=rule.__name__):
                    self.assertEqual([], list(rule(objects)))

    def test_the_rules_hold_with_certificates_for_clients_too(self):
        values = values_of("production")
        for path in ("workerDefaults.identity", "tests.identity"):
            values = put(values, path, {"certificateSecret": "tranche-client"})
        objects = render(values)
        for rule in RULES.values():
            with self.subTest(rule=rule.__name__):
                self.assertEqual([], list(rule(objects)))

    def test_longer_times_make_longer_graces(self):
        values = values_of("production")
        for path, value in {
            "coordinator.shutdownGraceSeconds": 600,
            "coordinator.callTimeoutSeconds": 60,
            "coordinator.startTimeoutSeconds": 3600,
            "workerDefaults.drainSeconds": 3600,
        }.items():
            values = put(values, path, value)
        self.assertEqual([], list(time_to_end(render(values))))

    def test_each_rule_notices(self):
        self.assertEqual(set(RULES), {name for name, _ in WRONG})
        right = render(values_of("production"))
        for number, (name, spoil) in enumerate(WRONG):
            with self.subTest(name, number=number):
                wrong = copy.deepcopy(right)
                spoil(wrong)
                self.assertNotEqual([], list(RULES[name](wrong)))


class Content(Case):
    """What single values do."""

    def test_the_certificate_has_the_names_by_which_coordinators_are_called(self):
        objects = render(values_of("production"))
        names = find(objects, "Certificate", "t-tranche")["spec"]["dnsNames"]
        for _, _, spec in pods(objects):
            for key, value in env(spec["containers"][0]).items():
                if key in ("TRANCHE_COORDINATOR", "TRANCHE_WORKER_COORDINATOR", "TRANCHE_COORDINATOR_ADVERTISE"):
                    host = value.removeprefix("https://").removesuffix(":7070").replace("$(POD_NAME).", "*.")
                    self.assertIn(host, names)
        monitor = find(objects, "ServiceMonitor", "t-tranche")["spec"]["endpoints"][0]
        self.assertIn(monitor["tlsConfig"]["serverName"], names)
        self.assertIn("tranche.example.com", names)

    def test_flags_that_need_a_value_are_there_only_with_it(self):
        optional = ("TLS_CERT", "TLS_KEY", "TLS_CA", "TLS_CLIENT_CA", "IDENTITIES", "TOKEN_FILE", "OPS_LISTEN")
        optional += ("ETCD_CA", "ETCD_CERT", "ETCD_KEY", "ETCD_USER", "ETCD_PASSWORD_FILE")
        given = {}
        for name in NAMES:
            spec = coordinator_pod(render(values_of(name)))
            settings = env(spec["containers"][0])
            given[name] = {short for short in optional if f"TRANCHE_COORDINATOR_{short}" in settings}
            self.assertEqual(name == "trial", "TRANCHE_COORDINATOR_INSECURE" in settings)
        self.assertEqual(set(), given["trial"])
        self.assertEqual(set(optional) - {"TOKEN_FILE", "ETCD_USER", "ETCD_PASSWORD_FILE"}, given["production"])
        self.assertEqual(set(optional) - {"TLS_CLIENT_CA", "ETCD_CERT", "ETCD_KEY"}, given["pools"])

    def test_coordinators_know_the_handlers_of_all_pools(self):
        objects = render(values_of("pools"))
        settings = env(coordinator_pod(objects)["containers"][0])
        self.assertEqual("noop,object,vectors,vectors-v2", settings["TRANCHE_COORDINATOR_HANDLERS"])
        own = render(put(values_of("pools"), "coordinator.config.handlers", ["other"]))
        self.assertEqual("other", env(coordinator_pod(own)["containers"][0])["TRANCHE_COORDINATOR_HANDLERS"])

    def test_a_digest_wins_and_a_pools_image_is_its_own(self):
        objects = render(values_of("pools"))
        digest = values_of("pools")["image"]["digest"]
        images = {name: spec["containers"][0]["image"] for name, _, spec in pods(objects)}
        self.assertEqual(f"registry.example.com/tranche@{digest}", images["StatefulSet/t-tranche"])
        self.assertEqual("registry.example.com/vector-import:7", images["Deployment/t-tranche-worker-vectors"])
        tagged = render(put(values_of("pools"), "workerPools.check.image", {"tag": "next"}))
        images = {name: spec["containers"][0]["image"] for name, _, spec in pods(tagged)}
        self.assertEqual("registry.example.com/tranche:next", images["Deployment/t-tranche-worker-check"])

    def test_the_claim_stays_unless_it_is_told_to_go(self):
        kept = find(render(values_of("production")), "PersistentVolumeClaim", "t-tranche-objects")
        self.assertEqual("keep", kept["metadata"]["annotations"]["helm.sh/resource-policy"])
        gone = find(render(values_of("trial")), "PersistentVolumeClaim", "t-tranche-objects")
        self.assertNotIn("annotations", gone["metadata"])

    def test_the_test_is_made_only_if_a_pool_can_do_it(self):
        kinds = [each["kind"] for each in render(put(values_of("trial"), "tests.handler", "object"))]
        self.assertNotIn("Pod", kinds)
        test = find(render(values_of("trial")), "ConfigMap", "t-tranche-test")
        self.assertEqual(100, len(test["data"]["tasks.ndjson"].splitlines()))

    def test_the_backlog_is_asked_for_the_pools_own_handlers(self):
        objects = render(values_of("pools"))
        hpa = find(objects, "HorizontalPodAutoscaler", "t-tranche-worker-pictures")["spec"]
        self.assertEqual({"handler": "object"}, hpa["metrics"][0]["external"]["metric"]["selector"]["matchLabels"])
        scaled = find(objects, "ScaledObject", "t-tranche-worker-vectors")["spec"]
        self.assertEqual(
            'sum(tranche_backlog_tasks{namespace="media",handler=~"vectors|vectors-v2"})',
            scaled["triggers"][0]["metadata"]["query"],
        )

    def test_traces_go_where_they_are_told(self):
        objects = render(values_of("pools"))
        for name, _, spec in pods(objects):
            given = [value for key, value in env(spec["containers"][0]).items() if key.endswith("_OTLP_ENDPOINT")]
            self.assertEqual([] if "Pod/" in name else ["https://otel-collector.monitoring.svc:4317"], given, name)
            # The collector's CA is where it is looked for.
            ca = env(spec["containers"][0]).get("OTEL_EXPORTER_OTLP_CERTIFICATE")
            self.assertEqual(None if "Pod/" in name else "/etc/tranche/otlp/ca.crt", ca, name)
            if ca:
                mounted = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
                (volume,) = [each for each in spec["volumes"] if each["name"] == mounted["/etc/tranche/otlp"]]
                self.assertEqual("otel-collector-ca", volume["secret"]["secretName"])
        for each in objects:
            if each["kind"] == "NetworkPolicy":
                self.assertIn([{"port": 4317}], [rule["ports"] for rule in each["spec"]["egress"]])
        self.assertNotIn("OTLP", str(render(values_of("production"))))

    def test_alerts_and_dashboard_are_taken_from_their_files(self):
        with tempfile.TemporaryDirectory() as folder:
            chart = shutil.copytree(CHART, pathlib.Path(folder) / "tranche")
            (chart / "dashboards").mkdir(exist_ok=True)
            alert = '{alert: A, expr: up == 0, annotations: {summary: "{{ $labels.pod }} of {{ $value }}"}}'
            (chart / "alerts.yaml").write_text("groups:\n  - name: tranche\n    rules:\n      - " + alert + "\n")
            (chart / "dashboards" / "tranche.json").write_text('{"title": "Tranche {{handler}}"}\n')
            objects = render(values_of("production"), chart=chart)
            rule = find(objects, "PrometheusRule", "t-tranche")["spec"]["groups"][0]["rules"][0]
            # Prometheus' own templates are not Helm's.
            self.assertEqual("{{ $labels.pod }} of {{ $value }}", rule["annotations"]["summary"])
            board = find(objects, "ConfigMap", "t-tranche-dashboard")
            self.assertEqual('{"title": "Tranche {{handler}}"}', board["data"]["tranche.json"])
            off = [each["kind"] for each in render(values_of("trial"), chart=chart)]
            self.assertNotIn("PrometheusRule", off)
