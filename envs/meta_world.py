"""Meta-World's robot arm (Yu et al. 2019, arXiv 1910.10897; metaworld 3.0.0) as environments of ours, with its scripted policies.

    make("metaworld_reach")     125 ticks of 0.05 s: four of Meta-World's steps under one action

An episode ends with success, which pays 1, or after Meta-World's 500 steps; its return is whether the task was done. The goal is
seen. The scripted policies do as well at 20 Hz as at Meta-World's own 80 Hz. The frame before, which Meta-World repeats in every
observation, is left out: what acts here has a memory.
"""

import dm_env
import numpy as np
from dm_env import specs

from envs.extras import need
from envs.noise import Disturbance, Noise

REPEAT, TICKS = 4, 125
STEP_S = 0.0125
SIZES = {"hand": 4, "objects": 14, "goal": 3}
"""hand: where it is, m, and how far it is open, 0 to 1. objects: up to two places, m, with orientations; 0 for none. goal: m."""

NAMES = tuple(
    f"metaworld_{task}"
    for task in (
        "button_press_topdown",
        "coffee_button",
        "door_close",
        "door_open",
        "drawer_close",
        "drawer_open",
        "faucet_open",
        "handle_press",
        "peg_insert_side",
        "pick_place",
        "plate_slide",
        "push",
        "reach",
        "window_close",
        "window_open",
    )
)


def theirs(name: str) -> str:
    """Returns Meta-World's own name of a task."""
    return name.removeprefix("metaworld_").replace("_", "-") + "-v3"


class MetaWorld(dm_env.Environment):
    """One task of Meta-World; `make` builds it. seen: Meta-World's own observation [39], for its policies."""

    tick_s = REPEAT * STEP_S

    def __init__(self, name: str, ticks: int):
        need("metaworld")
        self.name, self.ticks = name, ticks
        _mend_welds()
        self._arm = need("metaworld.env_dict").ALL_V3_ENVIRONMENTS[theirs(name)]()
        # What Meta-World's benchmarks do to draw a goal at every reset, and to show it.
        self._arm._set_task_called = self._arm.seeded_rand_vec = True
        self._arm._freeze_rand_vec = self._arm._partially_observable = False
        self._arm.__dict__.pop("sawyer_observation_space", None)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._arm.seed(seed)
        self._tick = None

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of a fresh episode."""
        self._tick, self.seen = 0, self._arm.reset()[0]
        return dm_env.restart(self._observation())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action` [4]: hand movement and grip; as in dm_env, the one after the last resets."""
        if self._tick is None or self._tick >= self.ticks:
            return self.reset()
        success = False
        for _ in range(REPEAT):
            self.seen, *_, info = self._arm.step(action)
            success = success or info["success"] > 0
        self._tick = self.ticks if success else self._tick + 1
        if success:
            return dm_env.termination(1.0, self._observation())
        if self._tick == self.ticks:
            return dm_env.truncation(0.0, self._observation())
        return dm_env.transition(0.0, self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        now, goal = self.seen[:18], self.seen[36:]
        return {name: value.astype(np.float32) for name, value in zip(SIZES, (now[:4], now[4:], goal), strict=True)}

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns name to float32 spec of `SIZES`."""
        return {name: specs.Array((size,), np.float32, name) for name, size in SIZES.items()}

    def action_spec(self) -> specs.BoundedArray:
        """Returns the spec of an action: float32 [4] in [-1, 1]."""
        return specs.BoundedArray((4,), np.float32, minimum=-1.0, maximum=1.0, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {}: everything is observed."""
        return {}


def _mend_welds() -> None:
    """Lets Meta-World 3.0.0 write its weld's 11 numbers into MuJoCo's array, which has more of them by now."""

    def reset_mocap_welds(self) -> None:
        for i in np.flatnonzero(self.model.eq_type == need("mujoco").mjtEq.mjEQ_WELD):
            self.model.eq_data[i, :11] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)

    need("metaworld.sawyer_xyz_env").SawyerMocapBase.reset_mocap_welds = reset_mocap_welds


class ScriptedPolicy:
    """Meta-World's own policy for any of its tasks; noisy executes its label with noise in most episodes."""

    def __init__(self, noisy: bool = False):
        self._noise = Noise(most=0.2) if noisy else None

    def begin(self, environment: MetaWorld, rng: np.random.Generator) -> None:
        """Starts an episode: draws its noise level."""
        self._policy = need("metaworld.policies").ENV_POLICY_MAP[theirs(environment.name)]()
        self._disturbance = Disturbance(self._noise, rng, environment.action_spec().shape)

    def step(self, environment: MetaWorld, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), both float32 [4] in [-1, 1]."""
        label = np.clip(self._policy.get_action(environment.seen), -1.0, 1.0).astype(np.float32)
        return self._disturbance.disturb(label), label


def make(name: str, ticks: int = TICKS) -> MetaWorld:
    """Returns one task, cut off after `ticks` ticks.

    Raises:
        ValueError: no such task here, or not 1 to 125 ticks.
        ModuleNotFoundError: Meta-World is not installed; says how to install it.
    """
    if name not in NAMES:
        raise ValueError(f"no Meta-World task {name!r} here; there are {list(NAMES)}")
    if not 1 <= ticks <= TICKS:
        raise ValueError(f"{name}: {ticks} ticks; an episode has 1 to {TICKS}")
    return MetaWorld(name, ticks)
