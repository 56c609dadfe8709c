"""The production example as processes: TLS everywhere, etcd too, identities as docs/deploy.md has them made."""

import hashlib
import http.client
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request

from chart import ROOT, Case, find, pods, put, values_of
from process_test import Release
from processes import ETCD, Process, run


def identities(hashes):
    """The identities file of docs/deploy.md, with the hashes of these tokens, and the names of this release."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    (file,) = re.findall(r"^cat > identities.toml <<EOF\n(.*?)^EOF$", text, re.MULTILINE | re.DOTALL)
    file = re.sub(r"\$\(hash (\w+)\)", lambda match: hashes[match.group(1)], file)
    return file.replace("tranche.tranche.svc", "t-tranche.media.svc")


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA, and certificates of it, in a folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir()
        self.key, self.crt = self.folder / "ca.key", self.folder / "ca.crt"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        more = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl("req", "-x509", "-new", "-key", self.key, "-subj", "/CN=test", "-days", "1", "-out", self.crt, *more)

    def issue(self, name, names):
        """A secret with ca.crt, tls.crt and tls.key, as cert-manager makes them."""
        key, request, crt, extra = (self.folder / f"{name}.{end}" for end in ("key", "csr", "crt", "ext"))
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{key}.sec1")
        openssl("pkcs8", "-topk8", "-nocrypt", "-in", f"{key}.sec1", "-out", key)
        openssl("req", "-new", "-key", key, "-subj", "/", "-out", request)
        extra.write_text(
            f"subjectAltName=critical,{','.join(names)}\nextendedKeyUsage=serverAuth,clientAuth\n"
            "keyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n"
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.crt, "-CAkey", self.key, "-CAcreateserial"),
            *("-days", "1", "-extfile", extra, "-out", crt),
        )
        return {"ca.crt": self.crt.read_text(), "tls.crt": crt.read_text(), "tls.key": key.read_text()}


class Secure(Case):
    def setUp(self):
        self.started = []
        self.ops = []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-secure-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, command, settings):
        process = Process(command, settings)
        self.started.append(process)
        self.addCleanup(process.end)
        return process

    def etcd(self, authority):
        """One that speaks TLS only, and only with clients of its CA."""
        for key, text in authority.issue("etcd", ["IP:127.0.0.1"]).items():
            (self.folder / f"etcd-{key}").write_text(text)
        at = lambda key: str(self.folder / f"etcd-{key}")
        process = self.start(
            [
                *(ETCD, "--data-dir", str(self.folder / "etcd"), "--listen-peer-urls", "http://127.0.0.1:0"),
                *("--listen-client-urls", "https://127.0.0.1:0", "--advertise-client-urls", "https://127.0.0.1:0"),
                *("--cert-file", at("tls.crt"), "--key-file", at("tls.key")),
                *("--client-cert-auth", "--trusted-ca-file", at("ca.crt")),
            ],
            {},
        )
        return process.wait_for(r'"serving client traffic securely.*"address":"([0-9.]+:[0-9]+)"')

    def coordinator(self, release, number, etcd):
        command, settings = release.pod("StatefulSet", "t-tranche", number)
        host = f"t-tranche-{number}.t-tranche-peers.media.svc.cluster.local"
        self.assertEqual(f"https://{host}:7070", settings.pop("TRANCHE_COORDINATOR_ADVERTISE"))
        settings["TRANCHE_COORDINATOR_STORE"] = f"etcd:https://{etcd}"
        # A free port of this machine.
        settings["TRANCHE_COORDINATOR_LISTEN"] = "127.0.0.1:0"
        settings["TRANCHE_COORDINATOR_OPS_LISTEN"] = "127.0.0.1:0"
        process = self.start(command, settings)
        self.ops.append(process.wait_for(r"^ops port on ([0-9.]+:[0-9]+)"))
        return f"https://{process.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"

    def test_production_imports_the_batch_of_helm_test(self):
        values = put(values_of("production"), "ops.clientCa.secret", "tranche-client-ca")
        values = put(values, "serviceMonitor.certificate.secret", "prometheus")
        objects = Release(values, self.folder).objects
        dns, names = (find(objects, "Certificate", name)["spec"]["dnsNames"] for name in ("t-tranche", "t-tranche-worker-ops"))
        ours, etcds, others = (Authority(self.folder / name) for name in ("ours", "etcds", "others"))
        tokens = {name: os.urandom(32).hex() for name in ("worker", "test", "importer", "operator")}
        hashes = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in tokens.items()}
        secrets = {
            # In the place of the pods' names here: the address.
            "t-tranche-worker-ops-tls": ours.issue("ops", [f"DNS:{name}" for name in names] + ["IP:127.0.0.1"]),
            "t-tranche-tls": ours.issue("server", [f"DNS:{name}" for name in dns] + ["IP:127.0.0.1"]),
            "tranche-client-ca": {"ca.crt": ours.crt.read_text()},
            "tranche-identities": {"identities.toml": identities(hashes)},
            "tranche-etcd-client": etcds.issue("client", ["DNS:tranche"]) | {"ca.crt": etcds.crt.read_text()},
            "tranche-worker": {"token": tokens["worker"]},
            "tranche-test": {"token": tokens["test"]},
        }
        release = Release(values, self.folder / "pods", secrets)
        etcd = self.etcd(etcds)
        # Two, which call each other: a client may ask the one that doesn't own its batch.
        urls = [self.coordinator(release, number, etcd) for number in range(2)]
        # Probes bring no certificate and no token, and come by TLS all the same; scrapers bring one.
        (spec,) = [spec for pod, _, spec in pods(release.objects) if pod == "StatefulSet/t-tranche"]
        probes = [value["httpGet"] for key, value in spec["containers"][0].items() if key.endswith("Probe")]
        self.assertEqual({"HTTPS"}, {probe["scheme"] for probe in probes})
        context, scraper = (ssl.create_default_context(cafile=ours.crt) for _ in range(2))
        ours.issue("scraper", ["DNS:prometheus"])
        scraper.load_cert_chain(ours.folder / "scraper.crt", ours.folder / "scraper.key")
        for address in self.ops:
            for path in ["/metrics", *(probe["path"] for probe in probes)]:
                by = scraper if path == "/metrics" else context
                with urllib.request.urlopen(f"https://{address}{path}", context=by, timeout=30) as answer:
                    self.assertEqual(200, answer.status)
            with self.assertRaisesRegex(urllib.error.HTTPError, "403"):
                urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=30)
            with self.assertRaises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(f"http://{address}/metrics", timeout=30)

        command, settings = release.pod("Deployment", "t-tranche-worker-check")
        self.assertRegex(settings["TRANCHE_WORKER_COORDINATOR"], "^https://t-tranche.media.svc")
        settings["TRANCHE_WORKER_COORDINATOR"] = urls[0]
        self.assertNotIn("TRANCHE_WORKER_INSECURE", settings)
        settings["TRANCHE_WORKER_OPS_LISTEN"] = "127.0.0.1:0"
        worker = self.start(command, settings)
        worker.wait_for(r"^(attached)")
        # By the name that Prometheus is told to ask for.
        (monitor,) = [each for each in release.objects if each["kind"] == "PodMonitor" and each["metadata"]["name"].endswith("-check")]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        self.assertEqual("https", endpoint["scheme"])
        self.assertEqual({"name": "t-tranche-worker-ops-tls", "key": "ca.crt"}, endpoint["tlsConfig"]["ca"]["secret"])
        self.assertEqual({"name": "prometheus", "key": "tls.key"}, endpoint["tlsConfig"]["keySecret"])
        host, port = worker.wait_for(r"^ops port on ([0-9.]+:[0-9]+)").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as plain:
            with scraper.wrap_socket(plain, server_hostname=endpoint["tlsConfig"]["serverName"]) as secure:
                secure.sendall(b"GET /metrics HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n")
                self.assertIn(b" 200 ", secure.recv(64))
        (spec,) = [spec for pod, _, spec in pods(release.objects) if pod == "Deployment/t-tranche-worker-check"]
        probes = [value["httpGet"] for key, value in spec["containers"][0].items() if key.endswith("Probe")]
        self.assertEqual({("HTTPS", "/livez"), ("HTTPS", "/readyz")}, {(probe["scheme"], probe["path"]) for probe in probes})
        for probe in probes:
            with urllib.request.urlopen(f"https://{host}:{port}{probe['path']}", context=context, timeout=30) as answer:
                self.assertEqual(200, answer.status)
        with self.assertRaises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30)

        command, settings = release.pod("Pod", "t-tranche-test")
        for url in urls:
            settings["TRANCHE_COORDINATOR"] = url
            code, output = run(command, settings)
            self.assertEqual(0, code, output)
            self.assertIn("COMMITTED", output)
        # Workers and coordinators are for operators' eyes.
        (self.folder / "operator").write_text(tokens["operator"])
        asks = [command[0], "--output", "json", "coordinators"]
        code, output = run(asks, settings | {"TRANCHE_TOKEN_FILE": str(self.folder / "operator")})
        self.assertEqual(0, code, output)
        for url in urls:
            self.assertIn(url, output)
        code, output = run(asks, settings)
        self.assertEqual(1, code, output)
        # Who isn't known, or comes to somebody whom it doesn't trust, gets nothing.
        code, output = run(command, {key: value for key, value in settings.items() if key != "TRANCHE_TOKEN_FILE"})
        self.assertEqual(1, code, output)
        wrong = self.folder / "wrong.crt"
        wrong.write_text(others.crt.read_text())
        code, output = run(command, settings | {"TRANCHE_TLS_CA": str(wrong)})
        self.assertEqual(1, code, output)
        for process in self.started:
            process.end()
            for token in tokens.values():
                self.assertNotIn(token, process.output())
