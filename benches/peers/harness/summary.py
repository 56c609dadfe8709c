"""From the runs to the table: least, median, most, and Tranche's rate over each peer's."""

import statistics
from collections import defaultdict
from dataclasses import dataclass

TRANCHE = "tranche"


@dataclass(frozen=True)
class Spread:
    """The rates of one setting's runs, in tasks a second."""

    least: float
    median: float
    most: float
    runs: int

    @classmethod
    def of(cls, rates):
        return cls(min(rates), statistics.median(rates), max(rates), len(rates))


@dataclass(frozen=True)
class Row:
    """One setting, with one number of tasks, in one mode."""

    peer: str
    setting: str
    mode: str
    tasks: int
    durable: bool
    rates: Spread
    # Processor seconds for a million tasks, server and client together: the median.
    cpu_s: float
    # Tranche's median over this one's, and its least over this one's most; None without runs of Tranche with
    # this number of tasks, and for Tranche itself.
    ratio: float | None
    least_ratio: float | None


def rows(records):
    """A row for each setting, durable ones first, the fastest of them first; Tranche's on top."""
    groups = defaultdict(list)
    for record in records:
        groups[record["peer"], record["setting"], record["mode"], record["tasks"]].append(record)
    spreads = {key: Spread.of([record["whole_tasks_per_s"] for record in group]) for key, group in groups.items()}
    tranche = {key[3]: spread for key, spread in spreads.items() if key[0] == TRANCHE}
    table = []
    for key, group in groups.items():
        peer, setting, mode, tasks = key
        rates = spreads[key]
        own = tranche.get(tasks) if peer != TRANCHE else None
        table.append(
            Row(
                peer=peer,
                setting=setting,
                mode=mode,
                tasks=tasks,
                durable=group[0]["durable"],
                rates=rates,
                cpu_s=statistics.median(record["cpu_s"] / tasks * 1e6 for record in group),
                ratio=own and own.median / rates.median,
                least_ratio=own and own.least / rates.most,
            )
        )
    return sorted(table, key=lambda row: (row.peer != TRANCHE, not row.durable, -row.rates.median))


def verdict(table):
    """One sentence about the fastest durable peer, or None without one that has a ratio."""
    durable = [row for row in table if row.durable and row.ratio]
    if not durable:
        return None
    best = max(durable, key=lambda row: row.rates.median)
    return (
        f"The fastest durable peer is {best.peer} ({best.setting}) with {best.rates.median:,.0f} tasks/s: "
        f"Tranche does {best.ratio:.1f} times as many (its slowest run over that peer's fastest: "
        f"{best.least_ratio:.1f})."
    )


def markdown(records):
    """The table and the sentence below it."""
    table = rows(records)
    lines = [
        "| | durable | tasks | runs | tasks/s: least | median | most | CPU s per million tasks "
        "| Tranche ÷ it (medians) | (slowest ÷ fastest) |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    modes = defaultdict(set)
    for row in table:
        modes[row.peer, row.setting].add(row.mode)
    for row in table:
        name = f"{row.peer}, {row.setting}"
        if len(modes[row.peer, row.setting]) > 1:
            name += f", {row.mode}"
        rates = row.rates
        ratio = f"{row.ratio:.1f}" if row.ratio else ""
        least = f"{row.least_ratio:.1f}" if row.least_ratio else ""
        lines.append(
            f"| {name} | {'yes' if row.durable else 'no'} | {row.tasks:,} | {rates.runs} | {rates.least:,.0f} "
            f"| {rates.median:,.0f} | {rates.most:,.0f} | {row.cpu_s:.1f} | {ratio} | {least} |"
        )
    sentence = verdict(table)
    return "\n".join([*lines, *(["", sentence] if sentence else [])]) + "\n"
