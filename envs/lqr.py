"""Linear-quadratic regulators of the cartpole, designed on finite differences of the physics at the control tick."""

import functools

import numpy as np
import scipy.linalg

from envs import cartpole

STATE_COST = np.diag([6.0, 1.0, 0.1, 0.1])
ACTION_COST = np.array([[1.5]])
REACH_M = 0.8
"""A goal further away than this is approached as if it were this far: the linear model holds near upright only."""


@functools.cache
def hold_model(hold: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (A [4, 4], B [4, 1]) of `hold` ticks under one held action."""
    a, b = cartpole.linear_model()
    power, total = np.eye(4), np.zeros((4, 1))
    for _ in range(hold):
        power, total = a @ power, a @ total + b
    return power, total


@functools.cache
def gain(hold: int = 1) -> np.ndarray:
    """Returns K [4] of the best linear controller u = -K s that holds each action for `hold` ticks.

    The cost is that of every tick under the held action, cross term included, so that each hold has its own best design.
    """
    state, action, cross = np.zeros((4, 4)), np.zeros((1, 1)), np.zeros((4, 1))
    for ticks in range(hold):
        a, b = hold_model(ticks)
        state += a.T @ STATE_COST @ a
        cross += a.T @ STATE_COST @ b
        action += b.T @ STATE_COST @ b + ACTION_COST
    a, b = hold_model(hold)
    p = scipy.linalg.solve_discrete_are(a, b, state, action, s=cross)
    return np.linalg.solve(action + b.T @ p @ b, b.T @ p @ a + cross.T)[0]


def act(states: np.ndarray, goals: np.ndarray, hold: int = 1) -> np.ndarray:
    """Returns actions [...] in [-1, 1] for states [..., 4] and goals [...] in m."""
    error = np.array(states, dtype=np.float64)
    error[..., 0] = np.clip(error[..., 0] - goals, -REACH_M, REACH_M)
    return np.clip(-error @ gain(hold), -1.0, 1.0)


def predict(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Returns states [..., 4] one tick after states [..., 4] and actions [...], by the linear model."""
    a, b = hold_model(1)
    return states @ a.T + actions[..., None] * b[:, 0]
