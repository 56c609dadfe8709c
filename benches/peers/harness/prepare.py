"""What the run needs: says what is missing and how to get it, and builds what is the project's own."""

import os
import shutil
import subprocess
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent
ROOT = PEERS.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()
# Build output of this bench: inside the project's target folder, which isn't in version control.
OWN = TARGET / "peers"
TOOLS = OWN / "tools"
BULLMQ = OWN / "bullmq"

NATS_VERSION = "2.15.2"
# The crates that `tranche bench` runs.
TRANCHE = ("tranche-cli", "tranche-coordinator", "tranche-worker")


class Missing(Exception):
    """What is missing, one line for each with how to get it."""


# program: for which peers, and how to get it. In Debian 12, unless something else is said.
NEEDS = {
    "cargo": (None, "Rust 1.95 or newer, by rustup"),
    "etcd": (None, "tools/fetch etcd (or TRANCHE_ETCD)"),
    "redis-server": (("redis-streams", "bullmq"), "apt-get install redis-server"),
    "postgres": (("postgres",), "apt-get install postgresql"),
    "initdb": (("postgres",), "apt-get install postgresql"),
    "pg_isready": (("postgres",), "apt-get install postgresql-client"),
    "go": (("nats",), "Go 1.25 or newer (Debian's is older), to build nats-server"),
    "node": (("bullmq",), "Node 20 or newer: apt-get install nodejs (Debian's 18 is too old)"),
    "npm": (("bullmq",), "apt-get install npm"),
}


def find(program):
    """The path of a program, or None."""
    if program == "etcd":
        own = os.environ.get("TRANCHE_ETCD") or ROOT / ".tools/bin/etcd"
        return str(own) if Path(own).is_file() else shutil.which(program)
    if program == "nats-server":
        return str(TOOLS / program)
    # Debian keeps the server's programs off PATH, by version.
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: float(path.parts[4]))
    return str(newest[-1]) if newest else shutil.which(program)


def check(peers):
    """Raises `Missing` unless all that these peers and Tranche need is there."""
    lines = []
    for program, (users, how) in NEEDS.items():
        users = users and [peer for peer in users if peer in peers]
        if users != [] and not find(program):
            lines.append(f"{program}, for {', '.join(users or ['all'])}: {how}")
    if lines:
        raise Missing("\n".join(lines))


def build(peers):
    """Builds Tranche and what the peers need; does nothing where all is there already."""
    crates = [part for crate in TRANCHE for part in ("-p", crate)]
    _run(["cargo", "build", "--locked", "--release", *crates], ROOT)
    rust = [peer for peer in peers if peer != "bullmq"]
    if rust:
        bins = [part for peer in rust for part in ("--bin", peer)]
        _run(["cargo", "build", "--locked", "--release", *bins], PEERS / "load", CARGO_TARGET_DIR=str(OWN))
    if "nats" in peers and _output([find("nats-server"), "--version"]) != f"nats-server: v{NATS_VERSION}":
        module = f"github.com/nats-io/nats-server/v2@v{NATS_VERSION}"
        go = {"GOBIN": str(TOOLS), "GOFLAGS": "-trimpath", "GOWORK": "off", "CGO_ENABLED": "0"}
        TOOLS.mkdir(parents=True, exist_ok=True)
        _run(["go", "install", "-ldflags", "-s -w", module], TOOLS, **go)
    if "bullmq" in peers:
        # node_modules belongs to the build output too.
        BULLMQ.mkdir(parents=True, exist_ok=True)
        lock = (PEERS / "bullmq/package-lock.json").read_bytes()
        stamp = BULLMQ / "installed.lock"
        for file in ("package.json", "package-lock.json", "load.mjs"):
            shutil.copy(PEERS / "bullmq" / file, BULLMQ / file)
        if not stamp.is_file() or stamp.read_bytes() != lock:
            # Not `npm ci`, which wants the optional packages of every platform in the lock file.
            _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], BULLMQ)
            stamp.write_bytes(lock)


def programs():
    """The load programs by name, each as the start of a command."""
    rust = {name: [str(OWN / "release" / name)] for name in ("redis-streams", "postgres", "nats")}
    return {**rust, "bullmq": [find("node"), str(BULLMQ / "load.mjs")], "tranche": [str(TARGET / "release/tranche")]}


def versions(peers):
    """What the programs of these peers say of themselves."""
    commands = {"etcd": [None, [find("etcd"), "--version"]]}
    commands["redis"] = [("redis-streams", "bullmq"), [find("redis-server"), "--version"]]
    commands["postgres"] = [("postgres",), [find("postgres"), "--version"]]
    commands["nats"] = [("nats",), [find("nats-server"), "--version"]]
    commands["node"] = [("bullmq",), [find("node"), "--version"]]
    wanted = {name: command for name, (users, command) in commands.items() if not users or set(users) & set(peers)}
    said = {name: _output(command).splitlines()[0].split(" sha=")[0] for name, command in wanted.items()}
    said["tranche"] = _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    return said


def _output(command):
    try:
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _run(command, folder, **env):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=folder, env={**os.environ, **env})
