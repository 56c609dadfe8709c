"""Servers and load programs that never outlive the run, and what the kernel says of their cost."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# How long a server may take until it answers: most are there within a second.
READY_WITHIN_S = 60

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A server or a load program didn't do what it must; the text says which and how."""


@dataclass(frozen=True)
class Cost:
    """What a process and those that it has waited for have used."""

    cpu_s: float
    # The largest process of them.
    peak_memory_bytes: int


class Process:
    """A child with a log of its own, ended by its own id."""

    def __init__(self, name, command, folder, *, user=None, end_with=signal.SIGKILL, output=None, env=None):
        self.name = name
        self.end_with = end_with
        self.log = Path(folder) / f"{name}.log"
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output or log,
                stderr=log,
                env={**os.environ, **(env or {})},
                # Ctrl-C is for the run, which then ends its children in order.
                start_new_session=True,
                # The kernel ends it should this program be killed. (Set after the change of user, which would
                # clear it.)
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, end_with),
                **({"user": user, "group": user, "extra_groups": []} if user else {}),
            )

    def wait_for(self, answers):
        """Waits until `answers()` is true."""
        limit = time.monotonic() + READY_WITHIN_S
        while not answers():
            if self.child.poll() is not None:
                raise self.failure(f"ended with {self.child.returncode} before it was ready")
            if time.monotonic() > limit:
                raise self.failure(f"was not ready within {READY_WITHIN_S} s")
            time.sleep(0.02)

    def end(self):
        """Ends it, if it runs still; returns its cost."""
        if self.child.returncode is None:
            self.child.send_signal(self.end_with)
        return self.reap()

    def reap(self):
        """Waits for its end; returns its cost."""
        if self.child.returncode is not None:
            return None
        _, status, usage = os.wait4(self.child.pid, 0)
        self.child.returncode = os.waitstatus_to_exitcode(status)
        return Cost(cpu_s=usage.ru_utime + usage.ru_stime, peak_memory_bytes=usage.ru_maxrss * 1024)

    def failure(self, what):
        tail = self.log.read_bytes()[-2000:].decode(errors="replace")
        return Failed(f"{self.name} {what}\n{tail}".rstrip())


def load(name, command, folder, limit_s, env=None):
    """Runs a load program to its end; returns what it printed and its cost."""
    output = Path(folder) / f"{name}.out"
    with open(output, "wb") as out:
        process = Process(name, command, folder, output=out, env=env, end_with=signal.SIGTERM)

    # Its session is a group of its own, so its own children go with it.
    def late(*_):
        os.killpg(process.child.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        cost = process.reap()
    except BaseException:
        os.killpg(process.child.pid, signal.SIGTERM)
        process.reap()
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if process.child.returncode == -signal.SIGKILL:
        raise process.failure(f"was not done within {limit_s} s")
    if process.child.returncode != 0:
        raise process.failure(f"ended with {process.child.returncode}")
    return output.read_text(), cost


def free_port():
    """A port of loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    """Whether somebody listens on that port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
