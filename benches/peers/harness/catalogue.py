"""The settings that are measured: which server with which options, which load program, what is guaranteed."""

from dataclasses import dataclass

from . import servers

# What every peer promises: a task comes back if the worker that has it is lost.
AT_LEAST_ONCE = "at least once"


@dataclass(frozen=True)
class Setting:
    """One peer as it is set up for the job."""

    peer: str
    # What sets it apart from the peer's other settings.
    name: str
    # Is what was acknowledged on disk (fsync) before the answer, in put and in acknowledgement?
    durable: bool
    # What is lost, when and how.
    note: str
    # Starts the server in a folder; returns a `servers.Running`.
    start: object
    # The load program, as `prepare.programs()` names it, and its flags.
    program: str
    flags: tuple = ()
    # The better mode of the two, by measurement (README.md has the figures).
    mode: str = "overlapped"
    # It gets one task of so many, since it would take minutes for all. Tranche runs with that number too.
    share: int = 1


def redis(appendfsync):
    return lambda folder: servers.redis(folder, appendfsync)


def postgres(synchronous_commit):
    return lambda folder: servers.postgres(folder, synchronous_commit)


def nats(sync_interval):
    return lambda folder: servers.nats(folder, sync_interval)


ALWAYS = "every answer waits for fsync"
EVERYSEC = "a crash of the machine loses up to a second"

SETTINGS = (
    Setting("redis-streams", "appendfsync always", True, ALWAYS, redis("always"), "redis-streams", mode="phased"),
    Setting("redis-streams", "appendfsync everysec", False, EVERYSEC, redis("everysec"), "redis-streams"),
    Setting(
        "postgres",
        "skip locked, transaction",
        True,
        "every commit waits for fsync; a worker holds a transaction open while it works",
        postgres("on"),
        "postgres",
        ("--hold", "transaction"),
    ),
    Setting(
        "postgres",
        "skip locked, lease",
        True,
        "every commit waits for fsync; a worker holds a lease of 60 s",
        postgres("on"),
        "postgres",
        ("--hold", "lease"),
    ),
    Setting(
        "nats",
        "sync always",
        True,
        "every answer to a publish waits for fsync; acknowledgements are one-way",
        nats("always"),
        "nats",
        ("--publish", "fast"),
        share=25,
    ),
    Setting(
        "nats",
        "sync 2 min",
        False,
        "a crash of the machine loses up to two minutes; acknowledgements are one-way",
        nats("2m"),
        "nats",
        ("--publish", "fast"),
    ),
    Setting("bullmq", "appendfsync always", True, ALWAYS, redis("always"), "bullmq", share=10),
    Setting("bullmq", "appendfsync everysec", False, EVERYSEC, redis("everysec"), "bullmq", share=10),
)

PEERS = tuple(dict.fromkeys(setting.peer for setting in SETTINGS))
