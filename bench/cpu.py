"""Processor time of processes, from /proc."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PARENT, FIRST_TIME, LAST_TIME = 1, 11, 14  # fields of stat after the name: ppid; utime, stime, cutime, cstime


def cpu_seconds_of(root: int) -> float:
    """User and system seconds of a process, of all below it, and of their children that have ended."""
    stats = read_stats()
    family = family_of(root, stats)
    ticks = sum(int(tick) for pid in family & stats.keys() for tick in stats[pid][FIRST_TIME : LAST_TIME + 1])
    return ticks / TICKS_PER_SECOND


def family_of(root: int, stats: Mapping[int, Sequence[str]]) -> set[int]:
    """The process and all below it, among those that `read_stats` found."""
    family, grown = {root}, True
    while grown:
        below = {pid for pid, fields in stats.items() if int(fields[PARENT]) in family}
        grown = not below <= family
        family |= below
    return family


def read_stats() -> dict[int, list[str]]:
    """The fields of every process's stat after its name, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it ended meanwhile
                continue
    return found
