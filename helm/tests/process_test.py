"""A rendered release, run by the real programs without Kubernetes: its commands, arguments, settings and files.

Only what a cluster gives is put in its place: addresses of services, and paths of mounts. So a setting that the
programs don't know, or a value that they refuse, fails here."""

import os
import pathlib
import re
import shutil
import socket
import tempfile
import urllib.request

from chart import Case, env, find, pods, put, render, values_of
from processes import BIN, ETCD, WRONG_CONFIG, Process, run


class Release:
    """A rendered release as commands and environments of this machine."""

    def __init__(self, values, folder, secrets=None):
        self.objects = render(values)
        self.folder = pathlib.Path(folder)
        # What the chart takes for there: text by key, by the secret's name.
        self.secrets = secrets or {}

    def place(self, pod, path):
        """A path of a pod, on this machine; what pods share is one."""
        return str(self.folder / ("shared" if path == "/var/lib/tranche/objects" else pod) / path.lstrip("/"))

    def pod(self, kind, name, number=0):
        """(command, environment) of the only container of the pod with this number, as the kubelet makes them."""
        each = find(self.objects, kind, name)
        spec = each["spec"] if kind == "Pod" else each["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        settings = {}
        for key, value in env(container).items():
            if isinstance(value, dict):
                assert value == {"fieldRef": {"fieldPath": "metadata.name"}}, value
                value = f"{name}-{number}"
            # The kubelet puts earlier variables into later ones.
            settings[key] = re.sub(r"\$\((\w+)\)", lambda match: settings[match.group(1)], value)
        paths = {}
        for mount in container["volumeMounts"]:
            paths[mount["mountPath"]] = self.place(f"{kind}-{name}-{number}", mount["mountPath"])
            os.makedirs(paths[mount["mountPath"]], exist_ok=True)
            for volume in spec.get("volumes", []):
                if volume["name"] == mount["name"] and "configMap" in volume:
                    data = find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
                    self.files(data, volume["configMap"], paths[mount["mountPath"]])
                if volume["name"] == mount["name"] and "secret" in volume:
                    data = self.secrets[volume["secret"]["secretName"]]
                    self.files(data, volume["secret"], paths[mount["mountPath"]])
        for at, here in paths.items():
            settings = {key: value.replace(at, here) for key, value in settings.items()}
        command = container["command"] + container.get("args", [])
        command = [self.moved(word, paths) for word in command]
        command[0] = str(BIN / pathlib.Path(command[0]).name)
        return command, settings

    @staticmethod
    def moved(word, paths):
        for at, here in paths.items():
            word = word.replace(f"={at}", f"={here}")
        return word

    @staticmethod
    def files(data, volume, folder):
        """A volume's files: those of its items, or all."""
        items = volume.get("items", [{"key": key, "path": key} for key in data])
        for item in items:
            (pathlib.Path(folder) / item["path"]).write_text(data[item["key"]])


class Processes(Case):
    def setUp(self):
        # Elsewhere these tests are of no use, and say so: `make verify` builds the programs first.
        self.assertTrue((BIN / "tranche-coordinator").is_file(), f"no programs in {BIN}: build them, or set TRANCHE_BIN")
        self.folder = tempfile.mkdtemp(prefix="tranche-chart-")
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, command, settings):
        process = Process(command, settings)
        self.addCleanup(process.end)
        return process

    def test_the_trial_imports_the_batch_of_helm_test(self):
        values = values_of("trial")
        release = Release(values, self.folder)

        command, settings = release.pod("StatefulSet", "t-tranche-etcd")
        command[0] = ETCD
        for place, word in enumerate(command):
            # A free port of this machine for those of the pod.
            command[place] = re.sub(r"^(--listen-.*=http://)[0-9.]+:[0-9]+$", r"\g<1>127.0.0.1:0", word)
        etcd = self.start(command, settings)
        address = etcd.wait_for(r'"serving client traffic insecurely.*"address":"([0-9.]+:[0-9]+)"')

        command, settings = release.pod("StatefulSet", "t-tranche")
        self.assertEqual("http://t-tranche-0.t-tranche-peers.media.svc.cluster.local:7070", settings["TRANCHE_COORDINATOR_ADVERTISE"])
        self.assertEqual("etcd:http://t-tranche-etcd.media.svc.cluster.local:2379", settings["TRANCHE_COORDINATOR_STORE"])
        settings["TRANCHE_COORDINATOR_STORE"] = f"etcd:http://{address}"
        settings["TRANCHE_COORDINATOR_LISTEN"] = "127.0.0.1:0"
        # Only the address is told then; a name would have to be resolved.
        del settings["TRANCHE_COORDINATOR_ADVERTISE"]
        coordinator = self.start(command, settings)
        url = f"http://{coordinator.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"

        command, settings = release.pod("Deployment", "t-tranche-worker-trial")
        self.assertEqual("http://t-tranche.media.svc.cluster.local:7070", settings["TRANCHE_WORKER_COORDINATOR"])
        settings["TRANCHE_WORKER_COORDINATOR"] = url
        worker = self.start(command, settings)
        worker.wait_for(r"^(attached)")

        command, settings = release.pod("Pod", "t-tranche-test")
        self.assertEqual("http://t-tranche.media.svc.cluster.local:7070", settings["TRANCHE_COORDINATOR"])
        settings["TRANCHE_COORDINATOR"] = url
        code, output = run(command, settings)
        self.assertEqual(0, code, output)
        self.assertIn("COMMITTED", output)

        # The pool is a label of the worker, and the pod's name is its id.
        code, output = run([str(BIN / "tranche"), "--output", "json", "workers"], {"TRANCHE_COORDINATOR": url})
        self.assertEqual(0, code, output)
        self.assertIn('"pool":"trial"', output.replace(" ", ""))
        self.assertIn("t-tranche-worker-trial-0", output)

        self.assertEqual(0, worker.end())
        self.assertEqual(0, coordinator.end(), coordinator.output())

    def test_a_batch_that_nobody_imports_fails_the_test_by_its_deadline(self):
        values = values_of("trial")
        values["tests"] = {"deadlineSeconds": 5}
        release = Release(values, self.folder)
        settings = {"TRANCHE_COORDINATOR_LISTEN": "127.0.0.1:0", "TRANCHE_COORDINATOR_STORE": f"embedded:{self.folder}/s"}
        coordinator = self.start([str(BIN / "tranche-coordinator")], settings)
        url = f"http://{coordinator.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"
        command, settings = release.pod("Pod", "t-tranche-test")
        settings["TRANCHE_COORDINATOR"] = url
        code, output = run(command, settings)
        self.assertEqual(3, code, output)

    def test_the_coordinator_knows_every_setting_of_the_schema(self):
        """All of them at once, with the store away: a wrong one ends with another exit code."""
        values = values_of("trial")
        values["coordinator"]["config"] = {
            "lease_ttl": "15s",
            "heartbeat_interval": "3s",
            "session_ttl": "6s",
            "request_timeout": "1m",
            "retry_pause": "500ms",
            "backup_after": "1m30s",
            "late_sweep_after": "1h",
            "handlers": ["object", "noop"],
            "max_concurrent_requests": 1000000,
            "max_calls_per_second": 1000000,
            "max_call_burst": 1000000,
            "max_connections": 1000000,
            "max_peer_connections": 1000000,
            "peer_timeout": "10m",
            "append_idle_timeout": "24h",
            "max_watchers": 100000,
            "max_append_streams": 10000,
            "max_watchers_per_namespace": 100000,
            "max_append_streams_per_namespace": 10000,
            "max_workers": 100000,
            "max_workers_per_identity": 100000,
            "max_batches_per_namespace": 100000,
            "max_bytes_per_namespace": "64GiB",
            "max_append_inflight_bytes": 1073741824,
            "open_services": ["health"],
            "log": "info,tranche_coordinator=debug",
            "log_format": "json",
        }
        from values_test import SCHEMA

        known = SCHEMA["properties"]["coordinator"]["properties"]["config"]["properties"]
        self.assertEqual(set(known), set(values["coordinator"]["config"]), "name every setting here")
        command, settings = self.away(values)
        code, output = run(command, settings)
        self.assertEqual(1, code, output)
        self.assertIn("start_timeout", output)
        for name, value in {"LEASE_TLL": "10s", "MAX_WATCHERS": "0"}.items():
            code, output = run(command, settings | {f"TRANCHE_COORDINATOR_{name}": value})
            self.assertEqual(WRONG_CONFIG, code, output)

    def test_variables_of_a_service_would_stop_a_coordinator(self):
        """Why the pods have enableServiceLinks: false."""
        command, settings = self.away(values_of("trial"))
        code, output = run(command, settings | {"TRANCHE_COORDINATOR_PORT": "tcp://10.0.0.1:7070"})
        self.assertEqual(WRONG_CONFIG, code, output)
        self.assertIn("TRANCHE_COORDINATOR_PORT", output)

    def away(self, values):
        """The coordinator, with a store that nobody listens on."""
        command, settings = Release(values, self.folder).pod("StatefulSet", "t-tranche")
        with socket.socket() as taken:
            # Bound but not listening: nobody else gets it while we ask.
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        settings["TRANCHE_COORDINATOR_STORE"] = f"etcd:http://127.0.0.1:{port}"
        settings["TRANCHE_COORDINATOR_LISTEN"] = "127.0.0.1:0"
        settings["TRANCHE_COORDINATOR_START_TIMEOUT"] = "100ms"
        settings["TRANCHE_COORDINATOR_CALL_TIMEOUT"] = "100ms"
        return command, settings

    def test_the_probes_are_answered(self):
        """Of a coordinator and of a worker, at the paths that the kubelet is told to ask."""
        values = put(put(values_of("trial"), "ops.enabled", True), "workerPools.trial.ops", {"enabled": True})
        release = Release(values, self.folder)
        command, settings = release.pod("StatefulSet", "t-tranche")
        del settings["TRANCHE_COORDINATOR_ADVERTISE"], settings["TRANCHE_COORDINATOR_CALL_TIMEOUT"]
        del settings["TRANCHE_COORDINATOR_PREFIX"]
        settings["TRANCHE_COORDINATOR_STORE"] = f"embedded:{self.folder}/store"
        for key in ("LISTEN", "OPS_LISTEN"):
            settings[f"TRANCHE_COORDINATOR_{key}"] = "127.0.0.1:0"
        coordinator = self.start(command, settings)
        url = f"http://{coordinator.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"
        command, settings = release.pod("Deployment", "t-tranche-worker-trial")
        self.assertEqual("0.0.0.0:7071", settings["TRANCHE_WORKER_OPS_LISTEN"])
        settings |= {"TRANCHE_WORKER_COORDINATOR": url, "TRANCHE_WORKER_OPS_LISTEN": "127.0.0.1:0"}
        worker = self.start(command, settings)
        worker.wait_for(r"^(attached)")
        for process, name in ((coordinator, "StatefulSet/t-tranche"), (worker, "Deployment/t-tranche-worker-trial")):
            (spec,) = [spec for pod, _, spec in pods(release.objects) if pod == name]
            address = process.wait_for(r"^ops port on ([0-9.]+:[0-9]+)")
            probes = [value for key, value in spec["containers"][0].items() if key.endswith("Probe")]
            for path in ["/metrics", *(probe["httpGet"]["path"] for probe in probes)]:
                with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
                    self.assertEqual(200, answer.status)
                    said = answer.read().decode()
                    self.assertEqual(path == "/metrics", "tranche_build_info" in said)

    def test_a_worker_takes_every_setting_of_a_pool(self):
        values = values_of("trial")
        values["workerPools"]["trial"] |= {
            "handlers": ["noop", "object"],
            "slots": 3,
            "prefetch": 0,
            "windowBytes": 8388608,
            "drainSeconds": 0,
            "labels": {"site": 'a "quoted" one', "pool": "not this"},
            "log": "debug",
            "logFormat": "json",
            "allowRoots": ["/mnt/a", "/mnt/b"],
            "volumes": [{"name": "mnt", "emptyDir": {}}],
            "volumeMounts": [{"name": "mnt", "mountPath": "/mnt"}],
        }
        coordinator = self.start(
            [str(BIN / "tranche-coordinator")],
            {"TRANCHE_COORDINATOR_LISTEN": "127.0.0.1:0", "TRANCHE_COORDINATOR_STORE": f"embedded:{self.folder}/store"},
        )
        url = f"http://{coordinator.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"
        command, settings = Release(values, self.folder).pod("Deployment", "t-tranche-worker-trial")
        worker = self.start(command, settings | {"TRANCHE_WORKER_COORDINATOR": url})
        worker.wait_for(r"^(attached)")
        code, output = run([str(BIN / "tranche"), "--output", "json", "workers"], {"TRANCHE_COORDINATOR": url})
        self.assertEqual(0, code, output)
        for text in ('a \\"quoted\\" one', '"trial"'):
            self.assertIn(text, output)
        self.assertNotIn("not this", output)
