"""Writes one self-contained page from what a run left in its folder, whatever is there yet.

    python -m experiments.report runs/demo

Reads rows.jsonl, run.json (plain facts: config, seeds, versions, machine, durations_s, commands), */metrics.jsonl (training, one
folder an agent) and an mp4; of the long demo also baselines/ and text.json. Nothing is computed that does not come from these.
"""

import base64
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib

from experiments import checks, checks_long, figures
from experiments.checks import LATE, PATROL, RATIO, two_rate
from experiments.rows import Row, by_key, load, pick
from experiments.statistics import CONFIDENCE, RESAMPLES
from hierarchy.timeline import draw_timeline, periodic

TEMPLATES = Path(__file__).parent / "templates"
FACTS = ("commands", "config", "seeds", "durations_s", "machine", "versions")
LONG = "budget.json"
"""Stands in the folder of the long demo alone."""
LOW, HIGH = (247, 249, 252), (143, 189, 232)


class Cell(NamedTuple):
    """One square of the table of ratios and latencies."""

    row: Row
    quotient: float | None
    colour: str


def number(value: Any, digits: int = 1) -> str:
    """Returns a number as a table shows it, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def large(value: float | None) -> str:
    """Returns a count in thousands, millions or billions."""
    if value is None:
        return "–"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}\u2009{unit}"
    return f"{value:.3g}"


def shade(quotient: float | None) -> str:
    """Returns the background of a cell: the nearer to the scripted hierarchy, the bluer."""
    share = 0.0 if quotient is None else min(max(quotient, 0.0), 1.0)
    return "#" + "".join(f"{round(low + share**2 * (high - low)):02x}" for low, high in zip(LOW, HIGH))


def cells(rows: Sequence[Row]) -> dict[int, dict[int, Cell]]:
    """Returns latency to ratio to cell, of the plain two-rate agent on the patrol."""
    found: dict[int, dict[int, Cell]] = {}
    ours = [row for row in pick(rows, PATROL, "two_rate", variant="") if row.ratio and row.latency is not None]
    for row in sorted(ours, key=lambda row: (row.latency, row.ratio)):
        quotient = checks.quotient(rows, row.ratio, row.latency)
        found.setdefault(row.latency, {})[row.ratio] = Cell(row, quotient, shade(quotient))
    return found


def tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Returns (value, name, tone) of the figures that the page opens with, those that were measured."""
    agent, baseline = two_rate(rows, RATIO, 0), checks.single_rate(rows)
    shown = [
        (agent, f"a plan every {RATIO} ticks", "ours"),
        (two_rate(rows, RATIO, LATE), f"the same, every plan {LATE} ticks late", "ours"),
        (checks.held_action(rows, RATIO), f"every action held for {RATIO} ticks", "other"),
        (checks.late_action(rows, LATE), f"every action {LATE} ticks late", "other"),
    ]
    found = [(f"{row.normalised_return:.0f}", name, tone) for row, name, tone in shown if row is not None]
    if agent and baseline and agent.flops_per_tick and baseline.flops_per_tick:
        times = baseline.flops_per_tick / agent.flops_per_tick
        found.append((f"{times:.1f}×", "fewer FLOPs a tick than one model at one rate", "plain"))
    return found


def findings(rows: Sequence[Row]) -> dict[str, str]:
    """Returns what each of the two main plots shows, in a sentence with its figures."""
    at_once = [*figures.along(pick(rows, PATROL, "two_rate", variant="", latency=0), "ratio").values()]
    late, now = two_rate(rows, RATIO, LATE), two_rate(rows, RATIO, 0)
    ratio, latency = "", ""
    if len(at_once) > 1:
        seldom, often = at_once[-1], at_once[0]
        ratio = f"With a plan every {ticks(often.ratio)} the agent reaches {often.normalised_return:.0f}, "
        ratio += f"with one every {ticks(seldom.ratio)} {seldom.normalised_return:.0f}. "
    if held := checks.held_action(rows, RATIO):
        ratio += f"Acting only every {RATIO} ticks, the better trained agent reaches {held.normalised_return:.0f}. "
    if now and late:
        latency = f"At ratio {RATIO}, plans that come {LATE} ticks late take the agent from {now.normalised_return:.0f} "
        latency += f"to {late.normalised_return:.0f}. "
    if action := checks.late_action(rows, LATE):
        latency += f"Actions that come {LATE} ticks late leave {action.normalised_return:.0f}. "
    if predicted := checks.scripted(rows, "compensated", latency=LATE):
        latency += f"Exact control with a perfect linear predictor over its queued actions has {predicted.normalised_return:.0f}."
    return {"ratio": ratio.strip(), "latency": latency.strip()}


def ticks(count: int) -> str:
    """Returns a number of ticks in words of its own grammar."""
    return "tick" if count == 1 else f"{count} ticks"


