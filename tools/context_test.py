"""What .dockerignore lets through is enough to build: the Dockerfile's first stage, which compiles it, runs in no test."""

import fnmatch
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDED = re.compile(r'include(?:_str|_bytes)?!\(\s*"([^"]+)"')


def admits(rules, path):
    """Whether a file of the tree is in the context: the last rule that matches it, or a folder above it, wins."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    admitted = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        names = [name for each in above for name in (each, each.rsplit("/", 1)[-1])] if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            admitted = rule.startswith("!")
    return admitted


class Context(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.context = pathlib.Path(tempfile.mkdtemp(prefix="tranche-context-"))
        cls.addClassCleanup(shutil.rmtree, cls.context)
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        rules = [line for line in lines if line and not line.startswith("#")]
        # What isn't committed yet, too.
        listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        tree = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        for path in filter(None, tree.split("\0")):
            if admits(rules, path) and (ROOT / path).is_file():
                (cls.context / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, cls.context / path)

    def test_every_member_of_the_workspace_is_there(self):
        command = ("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1")
        told = subprocess.run(command, cwd=self.context, capture_output=True, text=True)
        self.assertEqual(0, told.returncode, told.stderr)
        packages = {package["name"] for package in json.loads(told.stdout)["packages"]}
        self.assertLessEqual({"tranche-cli", "tranche-coordinator", "tranche-worker"}, packages)

    def test_the_files_that_the_sources_take_in_are_there(self):
        for source in self.context.rglob("*.rs"):
            # Tests aren't built there.
            if "tests" in source.parts or source.name == "tests.rs":
                continue
            for path in INCLUDED.findall(source.read_text().split("#[cfg(test)]\nmod ")[0]):
                self.assertTrue((source.parent / path).is_file(), f"{source.relative_to(self.context)} takes in {path}")

    def test_the_dockerfiles_tools_are_there_and_what_they_call(self):
        for tool in ("image", "sbom"):
            self.assertTrue((self.context / "tools" / tool).is_file(), tool)

    def test_nothing_else_goes_to_the_build(self):
        self.assertFalse((self.context / "docs").exists())
        self.assertFalse((self.context / "helm").exists())
        self.assertEqual({"image", "sbom"}, {path.name for path in (self.context / "tools").iterdir()})


if __name__ == "__main__":
    unittest.main()
