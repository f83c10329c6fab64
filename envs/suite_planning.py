"""Experts for tasks of `envs/suite_tasks.py`: each plans anew at every tick, in a copy of the suite's own model.

The reward planned for is the task's own, made smooth so that it also leads there. What each expert reaches and costs is measured
by `python -m experiments.experts`, and stands in experiments/bodies.md.
"""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

import dm_env
import mujoco
import numpy as np
from dm_control.utils.rewards import tolerance

from envs.mppi import Planner, Reward, Search, Sensors
from envs.noise import Disturbance, Noise
from envs.suite_tasks import SETTINGS, SuiteTask


class Planned(NamedTuple):
    """sensors: name to what the planning copy of the model measures besides the suite's own, as MJCF says it.

    mean_return: of the clean expert in a whole episode, estimated from the few episodes (shortened for standing) that
    experiments/bodies.md lists. cost_s: CPU seconds of one. noise: the most while recording, in units of an action range
    of [-1, 1].
    """

    sensors: Mapping[str, str]
    reward: Reward
    search: Search
    mean_return: float
    cost_s: float
    noise: float = 0.2


def turn(model: mujoco.MjModel, sensors: Sensors, controls: np.ndarray) -> np.ndarray:
    """Returns 1 for the spinner's tip in the target, less its distance from there."""
    away = np.linalg.norm(sensors["target"] - sensors["tip"], axis=-1)
    return (away <= model.site("target").size[0]) - 2.0 * away


def float_upright(model: mujoco.MjModel, sensors: Sensors, controls: np.ndarray) -> np.ndarray:
    """Returns how upright the fish floats."""
    return sensors["up"][..., 2]


def swim(model: mujoco.MjModel, sensors: Sensors, controls: np.ndarray) -> np.ndarray:
    """Returns the suite's reward, less the mouth's distance from the target."""
    away = np.linalg.norm(sensors["to"] - sensors["mouth"], axis=-1)
    reach = model.geom("mouth").size[0] + model.geom("target").size[0]
    there = tolerance(away, (0.0, reach), margin=2 * reach)
    return (7.0 * there + (1.0 + sensors["up"][..., 2]) / 2.0) / 8.0 - 2.0 * away


def stand(model: mujoco.MjModel, sensors: Sensors, controls: np.ndarray) -> np.ndarray:
    """Returns the suite's reward with a height that counts all the way from the floor, less a little effort."""
    height = np.clip(sensors["torso"][..., 2] / 1.2, 0.0, 1.0)
    return (3.0 * height + (1.0 + sensors["up"][..., 2]) / 2.0) / 4.0 - 0.01 * np.square(controls).mean(axis=-1)


def walk(model: mujoco.MjModel, sensors: Sensors, controls: np.ndarray) -> np.ndarray:
    """Returns that of standing, for the most part times the speed up to 1 m/s."""
    speed = np.clip(sensors["torso_subtreelinvel"][..., 0], -1.0, 1.1)
    return stand(model, sensors, controls) * (5.0 * speed + 1.0) / 6.0


def place(kind: str, name: str) -> str:
    """Returns the MJCF of a sensor for where something is, m."""
    return f'<framepos objtype="{kind}" objname="{name}"'


def upwards(name: str) -> str:
    """Returns the MJCF of a sensor for the axis of a body that points up when it is upright."""
    return f'<framezaxis objtype="xbody" objname="{name}"'


FISH = {"mouth": place("geom", "mouth"), "to": place("geom", "target"), "up": upwards("torso")}
WALKER = {"torso": place("xbody", "torso"), "up": upwards("torso")}

PLANNED: dict[str, Planned] = {
    "finger_turn_easy": Planned({}, turn, Search(horizon=20, steps=4), 245.0, 6.2),
    "finger_turn_hard": Planned({}, turn, Search(horizon=20, steps=4), 247.0, 6.0),
    "fish_upright": Planned(FISH, float_upright, Search(horizon=10, steps=10, samples=16), 248.9, 4.6),
    "fish_swim": Planned(FISH, swim, Search(horizon=15, steps=10, samples=24), 140.5, 6.5),
    "walker_stand": Planned(WALKER, stand, Search(horizon=15, steps=10), 249.0, 22.0),
    "walker_walk": Planned(WALKER, walk, Search(horizon=15, steps=8, samples=24), 219.5, 12.5),
}


def planning_model(domain: str, sensors: Mapping[str, str]) -> mujoco.MjModel:
    """Returns a fresh copy of the suite's model that also measures `sensors`."""
    xml, assets = importlib.import_module(f"dm_control.suite.{domain}").get_model_and_assets()
    xml = xml.decode() if isinstance(xml, bytes) else xml
    added = "".join(f'{sensor} name="{name}"/>' for name, sensor in sensors.items())
    return mujoco.MjModel.from_xml_string(xml.replace("</mujoco>", f"<sensor>{added}</sensor></mujoco>"), assets)


class PlanningExpert:
    """The expert for any task of `PLANNED`; noisy executes its label with noise in most episodes."""

    def __init__(self, noisy: bool = False):
        self._noisy, self._planners = noisy, {}

    def begin(self, environment: SuiteTask, rng: np.random.Generator) -> None:
        """Starts an episode: draws its noise level, and plans from its first state."""
        planned = PLANNED[environment.name]
        noise = Noise(most=planned.noise) if self._noisy else None
        self._disturbance = Disturbance(noise, rng, environment.action_spec().shape)
        if environment.name not in self._planners:
            model = planning_model(SETTINGS[environment.name].domain, planned.sensors)
            self._planners[environment.name] = Planner(model, planned.reward, planned.search, environment.tick_s)
        self._planner = self._planners[environment.name]
        self._planner.begin(environment.model, environment.physics_state(), rng)

    def step(self, environment: SuiteTask, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), both float32 [actuators] in [-1, 1]."""
        label = self._planner.act(environment.physics_state()).astype(np.float32)
        return self._disturbance.disturb(label), label
