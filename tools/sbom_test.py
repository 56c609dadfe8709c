"""The bills of materials: valid by CycloneDX's own schema, and true of the programs that were built."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("TRANCHE_BIN", ROOT / "target" / "debug"))
SCHEMAS = ROOT / ".tools" / "cyclonedx"
sys.path.insert(0, str(ROOT / ".tools" / "kubernetes" / "python"))

import jsonschema  # noqa: E402
import referencing  # noqa: E402

PROGRAMS = ("tranche", "tranche-coordinator", "tranche-worker")
# Where the standard library's and the crates' own lines are named in a program, for what panics there.
CRATE = re.compile(rb"/registry/src/[^/]+/([A-Za-z0-9_-]+)-(\d+\.\d+\.\d+[A-Za-z0-9.+-]*)/")


def made(folder):
    subprocess.run([ROOT / "tools" / "sbom", BIN, folder], check=True)
    return {name: json.loads((folder / f"{name}.cdx.json").read_text()) for name in PROGRAMS}


class Sbom(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-sbom-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.bills = made(cls.folder / "once")

    def parts(self, program, scope):
        parts = self.bills[program]["components"]
        return {(part["name"], part.get("version")): part for part in parts if part["scope"] == scope}

    def test_each_is_valid_by_its_schema(self):
        schemas = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.schema.json"))]
        resources = [(schema["$id"], referencing.Resource.from_contents(schema)) for schema in schemas]
        registry = referencing.Registry().with_resources(resources)
        schema = next(schema for schema in schemas if schema["$id"].endswith("bom-1.6.schema.json"))
        check = jsonschema.Draft7Validator(schema, registry=registry, format_checker=jsonschema.FormatChecker())
        for name, bill in self.bills.items():
            self.assertEqual([], [error.message for error in check.iter_errors(bill)], name)
        wrong = self.bills["tranche"] | {"components": [{"name": "without a type"}]}
        self.assertTrue(list(check.iter_errors(wrong)), "the schema refuses what is wrong")

    def test_each_names_its_program(self):
        for name, bill in self.bills.items():
            subject = bill["metadata"]["component"]
            self.assertEqual(name, subject["name"])
            sha256 = hashlib.sha256((BIN / name).read_bytes()).hexdigest()
            self.assertEqual([{"alg": "SHA-256", "content": sha256}], subject["hashes"])
            facts = {one["name"]: one["value"] for one in subject.get("properties", [])}
            self.assertRegex(facts["tranche:target"], "^[a-z0-9_]+-[a-z-]+")
            version = subprocess.run([BIN / name, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
            self.assertEqual(f"{name} {subject['version']}", version.strip())
        worker = self.bills["tranche-worker"]["metadata"]["component"]
        self.assertIn({"name": "tranche:features", "value": "default,otlp"}, worker["properties"])

    def test_what_is_found_in_a_program_is_in_its_bill(self):
        for name in PROGRAMS:
            found = {(crate.decode(), version.decode()) for crate, version in CRATE.findall((BIN / name).read_bytes())}
            self.assertGreater(len(found), 20, "the programs name where their crates may panic")
            self.assertEqual(set(), found - set(self.parts(name, "required")), name)

    def test_what_only_built_it_is_not_in_the_program(self):
        for name in PROGRAMS:
            required, excluded = (self.parts(name, scope) for scope in ("required", "excluded"))
            self.assertEqual(set(), set(required) & set(excluded))
            self.assertIn("prost-derive", {crate for crate, _ in excluded})
            self.assertIn("prost", {crate for crate, _ in required})
            self.assertNotIn("tempfile", {crate for crate, _ in self.parts("tranche-worker", "required")}, "of tests only")

    def test_each_program_has_its_own_parts(self):
        crates = {name: {crate for crate, _ in self.parts(name, "required")} for name in PROGRAMS}
        self.assertIn("etcd-client", crates["tranche-coordinator"])
        self.assertNotIn("etcd-client", crates["tranche-worker"])
        self.assertIn("image", crates["tranche-worker"])
        self.assertNotIn("image", crates["tranche-coordinator"])
        self.assertIn("indicatif", crates["tranche"])

    def test_every_crate_of_the_registry_can_be_looked_up(self):
        locked = (ROOT / "Cargo.lock").read_text()
        for name in PROGRAMS:
            for part in self.bills[name]["components"]:
                if part["bom-ref"].startswith("pkg:cargo/tranche-"):
                    self.assertNotIn("purl", part, "ours are in no registry")
                    continue
                self.assertTrue(part["hashes"][0]["content"])
                if part["bom-ref"].startswith("pkg:cargo/"):
                    self.assertEqual(f"pkg:cargo/{part['name']}@{part['version']}", part["purl"])
                    self.assertIn(f'checksum = "{part["hashes"][0]["content"]}"', locked)
                    self.assertTrue(part["licenses"][0]["expression"])
            self.assertIn("libc.so.6", {part["name"] for part in self.bills[name]["components"]})

    def test_dependencies_lead_from_the_program_to_all_its_parts(self):
        for name, bill in self.bills.items():
            on = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
            seen, left = set(), [bill["metadata"]["component"]["bom-ref"]]
            while left:
                seen.add(left[-1])
                left += [ref for ref in on.get(left.pop(), []) if ref not in seen]
            self.assertEqual({part["bom-ref"] for part in bill["components"]}, seen - {bill["metadata"]["component"]["bom-ref"]}, name)

    def test_the_same_programs_give_the_same_bills(self):
        made(self.folder / "again")
        for name in PROGRAMS:
            once, again = (self.folder / folder / f"{name}.cdx.json" for folder in ("once", "again"))
            self.assertEqual(once.read_bytes(), again.read_bytes())

    def test_programs_that_are_missing_are_told(self):
        told = subprocess.run([ROOT / "tools" / "sbom", "/nowhere", self.folder / "x"], stderr=subprocess.PIPE, text=True)
        self.assertNotEqual(0, told.returncode)
        self.assertIn("build the programs first: /nowhere/tranche", told.stderr)


if __name__ == "__main__":
    unittest.main()
