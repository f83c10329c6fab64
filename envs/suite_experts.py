"""Scripted experts for bodies of the suite: every label is a function of the current observation alone.

Mean return and standard deviation over seeds 0 to 19, 1000 ticks (the ball: 250), of the clean expert, of the expert under its
noise, and of uniformly random actions; `python -m envs.suite_experts` prints this table (ticks a second of one core, all three
together):

    task                            expert         noisy        random  ticks/s
    cartpole_balance           999.8   0.2   989.3   9.5   360.4  74.2    72384
    cartpole_balance_sparse   1000.0   0.0  1000.0   0.0    53.0  29.2    75928
    cartpole_swingup           858.8   2.4   847.8  12.0    26.5  15.5    71995
    cartpole_swingup_sparse    770.7   2.9   758.8  23.4     0.0   0.0    74926
    pendulum_swingup           827.8  94.2   782.6 131.1     0.4   1.7   129181
    reacher_easy               976.1   9.8   974.0   9.2    27.6  45.5   107873
    reacher_hard               965.8  10.7   914.9  72.8     2.7   6.1   106864
    point_mass_easy            895.8  31.8   875.6  38.1     0.0   0.0   110570
    ball_in_cup_catch          232.7   8.3   229.0  12.5     8.5  37.1     8359

The pendulum's spread is that of its starts: value iteration on a grid of 720 x 481 states has 835 on the same seeds.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping

import dm_env
import numpy as np
from dm_env import specs
from scipy.linalg import expm, solve_discrete_are

from envs import suite, suite_tasks
from envs.noise import Disturbance, Noise

GRAVITY = 9.81
Label = Callable[[Mapping[str, np.ndarray]], tuple[float, ...]]


class SuiteExpert:
    """The expert for any task of `LABELS`; `noise` None executes the label itself."""

    def __init__(self, noise: Noise | None = None):
        self._noise = noise

    def begin(self, environment: dm_env.Environment, rng: np.random.Generator) -> None:
        """Starts an episode: draws its noise level."""
        self._label = LABELS[environment.name]
        self._disturbance = Disturbance(self._noise, rng, environment.action_spec().shape)

    def step(self, environment: dm_env.Environment, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), both float32 [actuators] in [-1, 1]."""
        label = np.array([_clip(u) for u in self._label(time_step.observation)], np.float32)
        return self._disturbance.disturb(label), label


# A rod of 1 m and 0.1 kg (a capsule of radius 0.045 m) on a cart of 1 kg that a full action pushes with 10 N.
POLE_KG, POLE_M, CART_KG, PUSH_N = 0.1, 0.5, 1.0, 10.0
POLE_INERTIA = 0.034425


