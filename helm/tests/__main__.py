"""All tests of the chart: `python3 helm/tests`."""

import pathlib
import sys
import unittest

if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent
    sys.path.insert(0, str(here))
    tests = unittest.defaultTestLoader.discover(str(here), pattern="*_test.py", top_level_dir=str(here))
    sys.exit(not unittest.TextTestRunner(verbosity=1).run(tests).wasSuccessful())
