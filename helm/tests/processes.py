"""The real programs as processes, with what they say read by a thread."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

from chart import ROOT

BIN = pathlib.Path(os.environ.get("TRANCHE_BIN", ROOT / "target" / "debug"))
ETCD = os.environ.get("TRANCHE_ETCD", str(ROOT / ".tools" / "bin" / "etcd"))
WRONG_CONFIG = 2
# Far more than is needed: what takes as long is stuck.
DEADLINE = 90


def until(what, check):
    """Asks until the answer is true; the answer."""
    end = time.monotonic() + DEADLINE
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {DEADLINE} s for: {what}")
        time.sleep(0.1)


class Process:
    """A process whose output is read, so that it never waits for its reader."""

    def __init__(self, command, settings):
        self.lines = []
        self.command = command
        self.process = subprocess.Popen(
            command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.lines.append(None)
            self.news.notify_all()

    def wait_for(self, pattern):
        """The first group of the first line that matches."""
        end = time.monotonic() + DEADLINE
        seen = 0
        with self.news:
            while True:
                for line in self.lines[seen:]:
                    seen += 1
                    if line is None:
                        raise AssertionError(f"{self.command} ended:\n{self.output()}")
                    found = re.search(pattern, line)
                    if found:
                        return found.group(1)
                if not self.news.wait(end - time.monotonic()):
                    raise AssertionError(f"{self.command} didn't say {pattern}:\n{self.output()}")

    def output(self):
        return "".join(line for line in self.lines if line)

    def end(self):
        """Asks it to end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        return code


def run(command, settings):
    """Runs it to its end: exit code and output."""
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return done.returncode, done.stdout + done.stderr
