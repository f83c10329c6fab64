"""Your own dm_env and episodes to an agent that acts: `python -m experiments.own_environment`; see own_environment.md."""

import tempfile
from pathlib import Path

import dm_env
import numpy as np

from envs import loop, recording
from hierarchy import layout, timeline
from hierarchy.control import acting, agent
from hierarchy.corpus import codecs, mixture, packing
from hierarchy.model import config, network
from hierarchy.training import learner, trainer


class Point(dm_env.Environment):  # on a plane, for 32 ticks; the reward is 1 at the goal and falls with the distance
    observation_spec = staticmethod(lambda: {name: dm_env.specs.Array((2,), np.float32, name) for name in ("goal", "position")})
    action_spec = staticmethod(lambda: dm_env.specs.BoundedArray((2,), np.float32, -0.2, 0.2, "move"))
    rng = np.random.default_rng(0)

    def reset(self):
        self.tick, (self.goal, self.position) = 0, self.rng.uniform(-1, 1, (2, 2))
        return dm_env.restart({"goal": self.goal, "position": self.position})

    def step(self, action):
        self.tick, self.position = self.tick + 1, self.position + action
        after = dm_env.truncation if self.tick == 32 else dm_env.transition
        return after(1 - np.linalg.norm(self.goal - self.position), {"goal": self.goal, "position": self.position})


def record(random, count):  # an expert goes straight to the goal; a random share of its actions gives labels for coming back
    class Expert:
        begin = staticmethod(lambda world, rng: None)

        def step(self, world, time_step):
            label = np.clip(world.goal - world.position, -0.2, 0.2)
            return world.rng.uniform(-0.2, 0.2, 2) if world.rng.random() < random else label, label

    return [recording.record(Point(), Expert(), seed, "point", tick_s=0.1) for seed in range(count)]


def main(steps=500, count=64):
    goal, position = (layout.Field(name, layout.Continuous(5.0, 2.0), 2) for name in ("goal", "position"))
    move = layout.Field("move", codecs.bounded_from_spec(Point().action_spec()), 2)
    schema = layout.Schema((layout.Layout("point", planner=(goal,), controller=(position,), action=move),))
    budgets = packing.Packing(rows=4, controller_tokens=192, planner_tokens=64, plans=64, action_targets=192)
    batches = mixture.Mixture(schema, budgets, [mixture.Part(record(0.5, 400), "point")])
    model, learning = network.build(config.PRESETS["debug"], schema), learner.LearnerConfig(steps, 0, peak_rate=4e-3)
    load, folder = lambda step: mixture.Loader(batches, 0, step), Path(tempfile.mkdtemp())
    trained = trainer.train(model, learning, trainer.TrainerConfig(), load, [], folder)
    pilot = agent.Agent(acting.compile_acting(model, schema, "point"), trained.params, timeline.periodic(32, ratio=8), horizon=32)
    acted = loop.returns(loop.run([Point() for _ in range(count)], pilot, range(count)))
    scale = ([episode.reward.sum() for episode in record(share, count)] for share in (1.0, 0.0))
    return {name: float(np.mean(each)) for name, each in zip(("random", "expert", "agent"), (*scale, acted), strict=True)}


if __name__ == "__main__":
    print(main())
