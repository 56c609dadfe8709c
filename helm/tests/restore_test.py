"""Backup and restore as docs/operations.md tells it: a snapshot of etcd that is older than what was done since."""

import json
import pathlib
import shutil
import tempfile

from chart import Case
from processes import BIN, ETCD, Process, run, until

ETCDCTL, ETCDUTL = (str(pathlib.Path(ETCD).with_name(name)) for name in ("etcdctl", "etcdutl"))


class Restore(Case):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-restore-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.running = []

    def start(self, *command):
        process = Process(list(map(str, command)), {})
        self.running.append(process)
        self.addCleanup(process.end)
        return process

    def etcd(self, data):
        member = ("--data-dir", self.folder / data, "--name", "default")
        client = ("--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:0")
        process = self.start(ETCD, *member, *client, "--listen-peer-urls", "http://127.0.0.1:0")
        return process.wait_for(r'"serving client traffic insecurely.*"address":"([0-9.]+:[0-9]+)"')

    def coordinator(self, etcd):
        process = self.start(
            BIN / "tranche-coordinator",
            *("--listen", "127.0.0.1:0", "--store", f"etcd:http://{etcd}"),
            *("--objects", self.folder / "objects"),
        )
        self.url = f"http://{process.wait_for(r'^listening on ([0-9.]+:[0-9]+)')}"

    def worker(self):
        worker = self.start(
            BIN / "tranche-worker", "--coordinator", self.url, "--id", "w", "--allow-root", self.folder
        )
        worker.wait_for(r"^(attached)")

    def end(self):
        """Everything goes, as in a disaster: without a shutdown."""
        for process in self.running:
            process.process.kill()
        for process in self.running:
            process.end()
        self.running.clear()

    def tranche(self, *args, code=0):
        got, output = run([str(BIN / "tranche"), *map(str, args)], {"TRANCHE_COORDINATOR": self.url})
        self.assertEqual(code, got, output)
        return output

    def state(self, batch):
        return json.loads(self.get(batch))["state"].removeprefix("STATE_")

    def submit(self, name, *args, code=0):
        """A batch of twenty files. Its id."""
        source = self.folder / name
        source.mkdir()
        for number in range(20):
            (source / f"{name}-{number}").write_text(f"{name} {number}")
        library = self.folder / "library"
        self.tranche("submit", source, "--into", library, *args, code=code)
        batches = json.loads(self.tranche("--output", "json", "list"))
        newest = (batches["batches"] if isinstance(batches, dict) else batches)[0]
        return newest["name"].rsplit("/", 1)[1]

    def get(self, batch):
        return self.tranche("--output", "json", "get", batch)

    def etcdctl(self, etcd, *args):
        code, output = run([ETCDCTL, "--endpoints", f"http://{etcd}", *map(str, args)], {})
        self.assertEqual(0, code, output)
        return output

    def library(self):
        """What readers see: every file and its bytes."""
        top = self.folder / "library"
        return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}

    def test_what_a_snapshot_does_not_know(self):
        etcd = self.etcd("before")
        self.coordinator(etcd)
        self.worker()
        names = ("committed-since", "taken-back", "still-waiting", "lost")
        # Staged, and they wait for their approval: exit code 5.
        held = lambda name: self.submit(name, "--approve", "--wait", code=5)
        committed, taken_back, waiting, lost = map(held, names)
        # This one commits by itself, once there is a worker.
        self.running.pop().end()
        by_itself = self.submit("by-itself")
        snapshot = self.folder / "snapshot.db"
        self.etcdctl(etcd, "snapshot", "save", snapshot)

        # None of this is in the snapshot.
        self.worker()
        self.tranche("watch", by_itself)
        for batch in (committed, taken_back):
            self.tranche("commit", batch)
            self.tranche("watch", batch)
        unknown = held("begun-since")
        library = self.library()
        self.assertEqual(3 * 20 + 3, len(library))
        self.end()

        command = [ETCDUTL, "snapshot", "restore", str(snapshot), "--data-dir", str(self.folder / "after")]
        # Tokens of leases are made of etcd's revisions: none may come twice.
        code, output = run([*command, "--bump-revision", "1000000000", "--mark-compacted"], {})
        self.assertEqual(0, code, output)
        etcd = self.etcd("after")
        self.coordinator(etcd)
        self.assertEqual("IMPORTING", self.state(by_itself))
        self.worker()

        # It is staged once more, is what readers have seen, and ends.
        self.tranche("watch", by_itself)
        self.assertEqual("COMMITTED", self.state(by_itself))
        self.assertEqual(library, self.library())

        # Its file in the library says that it was committed, whatever its record says now.
        for batch in (committed, taken_back, waiting, lost):
            self.assertEqual("HELD", self.state(batch))
            report = self.folder / "library" / "_tranche" / f"{batch}.json"
            self.assertEqual(batch in (committed, taken_back), report.is_file())

        # Committed once more it ends, though what was staged for it is gone; its items are what readers have seen.
        self.tranche("commit", committed)
        self.tranche("watch", committed)
        self.assertEqual("COMMITTED", self.state(committed))
        self.assertEqual(20, json.loads(self.get(committed))["counters"]["committed"])
        self.assertEqual(library, self.library())

        # Taking it back makes an end of the record, too, and touches nothing.
        self.tranche("cancel", taken_back, "--wait")
        self.assertEqual("ROLLED_BACK", self.state(taken_back))
        self.tranche("delete", taken_back, "--yes")
        self.assertEqual(library, self.library())

        # What was staged is lost and was never committed: nothing can end it. Its records go by hand.
        staging = self.folder / ".library.tranche" / "staging"
        shutil.rmtree(staging / lost)
        self.tranche("commit", lost)
        until("its trouble", lambda: "No such file" in json.loads(self.get(lost))["statusMessage"])
        self.assertEqual("COMMITTING", self.state(lost))
        self.assertEqual(library, self.library())
        coordinator, worker = self.running[-2:]
        self.assertEqual(0, coordinator.end())
        keys = self.etcdctl(etcd, "get", "--prefix", "/tranche/v1/", "--keys-only").split()
        of_it = [key for key in keys if key.endswith(f"/default/{lost}") or f"/default/{lost}/" in key]
        self.assertGreater(len(of_it), 3)
        for key in of_it:
            self.etcdctl(etcd, "del", key)
        worker.end()
        self.coordinator(etcd)
        self.worker()
        self.assertIn("not found", self.tranche("get", lost, code=1).lower().replace("_", " "))
        self.assertEqual(library, self.library())

        # What waited goes on as if nothing had been.
        self.tranche("commit", waiting)
        self.tranche("watch", waiting)
        self.assertEqual(len(library) + 21, len(self.library()))

        # What began since isn't known any more; only its staging folder is left, for hands.
        self.tranche("get", unknown, code=1)
        self.assertTrue((staging / unknown).is_dir())
        self.assertFalse((staging / committed).exists())
        self.assertNotIn("begun-since-1", self.library())
