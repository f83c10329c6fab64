"""An environment in a process of its own that goes on by its own clock: a stand-in for a robot's driver.

driver      |o0       |o1       |o2       |o3        the world moves once a period, with the newest action it was given
controller   . a0      . a1         a2     . a3      one that comes late is held for another period
"""

import multiprocessing
import signal
import time
from collections.abc import Callable
from typing import Any

import dm_env
import numpy as np

from hierarchy.control.clock import Clock
from hierarchy.control.priority import pin
from hierarchy.control.records import Records, fields_of, record_of, values_of

POLL_S = 0.0002
SILENT_S = 120.0
LEAD = 0.1
"""Share of a period by which an observation is there before the controller's tick is due."""


class Driven(dm_env.Environment):
    """A dm_env whose world runs elsewhere. `step` gives the action away and waits for the next observation, not for the world to
    use it. An observation that the controller slept through is skipped, its reward with the next one's.

    make: returns the environment; a function of a module, or a partial of one. period_s: of its clock, which starts with the
    first action; 0 for a world that waits for every action. where: its cores. held: how often the world moved on an old action.
    stamped: when the newest observation was made, ns. due: when the controller's tick on it is, ns, by the world's clock.
    """

    def __init__(self, make: Callable[[], dm_env.Environment], period_s: float, where: list[int] = ()):
        like = make()
        self._observation_spec, self._action_spec = like.observation_spec(), like.action_spec()
        if hasattr(like, "tick_s"):
            self.tick_s = like.tick_s
        if hasattr(like, "safe_action"):
            safe = np.asarray(like.safe_action())
            self.safe_action = lambda: safe
        like.reset()
        known = _known(like)
        seen = [("number", np.int64), ("first", bool), ("last", bool), ("discount", np.float64), ("total", np.float64)]
        seen += [("reset", np.int64), ("at", np.int64), ("held", np.int64), ("seen", np.dtype(fields_of(self._observation_spec)))]
        seen += [("start", np.int64)]
        seen += [("known", np.dtype([(name, value.dtype, value.shape) for name, value in known.items()]))] if known else []
        told = [("reset", np.int64), ("seed", np.int64), ("number", np.int64), ("stop", bool)]
        told += [("action", self._action_spec.dtype, self._action_spec.shape)]
        self._seen, self._told = Records(np.dtype(seen)), Records(np.dtype(told))
        self._order = {"reset": 0, "seed": -1, "number": 0, "stop": False}
        self._period_s, self._sequence, self._total, self._over, self._known = period_s, 0, 0.0, False, {}
        self.held = self.stamped = self.due = 0
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_drive, args=(make, self._seen, self._told, period_s, list(where)), daemon=True)
        self._process.start()

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone, if the environment has that."""
        self._order["seed"] = seed

    def reset(self) -> dm_env.TimeStep:
        self._order |= {"reset": self._order["reset"] + 1, "number": 0}
        self._tell(np.zeros(self._action_spec.shape, self._action_spec.dtype))
        self._total = 0.0
        return self._next()

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        if self._over:
            return self.reset()
        self._order["number"] += 1
        self._tell(action)
        return self._next()

    def observation_spec(self):
        return self._observation_spec

    def action_spec(self):
        return self._action_spec

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns what the environment told a recorder alone at the newest observation; {} where it has no such thing."""
        return self._known

    def close(self) -> None:
        """Ends the driver."""
        self._order["stop"] = True
        self._tell(np.zeros(self._action_spec.shape, self._action_spec.dtype))
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _tell(self, action: np.ndarray) -> None:
        self._told.write(record_of(self._told.dtype, self._order | {"action": action}))

    def _next(self) -> dm_env.TimeStep:
        until = time.monotonic() + SILENT_S
        while (found := self._seen.read(after=self._sequence)) is None or found[1]["reset"] != self._order["reset"]:
            if time.monotonic() > until or not self._process.is_alive():
                raise RuntimeError(f"the driver has said nothing for {SILENT_S:g} s, or is gone: see its own error above")
            time.sleep(POLL_S)
        self._sequence, record = found
        self.held, self.stamped, self._over = int(record["held"]), int(record["at"]), bool(record["last"])
        # An observation that was slept through took its tick with it: those after it are due when the world has them.
        self.due = int(record["start"]) + round((int(record["number"]) + LEAD) * self._period_s * 1e9)
        self._known = _observation(record["known"]) if "known" in record.dtype.names else {}
        observation = _observation(record["seen"])
        if record["first"]:
            return dm_env.restart(observation)
        reward, self._total = float(record["total"]) - self._total, float(record["total"])
        kind = dm_env.StepType.LAST if record["last"] else dm_env.StepType.MID
        return dm_env.TimeStep(kind, reward, float(record["discount"]), observation)


