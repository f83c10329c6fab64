"""The planner on a cart without a pole, whose best control is known."""

import dataclasses

import mujoco
import numpy as np
import pytest

from envs.mppi import Planner, Search

CART = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="target" type="sphere" size="0.1" contype="0" conaffinity="0"/>
    <site name="spot"/>
    <body name="cart">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="4"/></actuator>
  <sensor><framepos name="at" objtype="xbody" objname="cart"/></sensor>
</mujoco>
"""
SEARCH = Search(horizon=12, steps=5, samples=16)
TICK_S = 0.05


def far(model, sensors, controls):
    """Pays for going to the target's place."""
    return -np.abs(sensors["at"][..., 0] - model.geom("target").pos[0])


def world() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(CART)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def state_of(model, data) -> np.ndarray:
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    return state


def planner(search=SEARCH, seed=0, model=None, reward=far) -> tuple[Planner, mujoco.MjModel, mujoco.MjData]:
    made = Planner(mujoco.MjModel.from_xml_string(CART), reward, search, TICK_S)
    here, data = world()
    made.begin(model or here, state_of(here, data), np.random.default_rng(seed))
    return made, here, data


def drive(made, model, data, ticks) -> list[float]:
    places = []
    for _ in range(ticks):
        data.ctrl[:] = made.act(state_of(model, data))
        mujoco.mj_step(model, data, 5)
        places.append(float(data.qpos[0]))
    return places


@pytest.mark.parametrize("goal", [-0.8, 0.6])
def test_the_cart_goes_where_the_world_put_the_target_and_stays(goal):
    model, _ = world()
    model.geom("target").pos[0] = goal
    made, here, data = planner(model=model)
    places = drive(made, here, data, 60)
    assert np.abs(np.array(places[30:]) - goal).max() < 0.05


def test_the_same_generator_gives_the_same_actions_and_another_one_does_not():
    one, same, other = (drive(*planner(seed=seed), 5) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_plan_predicts_what_the_world_then_does():
    """The reward's sensors are those of the ends of ticks, one step of physics before the next one begins."""
    seen = {}

    def reward(model, sensors, controls):
        seen.update(at=sensors["at"][0, :, 0].copy(), controls=controls[0].copy())
        return np.zeros(controls.shape[:2])

    _, model, data = planner(dataclasses.replace(SEARCH, first=1), reward=reward)
    data.qpos[0], data.qvel[0] = 0.3, -1.0
    made, *_ = planner(reward=reward)
    made._plan = np.random.default_rng(0).uniform(-1, 1, (SEARCH.knots, 1))
    made._improve(state_of(model, data))
    for tick in range(SEARCH.horizon):
        data.ctrl[:] = seen["controls"][tick]
        for step in range(SEARCH.steps):
            if step == SEARCH.steps - 1:
                assert data.qpos[0] == pytest.approx(seen["at"][tick], abs=1e-12)
            mujoco.mj_step(model, data)


def test_one_tick_later_the_same_control_is_one_tick_nearer():
    made, *_ = planner(dataclasses.replace(SEARCH, horizon=9, knots=5))
    made._plan = knots = np.random.default_rng(0).uniform(-1, 1, (5, 1))
    before = np.interp(np.arange(10.0), np.linspace(0, 8, 5), knots[:, 0])
    after = made._later @ knots
    at_knots = np.minimum(np.linspace(0, 8, 5) + 1.0, 8.0)
    np.testing.assert_allclose(after[:, 0], np.interp(at_knots, np.linspace(0, 8, 5), knots[:, 0]))
    np.testing.assert_allclose((made._spline @ knots)[:, 0], before[:9])


def test_a_rollout_that_breaks_never_wins():
    def broken(model, sensors, controls):
        at = far(model, sensors, controls)
        at[1::2] = np.nan
        return at

    made, model, data = planner(reward=broken)
    assert np.isfinite(drive(made, model, data, 5)).all()
