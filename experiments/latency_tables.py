"""The figures of `experiments.measure_latency` as tables."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(found: dict[str, Any], console: Console) -> None:
    """Prints the figures of `experiments.measure_latency`, as its JSON has them."""
    config = found["command"]
    if "ways" in found:
        ways = found["ways"]
        read = (f"{rate / 1e9:.1f} GB/s from {size / 1e6:.1f} MB" for size, rate in ways["bytes_per_s"].items())
        console.print(f"{found['machine']['processor']}: {ways['flop_per_s'] / 1e9:.0f} GFLOP/s, {', '.join(read)}")
        columns = "way", "p50 ms", "p99 ms", "floor ms", "x floor", "x ours", "calls", "apart"
        _print(
            console,
            f"one tick of a {config['controller']} controller",
            columns,
            [
                (
                    row["way"],
                    f"{row['p50_ms']:.2f}",
                    f"{row['p99_ms']:.2f}",
                    f"{row['floor_ms']:.2f}",
                    f"{row['over_floor']:.2f}",
                    f"{row['over_ours']:.2f}",
                    str(row["calls"]),
                    "" if row["difference"] is None else f"{row['difference']:.0e}",
                )
                for row in ways["rows"]
            ],
        )
    if "paced" in found:
        rows = [(row["way"], f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", str(row["ticks"])) for row in found["paced"]]
        _print(console, f"the same, paced at {config['hz']:g} Hz", ("way", "p50 ms", "p99 ms", "ticks"), rows)
    if "precision" in found:
        columns = "way", "products in", "p50 ms", "x float32", "apart"
        rows = [
            (
                row["way"],
                row["precision"],
                f"{row['p50_ms']:.2f}",
                f"{row['over_float32']:.2f}",
                "" if row["difference"] is None else f"{row['difference']:.0e}",
            )
            for row in found["precision"]
        ]
        _print(console, "the controller's products in either precision", columns, rows)
    if "fit" in found:
        for part, every in (("controller", 1), ("planner", config["ratio"])):
            limit = 1e3 * every / config["hz"]
            rows = [
                (r["size"], f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}", "yes" if r["fits"] else "no") for r in found["fit"][part]
            ]
            title = f"{part}s at {config['hz']:g} Hz: p99 within {limit:g} ms"
            _print(console, title, ("size", "p50 ms", "p99 ms", "fits"), rows)
    if "single" in found:
        columns = (
            "total",
            "GFLOP a tick",
            "one model",
            "x fewer",
            "tick ms",
            "update ms",
            "amortised ms",
            "one model ms",
            "x faster",
        )
        rows = [
            (
                row["total"],
                *(f"{flops / 1e9:.2f}" for flops in row["flops"]),
                f"{row['fewer_flops']:.1f}",
                *(f"{row[name]:.1f}" for name in ("tick_ms", "update_ms", "amortised_ms", "single_ms", "faster")),
            )
            for row in found["single"]
        ]
        _print(console, f"two rates (5M controller, ratio {config['ratio']}) against one model of their size", columns, rows)
    if "soak" in found:
        soak = found["soak"]
        console.print(
            f"{soak['ticks']:,} ticks of the whole agent, {soak['ms_a_tick']:.2f} ms each: after two episodes "
            f"{soak['compiled_since']} programs compiled, {soak['arrays_since']:+d} arrays and {soak['mib_since']:+.1f} MiB held"
        )
    for note in found["notes"]:
        console.print(f"[dim]{note}[/dim]")


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
