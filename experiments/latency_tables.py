"""The figures of `experiments.measure_latency` as tables, a function for each part that it measures."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Found = dict[str, Any]
"""All figures, as the command's JSON has them."""


def show(found: Found, console: Console) -> None:
    """Prints the parts that were measured, and the notes on them."""
    for part, print_part in PARTS.items():
        if part in found:
            print_part(found, console)
    for note in found["notes"]:
        console.print(f"[dim]{note}[/dim]")


def _ways(found: Found, console: Console) -> None:
    ways = found["ways"]
    read = (f"{rate / 1e9:.1f} GB/s from {size / 1e6:.1f} MB" for size, rate in ways["bytes_per_s"].items())
    console.print(f"{found['machine']['processor']}: {ways['flop_per_s'] / 1e9:.0f} GFLOP/s, {', '.join(read)}")
    columns = "way", "p50 ms", "p99 ms", "floor ms", "x floor", "x needed", "x ours", "calls", "apart"
    figures = "p50_ms", "p99_ms", "floor_ms", "over_floor", "over_needed", "over_ours"
    rows = [
        (row["way"], *(_times(row[figure]) for figure in figures), str(row["calls"]), _apart(row["difference"]))
        for row in ways["rows"]
    ]
    _print(console, f"one tick of a {found['command']['controller']} controller", columns, rows)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _paced(found: Found, console: Console) -> None:
    rows = [
        (row["way"], "yes" if row["rehearsed"] else "no", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", str(row["ticks"]))
        for row in found["paced"]
    ]
    _print(console, f"the same, paced at {found['command']['hz']:g} Hz", ("way", "rehearsed", "p50 ms", "p99 ms", "ticks"), rows)


def _precision(found: Found, console: Console) -> None:
    columns = "way", "products in", "p50 ms", "x float32", "apart"
    rows = [
        (row["way"], row["precision"], f"{row['p50_ms']:.2f}", f"{row['over_float32']:.2f}", _apart(row["difference"]))
        for row in found["precision"]
    ]
    _print(console, "the controller's products in either precision", columns, rows)


def _fit(found: Found, console: Console) -> None:
    fit = found["fit"]
    for part, every in (("controller", 1), ("planner", fit["ratio"])):
        rows = [
            (row["size"], f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", "yes" if row["fits"] else "no") for row in fit[part]
        ]
        title = f"{part}s at {fit['hz']:g} Hz: p99 within {1e3 * every / fit['hz']:g} ms"
        _print(console, title, ("size", "p50 ms", "p99 ms", "fits"), rows)


def _single(found: Found, console: Console) -> None:
    columns = "total", "GFLOP a tick", "one model", "x fewer", "tick ms", "update ms", "amortised ms", "one model ms", "x faster"
    figures = "fewer_flops", "tick_ms", "update_ms", "amortised_ms", "single_ms", "faster"
    rows = [
        (row["total"], *(f"{flops / 1e9:.2f}" for flops in row["flops"]), *(f"{row[figure]:.1f}" for figure in figures))
        for row in found["single"]
    ]
    title = f"two rates (5M controller, ratio {found['command']['ratio']}) against one model of their size"
    _print(console, title, columns, rows)


def _soak(found: Found, console: Console) -> None:
    soak = found["soak"]
    console.print(
        f"{soak['ticks']:,} ticks of the whole agent, {soak['ms_a_tick']:.2f} ms each: after two episodes "
        f"{soak['compiled_since']} programs compiled, {soak['arrays_since']:+d} arrays and {soak['mib_since']:+.1f} MiB held"
    )


PARTS = {"ways": _ways, "paced": _paced, "precision": _precision, "fit": _fit, "single": _single, "soak": _soak}


def _apart(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.0e}"


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