def _known(environment: dm_env.Environment) -> dict[str, np.ndarray]:
    known = environment.privileged() if hasattr(environment, "privileged") else {}
    return {name: np.asarray(value) for name, value in known.items()}


def _observation(record: np.void) -> dict[str, np.ndarray]:
    values = values_of(record, list(record.dtype.names))
    return {name: np.array(value, object if isinstance(value, str) else None) for name, value in values.items()}


def _drive(make: Callable[[], dm_env.Environment], seen: Records, told: Records, period_s: float, where: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if where:
        pin(where)
    environment, controller, done = make(), multiprocessing.parent_process(), 0
    while controller.is_alive():
        found = told.read()
        if found is not None and found[1]["stop"]:
            return
        if found is not None and found[1]["reset"] > done:
            done = int(found[1]["reset"])
            _drive_episode(environment, seen, told, period_s, found[1], controller.is_alive)
        time.sleep(POLL_S)


def _drive_episode(
    environment: dm_env.Environment, seen: Records, told: Records, period_s: float, order: np.void, alive: Callable[[], bool]
) -> None:
    """Runs one episode until it ends, or something else is ordered."""
    if order["seed"] >= 0 and hasattr(environment, "reseed"):
        environment.reseed(int(order["seed"]))
    step, clock, total, held, used = environment.reset(), Clock(period_s), 0.0, 0, 0

    def show(number: int) -> None:
        values = {"reset": order["reset"], "number": number, "total": total, "held": held, "start": clock.deadline(0)}
        _show(seen, environment, step, values)

    def given(number: int) -> np.void | None:
        """The newest action once it is this one or a later one; None when the episode is not wanted any more."""
        while alive():
            found = told.read()
            if found is not None and (found[1]["stop"] or found[1]["reset"] != order["reset"]):
                return None
            if found is not None and found[1]["number"] >= number:
                return found[1]
            time.sleep(POLL_S)
        return None

    show(0)
    action, number = given(1), 0
    clock.start(time.monotonic_ns() - round(LEAD * period_s * 1e9))
    while action is not None:
        number += 1
        if clock.paced:
            clock.wait(number)
            action = given(1)
        if action is None:
            return
        held, used = held + int(action["number"] == used), int(action["number"])
        step = environment.step(action["action"])
        total += float(step.reward or 0.0)
        show(number)
        if step.last():
            return
        if not clock.paced:
            action = given(number + 1)


def _show(seen: Records, environment: dm_env.Environment, step: dm_env.TimeStep, values: dict[str, Any]) -> None:
    values |= {"first": step.first(), "last": step.last(), "at": time.monotonic_ns()}
    values |= {"discount": 1.0 if step.discount is None else step.discount}
    observation = seen.dtype["seen"]
    values["seen"] = record_of(observation, {name: step.observation[name] for name in observation.names})
    if "known" in seen.dtype.names:
        values["known"] = record_of(seen.dtype["known"], _known(environment))
    seen.write(record_of(seen.dtype, values))
