"""The cartpole patrol with a camera on its pads: where they lie is a picture, not four numbers."""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs

from envs import drawing, patrol, patrol_experts
from hierarchy.episode import Episode

HEIGHT, WIDTH = 16, 128


class PatrolCamera(patrol.Patrol):
    """The same task. It also observes camera, uint8 [16, 128, 3]: the pads as they lie, which does not change in an episode."""

    def reset_to(self, scene: patrol.Scene) -> dm_env.TimeStep:
        self._camera = drawing.pads_view(HEIGHT, WIDTH, scene.track.pads, self.rules.zone)
        return super().reset_to(scene)

    def _observation(self) -> dict[str, np.ndarray]:
        return super()._observation() | {"camera": self._camera}

    def observation_spec(self) -> dict[str, specs.Array]:
        return super().observation_spec() | {"camera": specs.Array((HEIGHT, WIDTH, 3), np.uint8, name="camera")}


def augment(episode: Episode, rng: np.random.Generator) -> Episode:
    """Returns the episode under a random renaming of the colours and, every other time, mirrored; the picture is drawn anew."""
    episode = patrol_experts.augment(episode, rng)
    view = drawing.pads_view(HEIGHT, WIDTH, episode.observation["pads"][0], patrol.Rules().zone)
    camera = np.broadcast_to(view, episode.observation["camera"].shape)
    return dataclasses.replace(episode, observation={**episode.observation, "camera": camera})
