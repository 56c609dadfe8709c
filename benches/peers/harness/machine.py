"""What the figures were taken on, and whether others were at work meanwhile."""

import os
import platform
import statistics
import time
from pathlib import Path

# Small appends, each made durable.
SYNCS = 200
TICKS = os.sysconf("SC_CLK_TCK")


def describe(folder):
    """Cores, kernel, file system, and how long a small fdatasync takes there."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "fsync_p50_us": round(fsync_p50_s(folder) * 1e6),
    }


def file_system(folder):
    """The type of the file system that holds `folder`."""
    folder = Path(folder).resolve()
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if folder.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def fsync_p50_s(folder):
    times = []
    path = Path(folder) / "fsync"
    with open(path, "wb", buffering=0) as file:
        for _ in range(SYNCS):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    path.unlink()
    return statistics.median(times)


def busy_s():
    """Processor seconds that all processes of the machine have used since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS
