"""Run an agent against the wall clock: its planner in a process beside it, deadlines watched, everything kept for a replay.

    python -m experiments.real_time --run runs/demo/two_rate --task patrol --hz 25 --out runs/real_time
    python -m experiments.real_time --preset demo --task patrol --hz 50 --episodes 8 --think-s 0.2 --out runs/real_time
    python -m experiments.real_time --preset debug --hz 25 --late-share 0.5 --late-s 0.8 --episodes 20 --out runs/late
    python -m experiments.real_time --preset debug --hz 25 --harm 100 --seconds 1800 --out runs/harm

Without --run the weights are random, of a preset: the times are as good, the actions are not. Takes as long as the episodes do
(10 s each for the patrol at 25 Hz), after some seconds of compilation. Ctrl-C ends it and keeps the whole episodes. Writes to
--out: episodes (a source, as of a recording), summary.json, ticks.jsonl, ticks.npy, events.jsonl, trace.json (open it in
ui.perfetto.dev), figure.png and what `experiments.replay` reads. More in experiments/real_time.md.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.real_time_figure import Drawn, draw
from experiments.real_time_run import (
    AFTERMATH_S,
    RealTimeConfig,
    Run,
    check,
    execute,
    figures,
    happenings,
    tokenizer_for,
    world_of,
)
from experiments.train import TOKENIZER, cache_compilations
from hierarchy.control.monitor import tick_lines, trace
from hierarchy.control.real_time import Update, timeline_of
from hierarchy.corpus import text
from hierarchy.corpus.store import write_source
from hierarchy.training.checkpoint import CheckpointError, open_manager


def facts_of(config: RealTimeConfig, tokenizer: Path | None) -> dict[str, Any]:
    """Returns what a replay needs to act as the run did: config, step of the weights, and the tokenizer in the run's folder."""
    weights = config.weights.run
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "step": newest_step(weights) if weights else None,
        "tokenizer": {"file": tokenizer.name, "hash": text.Tokenizer.load(tokenizer).hash} if tokenizer else None,
    }


def newest_step(weights: Path) -> int | None:
    """Returns the step of a training run's newest checkpoint."""
    return open_manager(weights / "checkpoints").latest_step()


def write(config: RealTimeConfig, flown: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes everything about a run, and returns its summary."""
    out, rows, period_s = config.out, flown.monitor.done(), flown.monitor.period_s
    happened, found = happenings(flown), figures(flown)
    out.mkdir(parents=True, exist_ok=True)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "ticks.jsonl").write_text(tick_lines(rows, period_s))
    np.save(out / "ticks.npy", rows)
    first = int(rows["deadline"][0])
    lines = [json.dumps({"at_ms": (at - first) / 1e6, "kind": kind, "detail": detail}) for at, kind, detail in happened]
    (out / "events.jsonl").write_text("".join(line + "\n" for line in lines))
    computed = [(each.observed, each.began, each.ended) for flight in flown.agent.flights for each in flight.updates]
    (out / "trace.json").write_text(json.dumps(trace(rows, period_s, computed, happened, flown.pauses)))
    for number, (flight, _) in enumerate(zip(flown.agent.flights, flown.episodes)):
        timeline = timeline_of(flight.taken)
        seen = rows["plan"][rows["episode"] == number + 1]
        np.savez(
            out / f"acted-{number:04d}.npz",
            observed=timeline.observed,
            ready=timeline.ready,
            plan=seen,
            without=np.array(flight.without, np.int32),
            stopped=np.array(flight.stopped, np.int32),
            safe=flown.safe,
            updates=np.array(flight.updates, np.int64).reshape(-1, len(Update._fields)),
            logits=np.stack(flight.logits),
        )
    draw(Drawn.of(out), out / "figure.png")
    if flown.episodes:
        tick_s = flown.episodes[0].tick_s
        write_source(
            out / "episodes", flown.episodes, name=config.task, tick_s=tick_s, licence="Apache-2.0", expert="none: an agent acted"
        )
    return found


def describe(found: dict[str, Any]) -> str:
    """Returns a summary in words."""
    tick, age, action, by = (found[name] for name in ("tick_ms", "plan_age_ticks", "deadline_to_action_ms", "missed_by_ms"))
    wanted = f" of {found['wanted_hz']:g}" if found["wanted_hz"] else ""
    phases = (f"{name} {each['p50']:.3f} p50 {each['p99']:.3f} p99" for name, each in found["phases_ms"].items())
    lines = [
        f"{found['ticks']} ticks, {found['episodes']} episodes: fast {found['fast_hz']:.2f} Hz{wanted}, "
        f"slow {found['slow_hz']:.2f} Hz, observation to action {found['observation_to_action_ms']['p50']:.2f} ms p50",
        f"tick: {tick['p50']:.2f} ms p50, {tick['p99']:.2f} p99, {tick['p99.9']:.2f} p99.9, {tick['max']:.2f} max",
        f"  {', '.join(phases)}",
    ]
    if action:
        late = f", by {by['p50']:.1f} ms p50, {by['max']:.1f} max" if by else ""
        lines.append(f"deadline to action {action['p99']:.2f} ms p99, {action['max']:.2f} max: {found['missed']} missed{late}")
    plan = f"plan age {age['mean']:.1f} ticks mean, {age['p99']:.0f} p99, {age['max']:.0f} max" if age else "no plan ever"
    lines.append(f"{plan}; {found['ticks_without_plan']} ticks without a plan, {found['stopped_ticks']} stopped")
    held = found["plans_held_back_ms"]
    if held:
        lines.append(
            f"{found['plans_held_back']} of {found['plans_taken']} plans held back on purpose, {held[0]:.0f} to {held[1]:.0f} ms"
        )
    harm = found["harm"]
    if harm:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(harm["by_kind"].items()))
        ended = "" if harm["over"] else ", the run ended before it was over"
        near, elsewhere = (f"{harm[f'missed_{where}']} of {harm[f'ticks_{where}']}" for where in ("near", "elsewhere"))
        lines.append(
            f"harm done {harm['done']} of {harm['wanted']} times ({kinds}){ended}: {near} ticks missed within {AFTERMATH_S:g} s "
            f"of it, {elsewhere} elsewhere"
        )
    lines.append(f"garbage collector: {found['gc_pauses']} pauses; {'; '.join(found['notes'])}")
    lines.append(f"planner: {', '.join(f'{kind} {count}' for kind, count in found['planner_events'].items()) or 'none'}")
    return "\n".join(lines)


def fly(config: RealTimeConfig) -> dict[str, Any]:
    """Runs and writes, an error or not; returns the summary."""
    check(config)
    # A tokenizer alone is what a run leaves that never began.
    if config.out.exists() and any(path.name != TOKENIZER for path in config.out.iterdir()):
        raise ValueError(f"{config.out} holds something already: give --out a folder that is new or empty")
    tokenizer = None if config.weights.run else tokenizer_for(world_of(config.task), config.out / TOKENIZER)
    facts = facts_of(config, tokenizer)
    flown = execute(config, tokenizer, lambda line: print("\r" + line, file=sys.stderr, flush=True))
    if len(flown.monitor.done()) > 1:
        found = write(config, flown, facts)
    elif flown.failed is None:
        raise ValueError("fewer than two ticks were run: there is nothing to write")
    if flown.failed is not None:
        raise flown.failed
    return found


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(RealTimeConfig, description=f"{__doc__}\n{RealTimeConfig.__doc__}")
    cache_compilations(Path("runs/.jax_cache"))
    try:
        found = fly(config)
    except (ValueError, OSError, RuntimeError, CheckpointError) as error:
        print(f"real_time: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("real_time: stopped before its first episode", file=sys.stderr)
        return 130
    print("\n" + describe(found))
    print(f"{config.out}: summary.json, ticks.jsonl, ticks.npy, events.jsonl, trace.json, figure.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
