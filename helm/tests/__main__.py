"""Tests of the chart: `python3 helm/tests`; with `cluster` those in a real API server, which take minutes."""

import pathlib
import sys
import unittest

if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent
    sys.path.insert(0, str(here))
    patterns = {"": "*_test.py", "cluster": "*_cluster.py"}
    what = "".join(sys.argv[1:])
    if what not in patterns:
        sys.exit("usage: python3 helm/tests [cluster]")
    tests = unittest.defaultTestLoader.discover(str(here), pattern=patterns[what], top_level_dir=str(here))
    sys.exit(not unittest.TextTestRunner(verbosity=2 if what else 1).run(tests).wasSuccessful())
