"""Releases in a real API server with real controllers: `make test-k8s`. See cluster.py for what isn't real."""

import pathlib
import tempfile
import unittest

from chart import CHART, EXAMPLES, KUBERNETES, NAMES, Case, label, put, render, values_of, yaml
from cluster import INSTALLER, ApiError, Cluster, is_ready
from processes import until


def setUpModule():
    global cluster
    cluster = Cluster()
    unittest.addModuleCleanup(cluster.stop)
    cluster.crds(KUBERNETES / "crds")


class Release(Case):
    """Each test has a namespace, and a release `t` in it."""

    def setUp(self):
        self.space = cluster.namespace(self.id().rsplit(".", 1)[1].replace("_", "-")[:60].removeprefix("test-").strip("-"))
        self.before = cluster.contents(self.space)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def helm(self, verb, *args, values=None, **more):
        command = [verb, "--namespace", self.space, "t"]
        if verb in ("install", "upgrade"):
            command.append(CHART)
        if values is not None:
            path = pathlib.Path(self.folder.name) / "values.yaml"
            path.write_text(yaml.safe_dump(values))
            command += ["--values", path]
        return cluster.helm(*command, *args, **more)

    def wait(self, component, count):
        return until(f"{count} ready pods {component}", lambda: cluster.ready(self.space, component, count))

    def images(self):
        return {
            name: pod["spec"]["containers"][0]["image"].rsplit(":", 1)[1]
            for name, pod in cluster.pods(self.space, "coordinator").items()
        }

    def account(self):
        """Makes the account without which not even a dry run lets a pod in."""
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "t-tranche"}}
        cluster.create(account, self.space)

    def set_of(self):
        return cluster.get("StatefulSet", self.space, "t-tranche")

    def test_the_server_takes_every_object_of_every_example(self):
        """Strictly: no unknown field, no field twice, and no warning, such as of a deprecated version."""
        self.account()
        for name in NAMES:
            for each in render(values_of(name), namespace=self.space):
                if each["kind"] == "ServiceAccount":
                    each["metadata"]["name"] = "another"
                with self.subTest(name, object=label(each)):
                    cluster.create(each, self.space, "dryRun=All&fieldValidation=Strict", token=INSTALLER)
                    self.assertEqual([], cluster.warnings)

    def test_the_server_refuses_what_is_wrong(self):
        """Else the test above could say nothing."""
        self.account()
        for spoil, code, message in (
            (lambda: pod["spec"].update(nonsense=1), 400, 'unknown field "spec.nonsense"'),
            (lambda: pod["spec"]["containers"][0]["securityContext"].pop("capabilities"), 403, "violates PodSecurity"),
            (lambda: pod["spec"].update(terminationGracePeriodSeconds="x"), 400, "terminationGracePeriodSeconds"),
        ):
            (pod,) = [each for each in render(values_of("trial"), namespace=self.space) if each["kind"] == "Pod"]
            spoil()
            with self.assertRaises(ApiError) as refused:
                cluster.create(pod, self.space, "dryRun=All&fieldValidation=Strict", token=INSTALLER)
            self.assertEqual(code, refused.exception.code)
            self.assertIn(message, str(refused.exception))

    def test_install_production_and_uninstall(self):
        self.helm("install", values=values_of("production"))
        coordinators = self.wait("coordinator", 2)
        self.assertEqual({"t-tranche-0", "t-tranche-1"}, set(coordinators))
        self.wait("worker-pictures", 4)
        self.wait("worker-check", 1)

        for pod in coordinators.values():
            spec = pod["spec"]
            self.assertEqual("t-tranche", spec["serviceAccountName"])
            # The admission of accounts adds none.
            self.assertEqual([], [v for v in spec["volumes"] if v["name"].startswith("kube-api-access")])
            self.assertEqual([], [e for e in spec["containers"][0]["env"] if "SERVICE_HOST" in e["name"]])
            self.assertEqual(20, spec["terminationGracePeriodSeconds"])
            self.assertEqual("t-tranche-peers", spec["subdomain"])
            self.assertEqual(pod["metadata"]["name"], spec["hostname"])

        # One coordinator may go, the second may not.
        def budget():
            status = cluster.get("PodDisruptionBudget", self.space, "t-tranche")["status"]
            return status.get("expectedPods") == 2 and status.get("disruptionsAllowed") == 1

        until("the budget", budget)
        with cluster.pause:
            self.evict("t-tranche-0")
            cluster.sick = {(self.space, "t-tranche-0")}
            with self.assertRaises(ApiError) as refused:
                self.evict("t-tranche-1")
            self.assertEqual(429, refused.exception.code)

        # One that isn't ready is no address for clients, but one for the others.
        addresses = lambda service: cluster.addresses(self.space, service)
        until("one for clients", lambda: addresses("t-tranche") == {"t-tranche-1"})
        until("both for peers", lambda: addresses("t-tranche-peers") == {"t-tranche-0", "t-tranche-1"})
        cluster.sick = set()
        self.wait("coordinator", 2)
        until("both for clients", lambda: addresses("t-tranche") == {"t-tranche-0", "t-tranche-1"})

        said = self.helm("uninstall", "--wait").stdout
        self.assertIn("[PersistentVolumeClaim] t-tranche-objects", said)
        self.leaves("PersistentVolumeClaim/t-tranche-objects")

    def evict(self, name):
        path = f"{cluster.path('Pod', self.space, name)}/eviction"
        cluster.call("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}})

    def leaves(self, *kept):
        until(
            f"only {kept} left of it",
            lambda: cluster.contents(self.space) - self.before == set(kept),
        )

    def test_the_account_may_do_nothing(self):
        self.helm("install", values=values_of("trial"))
        for verb, group, resource in (
            ("get", "", "secrets"),
            ("list", "", "pods"),
            ("create", "", "pods"),
            ("get", "", "configmaps"),
            ("patch", "apps", "deployments"),
        ):
            review = cluster.create(
                {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SubjectAccessReview",
                    "spec": {
                        "user": f"system:serviceaccount:{self.space}:t-tranche",
                        "groups": ["system:serviceaccounts", "system:authenticated"],
                        "resourceAttributes": {
                            "namespace": self.space,
                            "verb": verb,
                            "group": group,
                            "resource": resource,
                        },
                    },
                }
            )
            self.assertFalse(review["status"]["allowed"], f"{verb} {resource}")

    def test_trial_leaves_nothing(self):
        self.helm("install", values=values_of("trial"))
        self.wait("coordinator", 1)
        self.wait("etcd", 1)
        self.wait("worker-trial", 1 + 1)
        until("etcd's claim", lambda: cluster.get("PersistentVolumeClaim", self.space, "data-t-tranche-etcd-0"))
        self.helm("uninstall", "--wait")
        self.leaves()

    def test_helm_test_says_how_its_pod_ended(self):
        self.helm("install", values=values_of("trial"))
        self.assertIn("Succeeded", self.helm("test").stdout)
        cluster.outcome = "Failed"
        try:
            failed = self.helm("test", check=False)
        finally:
            cluster.outcome = "Succeeded"
        self.assertNotEqual(0, failed.returncode)
        self.helm("uninstall", "--wait")

    def test_upgrade_has_two_versions_side_by_side_and_rollback_goes_back(self):
        values = put(values_of("production"), "coordinator.update.minReadySeconds", 0)
        old = put(values, "image.tag", "1.0.0")
        self.helm("install", values=old)
        self.wait("coordinator", 2)
        first = self.set_of()["spec"]

        # A first one alone.
        new = put(values, "image.tag", "1.1.0")
        self.helm("upgrade", values=put(new, "coordinator.update.partition", 1))
        until("one of each", lambda: self.images() == {"t-tranche-0": "1.0.0", "t-tranche-1": "1.1.0"})
        self.wait("coordinator", 2)

        # One that doesn't come up stops it: the other goes on as it is.
        cluster.sick = {(self.space, "t-tranche-1")}
        self.helm("upgrade", values=put(values, "image.tag", "bad"))
        until("the first is new", lambda: self.images().get("t-tranche-1") == "bad")
        until(
            "the controller saw it",
            lambda: self.set_of()["status"]["observedGeneration"] == self.set_of()["metadata"]["generation"]
            and self.set_of()["status"].get("readyReplicas") == 1,
        )
        self.assertEqual("1.0.0", self.images()["t-tranche-0"])
        self.assertTrue(is_ready(cluster.pods(self.space, "coordinator")["t-tranche-0"]))
        cluster.sick = set()

        # To the first revision; pods of the bad one are replaced, too.
        self.helm("rollback", "1")
        until("all old", lambda: set(self.images().values()) == {"1.0.0"} and len(self.images()) == 2)
        self.wait("coordinator", 2)
        self.assertEqual(first, self.set_of()["spec"])

        # And on again, without ever being without a ready one.
        self.helm("upgrade", values=new)
        least = 2

        def through():
            nonlocal least
            pods = cluster.pods(self.space, "coordinator")
            least = min(least, sum(map(is_ready, pods.values())))
            return set(self.images().values()) == {"1.1.0"} and len(pods) == 2 and all(map(is_ready, pods.values()))

        until("all new", through)
        self.assertGreaterEqual(least, 1)
        self.helm("uninstall", "--wait")
        self.leaves("PersistentVolumeClaim/t-tranche-objects")

    def test_pools_come_change_and_go(self):
        values = values_of("trial")
        self.helm("install", values=values)
        self.wait("worker-trial", 2)
        more = put(values, "workerPools.second", {"handlers": ["noop"], "replicas": 3})
        self.helm("upgrade", values=put(more, "workerPools.trial.replicas", 1))
        self.wait("worker-second", 3)
        self.wait("worker-trial", 1)
        # What only the file says makes new pods, too.
        before = set(cluster.pods(self.space, "worker-trial"))
        self.helm("upgrade", values=put(put(more, "workerPools.trial.replicas", 1), "workerPools.trial.prefetch", 5))
        until("new pods", lambda: not before & set(cluster.pods(self.space, "worker-trial")))
        self.helm("upgrade", values=values)
        until("no second pool", lambda: not cluster.pods(self.space, "worker-second"))
        self.helm("uninstall", "--wait")
        self.leaves()

    def test_pools_of_all_kinds(self):
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "tranche-objects"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        cluster.create(claim, self.space)
        refused = self.helm("install", values=values_of("pools"), check=False)
        self.assertIn("tranche-objects is ReadWriteOnce, and 3 coordinators write to it", refused.stderr)
        self.assertEqual(self.before | {"PersistentVolumeClaim/tranche-objects"}, cluster.contents(self.space))

        claim["metadata"]["name"] = "shared"
        claim["spec"]["accessModes"] = ["ReadWriteMany"]
        cluster.create(claim, self.space)
        self.helm("install", values=put(values_of("pools"), "objects.existingClaim", "shared"))
        self.wait("coordinator", 3)
        # Nobody says how many: one, until the autoscaler's metric is there.
        self.wait("worker-pictures", 1)
        self.assertEqual({}, cluster.pods(self.space, "worker-check"))

        def conditions():
            scaler = cluster.get("HorizontalPodAutoscaler", self.space, "t-tranche-worker-pictures")
            return {c["type"]: c["status"] for c in scaler.get("status", {}).get("conditions", [])}

        # It found the Deployment and its scale; there is no adapter for metrics here.
        until("the autoscaler", lambda: conditions().get("AbleToScale") == "True")
        # An upgrade doesn't take back what was scaled.
        cluster.call(
            "PATCH",
            f"{cluster.path('Deployment', self.space, 't-tranche-worker-pictures')}/scale",
            {"spec": {"replicas": 3}},
            "application/merge-patch+json",
        )
        self.wait("worker-pictures", 3)
        self.helm("upgrade", values=put(put(values_of("pools"), "objects.existingClaim", "shared"), "image.tag", "2"))
        self.wait("worker-pictures", 3)
        self.helm("uninstall", "--wait")
        self.leaves("PersistentVolumeClaim/tranche-objects", "PersistentVolumeClaim/shared")

    def test_two_releases_in_one_namespace(self):
        for name in ("one", "two"):
            cluster.helm("install", "--namespace", self.space, name, CHART, "--values", EXAMPLES / "trial.yaml")
        self.wait("coordinator", 2)
        for name in ("one", "two"):
            until(name, lambda name=name: cluster.addresses(self.space, f"{name}-tranche") == {f"{name}-tranche-0"})
        for name in ("one", "two"):
            cluster.helm("uninstall", "--namespace", self.space, name, "--wait")
        self.leaves()