def cartpole_balance(observation: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Returns the linear quadratic regulator's action at cart position 0."""
    x, cos, sin = observation["position"].tolist()
    velocity, spin = observation["velocity"].tolist()
    k = _cartpole_gain()
    return (-(k[0] * x + k[1] * math.atan2(sin, cos) + k[2] * velocity + k[3] * spin),)


def cartpole_swingup(observation: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Returns the regulator's action near the top, else one that pumps the pole's energy to its value there.

    The cart's acceleration follows E w cos(angle), a spring and a damper, with E the energy still missing; the push that
    gives this acceleration comes from the cart's and the pole's equations (partial feedback linearisation, Spong 1996).
    """
    x, cos, sin = observation["position"].tolist()
    velocity, spin = observation["velocity"].tolist()
    if cos > 0.6 and abs(spin) < 4.0:
        return cartpole_balance(observation)
    weight = POLE_KG * POLE_M
    energy = 0.5 * POLE_INERTIA * spin * spin + weight * GRAVITY * (cos - 1.0)
    push = 70.0 * energy * spin * cos - 1.4 * x - 6.3 * velocity
    spin_rate = weight * (GRAVITY * sin - push * cos) / POLE_INERTIA
    return (((CART_KG + POLE_KG) * push + weight * (spin_rate * cos - spin * spin * sin)) / PUSH_N,)


@functools.cache
def _cartpole_gain() -> list[float]:
    """Returns the gain [4] on (position, angle, velocity, spin) for the linear cartpole held for ticks of 0.01 s."""
    weight = POLE_KG * POLE_M
    inverse = np.linalg.inv([[CART_KG + POLE_KG, weight], [weight, POLE_INERTIA]])
    plant = np.zeros((5, 5))
    plant[0, 2] = plant[1, 3] = 1.0
    plant[2:4, 1] = inverse[:, 1] * weight * GRAVITY
    plant[2:4, 4] = inverse[:, 0] * PUSH_N
    held = expm(0.01 * plant)
    a, b = held[:4, :4], held[:4, 4:]
    effort = np.array([[0.1]])
    value = solve_discrete_are(a, b, np.diag([0.2, 1.0, 0.1, 0.1]), effort)
    return np.linalg.solve(effort + b.T @ value @ b, b.T @ value @ a)[0].tolist()


# A mass of 1 kg at 0.5 m; a full action is 1 Nm, a fifth of what gravity pulls when it is level.
PENDULUM_NM, PENDULUM_INERTIA = 0.5 * GRAVITY, 0.251


def pendulum_swingup(observation: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Returns a spring and damper's action where they can catch the pendulum, else one that pumps its energy.

    The catch: angle + spin / rate is the mode that falls, and full torque turns it back while it is below 1 / 4.905.
    """
    cos, sin = observation["orientation"].tolist()
    spin = observation["velocity"].item()
    angle = math.atan2(sin, cos)
    falling = angle + spin / math.sqrt(PENDULUM_NM / PENDULUM_INERTIA)
    if cos > 0.85 and abs(falling) < 0.3:
        return (-14.0 * angle - 1.8 * spin,)
    # A little more than the energy of the top, for what friction takes on the way.
    missing = 0.2 - (0.5 * PENDULUM_INERTIA * spin * spin + PENDULUM_NM * (cos - 1.0))
    # Smooth in both, so that who imitates it roughly errs little; never nothing, so that it starts from rest.
    return (math.tanh(5.0 * (spin + 0.02)) * _clip(3.0 * missing),)


LINK_M = 0.12


def reacher(observation: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Returns the torques of springs and dampers, joint by joint, to the pose with its wrist bent left and its finger there.

    The finger's place and the way to the target are both observed, so the target is too. The torque of a spring at the finger
    (the Jacobian's transpose times the way there) does the task as well, and is much harder to imitate (experiments/bodies.md).
    """
    shoulder, wrist = observation["position"].tolist()
    to_x, to_y = observation["to_target"].tolist()
    spin, wrist_spin = observation["velocity"].tolist()
    x = LINK_M * (math.cos(shoulder) + math.cos(shoulder + wrist)) + to_x
    y = LINK_M * (math.sin(shoulder) + math.sin(shoulder + wrist)) + to_y
    bent = 2.0 * math.acos(min(1.0, math.hypot(x, y) / (2.0 * LINK_M)))
    turn = math.remainder(math.atan2(y, x) - 0.5 * bent - shoulder, 2.0 * math.pi)
    return 2.0 * turn - 0.3 * spin, 2.0 * (bent - wrist) - 0.3 * wrist_spin


def point_mass(observation: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Returns a spring and damper's action towards the middle, axis by axis."""
    position, velocity = observation["position"].tolist(), observation["velocity"].tolist()
    return tuple(-50.0 * p - 6.0 * v for p, v in zip(position, velocity, strict=True))


# The cup is 0.1 m wide and deep, and the ball is in it within half of that of its middle, half of it below the rim. A spring of
# 20 N/m pulls the cup home and a full action is 5 N: four times its place holds it there, and a quarter more holds it up with
# the ball. The ball's joint starts 0.4 m below the cup's.
CUP_M, HOLD_PER_M, WEIGHT, BALL_BELOW_M = 0.05, 4.0, 0.26, 0.4


def ball_in_cup(observation: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Returns the motors' actions of a hold, a catch and a throw, mixed by where the ball is.

    In the cup: most of what keeps the cup where it is, so that its spring brings it home slowly. Above its middle: the cup goes
    under the ball, a little ahead of it, and down. Below: it jerks up, and to the side that lets the ball past the rim. The
    throw's gains were found by search for the return, under noise too (CMA-ES), and rounded; it is not symmetric, so that a ball
    that hangs still is thrown.
    """
    x, z, ball_x, ball_z = observation["position"].tolist()
    speed, _, ball_speed, ball_rise = observation["velocity"].tolist()
    right, over = ball_x - x, ball_z - BALL_BELOW_M - z
    hold = 0.8 * HOLD_PER_M * x, 0.8 * HOLD_PER_M * z + WEIGHT
    catch = math.tanh(HOLD_PER_M * x + 20.0 * (right + 0.056 * ball_speed)), -0.9
    aside = 1.7 - 37.0 * right + 4.5 * over + 2.8 * speed - 4.1 * ball_speed + 19.0 * right * ball_rise
    throw = math.tanh(aside), math.tanh(-8.3 - 37.0 * z - 45.0 * over - 0.6 * ball_rise)
    inside = _rise((CUP_M - abs(right)) / 0.008) * _rise((CUP_M - abs(over + CUP_M)) / 0.008)
    above = _rise((over + 0.127) / 0.04)
    mixed = zip(hold, catch, throw, strict=True)
    return tuple(inside * h + (1.0 - inside) * (above * c + (1.0 - above) * t) for h, c, t in mixed)


def _rise(x: float) -> float:
    """Returns a smooth step from 0 to 1 around 0."""
    return 0.5 + 0.5 * math.tanh(0.5 * x)


def _clip(u: float) -> float:
    return max(-1.0, min(1.0, u))


LABELS: dict[str, Label] = {
    "cartpole_balance": cartpole_balance,
    "cartpole_balance_sparse": cartpole_balance,
    "cartpole_swingup": cartpole_swingup,
    "cartpole_swingup_sparse": cartpole_swingup,
    "pendulum_swingup": pendulum_swingup,
    "reacher_easy": reacher,
    "reacher_hard": reacher,
    "point_mass_easy": point_mass,
    "ball_in_cup_catch": ball_in_cup,
}


class RandomExpert:
    """Uniformly random actions: the zero of normalised returns."""

    def begin(self, environment: dm_env.Environment, rng: np.random.Generator) -> None:
        """Starts an episode."""
        self._rng, self._spec = rng, environment.action_spec()

    def step(self, environment: dm_env.Environment, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), which are the same."""
        spec = self._spec
        if isinstance(spec, specs.DiscreteArray):
            action = self._rng.integers(spec.num_values, size=spec.shape)
        else:
            action = self._rng.uniform(spec.minimum, spec.maximum, spec.shape)
        action = np.asarray(action, spec.dtype)
        return action, action


def episode_return(environment: dm_env.Environment, expert: SuiteExpert | RandomExpert, seed: int) -> float:
    """Returns the sum of rewards of one episode of the expert."""
    environment.reseed(seed)
    time_step = environment.reset()
    expert.begin(environment, np.random.default_rng(seed))
    total = 0.0
    while not time_step.last():
        time_step = environment.step(expert.step(environment, time_step)[0])
        total += time_step.reward
    return total


def make(name: str, ticks: int | None = None) -> dm_env.Environment:
    """Returns the environment of a task of `LABELS`, cut off after `ticks` ticks; its own number of them by default."""
    if name in suite.BODIES:
        return suite.make(name, ticks or suite.SUITE_TICKS)
    return suite_tasks.make(name, ticks)


def main() -> None:
    """Prints the table at the top of this file."""
    print(f"{'task':<24}{'expert':>14}{'noisy':>14}{'random':>14}{'ticks/s':>9}")
    for name in LABELS:
        environment, cells, start = make(name), "", time.perf_counter()
        for expert in (SuiteExpert(), SuiteExpert(Noise()), RandomExpert()):
            returns = [episode_return(environment, expert, seed) for seed in range(20)]
            cells += f"{np.mean(returns):8.1f} {np.std(returns):5.1f}"
        speed = 60 * environment.ticks / (time.perf_counter() - start)
        print(f"{name:<24}{cells}{speed:9.0f}")


if __name__ == "__main__":
    main()
