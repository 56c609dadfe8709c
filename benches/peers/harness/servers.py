"""The peers' servers, each fresh on loopback with its data in the run's folder."""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import prepare
from .process import Process, free_port, listens


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: Process
    url: str


def redis(folder, appendfsync):
    port = free_port()
    options = {
        "bind": "127.0.0.1",
        "port": port,
        "dir": folder,
        "appendonly": "yes",
        "appendfsync": appendfsync,
        # No snapshots and no rewriting of the log while the clock runs.
        "save": "",
        "auto-aof-rewrite-percentage": 0,
        "maxmemory-policy": "noeviction",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    process = Process("redis-server", [prepare.find("redis-server"), *flags], folder)
    process.wait_for(lambda: listens(port))
    return Running(process, f"redis://127.0.0.1:{port}")


def postgres(folder, synchronous_commit):
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    data, port = Path(folder) / "data", free_port()
    initdb = [prepare.find("initdb"), "-D", data, "--auth", "trust", "--username", "postgres"]
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    subprocess.run(initdb, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder, **as_user)
    options = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "on",
        "synchronous_commit": synchronous_commit,
        # No checkpoint while the clock runs, and the table fits into memory.
        "shared_buffers": "1GB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "15min",
        # Nobody replicates.
        "wal_level": "minimal",
        "max_wal_senders": "0",
    }
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    command = [prepare.find("postgres"), "-D", data, "-p", port, *flags]
    # SIGQUIT ends the server's own processes too, at once.
    process = Process("postgres", command, folder, user=user, end_with=signal.SIGQUIT)
    ready = [prepare.find("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    process.wait_for(lambda: subprocess.run(ready, check=False).returncode == 0)
    return Running(process, f"postgres://postgres@127.0.0.1:{port}/postgres")


def nats(folder, sync_interval):
    port = free_port()
    config = Path(folder) / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{folder}/jetstream", max_mem: 1G, max_file: 20G, sync_interval: {sync_interval} }}\n'
    )
    process = Process("nats-server", [prepare.find("nats-server"), "-c", config], folder)
    process.wait_for(lambda: listens(port))
    return Running(process, f"nats://127.0.0.1:{port}")
