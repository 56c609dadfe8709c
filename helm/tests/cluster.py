"""A Kubernetes without nodes: etcd, the API server and the controllers, on loopback, in a temporary folder.

What kubelets would do is done here by hand, as far as controllers need it: pods are bound to a node that is only a
record, said to be ready, and removed when they are deleted. Nothing runs in them."""

import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

from chart import HELM, ROOT, load
from processes import DEADLINE, until

BIN = ROOT / ".tools" / "bin"
NODE = "node-of-paper"
ADMIN = "admin-token"
# Who installs: rights in one namespace, none on the cluster.
INSTALLER = "installer-token"

# Path of the kinds that the chart makes, and of those that controllers make of them.
KINDS = {
    "Namespace": ("api/v1", "namespaces", False),
    "Node": ("api/v1", "nodes", False),
    "Pod": ("api/v1", "pods", True),
    "Service": ("api/v1", "services", True),
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "Secret": ("api/v1", "secrets", True),
    "ConfigMap": ("api/v1", "configmaps", True),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims", True),
    "StatefulSet": ("apis/apps/v1", "statefulsets", True),
    "Deployment": ("apis/apps/v1", "deployments", True),
    "ReplicaSet": ("apis/apps/v1", "replicasets", True),
    "ControllerRevision": ("apis/apps/v1", "controllerrevisions", True),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets", True),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies", True),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers", True),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices", True),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "SubjectAccessReview": ("apis/authorization.k8s.io/v1", "subjectaccessreviews", False),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "Certificate": ("apis/cert-manager.io/v1", "certificates", True),
    "ServiceMonitor": ("apis/monitoring.coreos.com/v1", "servicemonitors", True),
    "PodMonitor": ("apis/monitoring.coreos.com/v1", "podmonitors", True),
    "PrometheusRule": ("apis/monitoring.coreos.com/v1", "prometheusrules", True),
    "ScaledObject": ("apis/keda.sh/v1alpha1", "scaledobjects", True),
}