def cost_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the table of costs: the two-rate agent at every ratio, of held and late actions the better agents."""
    found = [*figures.along(pick(rows, PATROL, "two_rate", variant="", latency=0), "ratio").values()]
    found += [row for row in (checks.single_rate(rows), checks.controller_only(rows)) if row is not None]
    found += figures.along(pick(rows, PATROL, "held_action"), "ratio").values()
    found += figures.along(pick(rows, PATROL, "late_action"), "latency").values()
    return found


def suite(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a line a task, the patrol first: raw returns of random and expert, and the rows of both trained agents."""
    lines = []
    for task in [PATROL, *checks.suite_tasks(rows)]:
        line = {name: checks.mean_return(rows, task, name) for name in ("random", "expert")}
        line |= {agent: checks.on_task(rows, agent, task) for agent in ("two_rate", "single_rate")}
        if any(value is not None for value in line.values()):
            lines.append({"task": task} | line)
    return lines


def read_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns agent to the lines of its training metrics; a last line cut short is left out."""
    found = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        whole = path.read_text().rpartition("\n")[0].splitlines()
        found[path.parent.name] = [json.loads(line) for line in whole]
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """Returns run.json, the facts in reading order; empty if there is none."""
    facts = read_json(folder / "run.json")
    return {name: facts[name] for name in sorted(facts, key=lambda name: (*FACTS, name).index(name))}


def read_json(path: Path) -> dict[str, Any]:
    """Returns what a file of facts says, nothing where there is none. Raises ValueError that names a file that is not JSON."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it, and the next stage of the run writes it again") from None


def video(folder: Path) -> str | None:
    """Returns the folder's first mp4 as a data URI, None if there is none."""
    path = next(iter(sorted(folder.glob("*.mp4"))), None)
    return path and "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def page(folder: Path) -> str:
    """Returns the HTML of a run's folder; of the long demo's with its own claims and tables."""
    rows, alone = (list(by_key(load(folder / path)).values()) for path in ("rows.jsonl", "baselines/rows.jsonl"))
    metrics = read_metrics(folder)
    drawn = {
        "ratio": figures.by_ratio(rows),
        "latency": figures.by_latency(rows),
        "controls": figures.plan_controls(rows),
        "cost": figures.cost(rows),
        "training": figures.training(metrics),
    }
    text = read_json(folder / "text.json")
    whole = metrics | {f"baselines/{name}": lines for name, lines in read_metrics(folder / "baselines").items()}
    claims = checks.checks(rows)
    if (folder / LONG).exists():
        claims = [*checks_long.checks(rows, alone, text, whole), *checks.checks([*rows, *pick(alone, PATROL, "controller_only")])]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "large": large}
    environment.tests["mapping_of_facts"] = lambda value: isinstance(value, Mapping)
    return environment.get_template("report.html.j2").render(
        rows=rows,
        episodes=min([row.episodes for row in rows if row.task == PATROL], default=0),
        figures={name: figure and figures.svg(figure) for name, figure in drawn.items()},
        tiles=tiles(rows),
        findings=findings(rows),
        checks=claims,
        cells=cells(rows),
        costs=cost_rows(rows),
        suite=suite(rows),
        seeds=checks_long.seeds(alone),
        alone=checks_long.trained_alone(alone),
        text=text,
        fillings={name: found for name, lines in whole.items() if (found := checks_long.filling(lines))},
        run=read_run(folder),
        video=video(folder),
        timeline=draw_timeline(periodic(12, 4, 2), 12),
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        RATIO=RATIO,
        LATE=LATE,
    )


def write_report(folder: Path) -> Path:
    """Returns the path of report.html, written from what the folder holds and put in place whole."""
    folder = Path(folder)
    path, draft = folder / "report.html", folder / "report.html.draft"
    draft.write_text(page(folder), encoding="utf-8")
    os.replace(draft, path)
    return path


def write_readme_figure(rows: Sequence[Row], path: Path) -> Path:
    """Returns the path of the headline picture as PNG. Of cells that were measured with several training seeds it shows the mean
    over them, and from the lowest to the highest.

    Raises:
        ValueError: no row has a place in it.
    """
    figure = figures.by_ratio(over_seeds(list(by_key(rows).values())))
    if figure is None:
        raise ValueError(f"{path}: no row of task {PATROL!r} has a place in the picture: run the demo first")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(figures.STYLE):
        figure.savefig(path, dpi=200, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})
    return Path(path)


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, those of one cell that differ by their training seed as one: its return is their mean, and its interval
    goes from the lowest to the highest of them."""
    together: dict[tuple, list[Row]] = {}
    for row in rows:
        together.setdefault(dataclasses.replace(row, train_seed=None).key, []).append(row)
    return [found[0] if len(found) == 1 else _mean_of(found) for found in together.values()]


def _mean_of(rows: Sequence[Row]) -> Row:
    returns = [row.normalised_return for row in rows]
    ends = {"normalised_return": sum(returns) / len(returns), "ci_low": min(returns), "ci_high": max(returns)}
    return dataclasses.replace(rows[0], train_seed=None, returns=(), **ends)


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")))