class ApiError(Exception):
    """The API server's no."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


class Cluster:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-cluster-"))
        self.processes = []
        self.stopping = threading.Event()
        self.kubelet = None
        # Who holds it has a kubelet that does nothing meanwhile.
        self.pause = threading.Lock()
        # Pods by (namespace, name) that the kubelet of paper leaves not ready.
        self.sick = set()
        # Phase in which pods end that aren't started again.
        self.outcome = "Succeeded"
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        etcd = self._run(
            "etcd",
            f"--data-dir={self.folder}/etcd",
            "--listen-client-urls=http://127.0.0.1:0",
            "--advertise-client-urls=http://127.0.0.1:0",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--unsafe-no-fsync",
        )
        found = until(
            "etcd", lambda: re.search(r'serving client traffic insecurely.*"address":"([^"]+)"', self._log(etcd))
        )
        key = self.folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n{INSTALLER},installer,2\n')
        with socket.socket() as free:
            # The server doesn't take 0 for a port.
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"https://127.0.0.1:{port}"
        server = self._run(
            "kube-apiserver",
            f"--etcd-servers=http://{found.group(1)}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self.folder}/certs",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            f"--token-auth-file={tokens}",
        )
        certificate = self.folder / "certs" / "apiserver.crt"
        until("the server's certificate", certificate.is_file)
        self.context = ssl.create_default_context(cafile=str(certificate))
        until("the API server", lambda: self._alive(server) and self._ready())
        for user, token in (("admin", ADMIN), ("installer", INSTALLER)):
            (self.folder / f"{user}.kubeconfig").write_text(
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "current-context": "c",
                        "clusters": [
                            {"name": "c", "cluster": {"server": self.url, "certificate-authority": str(certificate)}}
                        ],
                        "users": [{"name": "c", "user": {"token": token}}],
                        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                    }
                )
            )
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.folder}/admin.kubeconfig",
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={key}",
            "--use-service-account-credentials",
            # Without it an autoscaler would look only every 15 s.
            "--horizontal-pod-autoscaler-sync-period=1s",
        )
        self.create(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}}
        )
        self.kubelet = threading.Thread(target=self._kubelet)
        self.kubelet.start()

    def _run(self, program, *flags):
        log = self.folder / f"{program}.log"
        with log.open("w") as out:
            process = subprocess.Popen([BIN / program, *flags], stdout=out, stderr=subprocess.STDOUT)
        process.log = log
        self.processes.append(process)
        return process

    def _log(self, process):
        self._alive(process)
        return process.log.read_text(errors="replace")

    @staticmethod
    def _alive(process):
        if process.poll() is not None:
            raise AssertionError(f"{process.args[0]} ended:\n{process.log.read_text(errors='replace')[-3000:]}")
        return True

    def _ready(self):
        try:
            return self.call("GET", "readyz") == "ok"
        except (ApiError, OSError):
            return False

    def stop(self):
        """Ends what was started, in reverse, and forgets all."""
        self.stopping.set()
        if self.kubelet:
            self.kubelet.join()
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)

    # The API.

    def call(self, method, path, body=None, content="application/json", token=ADMIN):
        """One request; JSON is read, other text is as it is."""
        request = urllib.request.Request(
            f"{self.url}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": content},
        )
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
                text = answer.read().decode()
                warnings = answer.headers.get_all("Warning") or []
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            try:
                said = json.loads(said).get("message", said)
            except ValueError:
                pass
            raise ApiError(error.code, said) from None
        self.warnings = warnings
        return json.loads(text) if text.startswith("{") else text

    @staticmethod
    def path(kind, namespace=None, name=None):
        prefix, plural, namespaced = KINDS[kind]
        path = f"{prefix}/namespaces/{namespace}/{plural}" if namespaced and namespace else f"{prefix}/{plural}"
        return f"{path}/{name}" if name else path

    def create(self, each, namespace=None, query="fieldValidation=Strict", **more):
        return self.call("POST", f"{self.path(each['kind'], namespace)}?{query}", each, **more)

    def get(self, kind, namespace, name):
        try:
            return self.call("GET", self.path(kind, namespace, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind, namespace=None, **labels):
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return self.call("GET", f"{self.path(kind, namespace)}?labelSelector={selector}")["items"]

    def pods(self, namespace, component):
        """Pods of a component that stay, by name."""
        selector = {"app.kubernetes.io/component": component}
        return {
            pod["metadata"]["name"]: pod
            for pod in self.list("Pod", namespace, **selector)
            if "deletionTimestamp" not in pod["metadata"]
        }

    def addresses(self, namespace, service):
        """Names of the pods that a service leads to."""
        slices = self.list("EndpointSlice", namespace, **{"kubernetes.io/service-name": service})
        endpoints = [endpoint for each in slices for endpoint in each["endpoints"] or []]
        return {endpoint["targetRef"]["name"] for endpoint in endpoints if endpoint["conditions"]["ready"]}

    def ready(self, namespace, component, count):
        """The pods of a component, when there are so many and all are ready."""
        found = self.pods(namespace, component)
        return len(found) == count and all(map(is_ready, found.values())) and found

    def namespace(self, name):
        """A namespace in which only pods of the strictest standard are let in; the installer may do all in it."""
        level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": level}})
        for role in ("admin", "custom"):
            self.create(
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "RoleBinding",
                    "metadata": {"name": role},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "installer"}],
                },
                name,
            )
        until(f"the account of {name}", lambda: self.get("ServiceAccount", name, "default"))
        until(f"the root of {name}", lambda: self.get("ConfigMap", name, "kube-root-ca.crt"))
        return name

    def contents(self, namespace):
        """All that lies in a namespace, of every kind that the server has, but events and what leases time."""
        found = set()
        for group in self._groups():
            for resource in self.call("GET", group).get("resources", []):
                if not resource["namespaced"] or "list" not in resource["verbs"] or resource["kind"] in ("Event", "Lease"):
                    continue
                items = self.call("GET", f"{group}/namespaces/{namespace}/{resource['name']}")["items"]
                found |= {f"{resource['kind']}/{item['metadata']['name']}" for item in items}
        return found

    def _groups(self):
        yield "api/v1"
        for group in self.call("GET", "apis")["groups"]:
            yield f"apis/{group['preferredVersion']['groupVersion']}"

    def crds(self, folder):
        """Makes custom resources known."""
        groups = set()
        for path in sorted(folder.glob("*.yaml")):
            (crd,) = load(path.read_text())
            self.create(crd, query="fieldValidation=Warn")
            groups.add(crd["spec"]["group"])
            name = crd["metadata"]["name"]
            until(
                name,
                lambda name=name: any(
                    each["type"] == "Established" and each["status"] == "True"
                    for each in self.get("CustomResourceDefinition", None, name)["status"].get("conditions") or []
                ),
            )
        self.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "custom"},
                "rules": [{"apiGroups": sorted(groups), "resources": ["*"], "verbs": ["*"]}],
            }
        )

    def helm(self, *args, user="installer", check=True):
        """Runs helm against this cluster."""
        command = [HELM, *map(str, args)]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / f"{user}.kubeconfig"),
        }
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done

    # The kubelet of paper.

    def _kubelet(self):
        while not self.stopping.wait(0.1):
            try:
                with self.pause:
                    for pod in self.list("Pod"):
                        self._pod(pod)
            except (ApiError, OSError):
                # Somebody else was faster, or the server is just ending: the next turn sees it.
                continue

    def _pod(self, pod):
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        path = self.path("Pod", namespace, name)
        if "deletionTimestamp" in pod["metadata"]:
            self.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}})
        elif not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            self.call("POST", f"{path}/binding", binding)
        else:
            done = pod["spec"]["restartPolicy"] == "Never"
            well = (namespace, name) not in self.sick and not done
            phase = self.outcome if done else "Running"
            if pod["status"].get("phase") == phase and is_ready(pod) == well:
                return
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            number = int(pod["metadata"]["uid"][:4], 16)
            status = {
                "phase": phase,
                "podIP": f"10.1.{number // 256}.{number % 254 + 1}",
                "podIPs": [{"ip": f"10.1.{number // 256}.{number % 254 + 1}"}],
                "conditions": [
                    {"type": kind, "status": "True" if well else "False", "lastTransitionTime": now}
                    for kind in ("Ready", "ContainersReady")
                ],
            }
            self.call("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")


def is_ready(pod):
    """Does its status say so?"""
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
