"""An agent that acts on chunks: it reads and decodes at its timeline's ticks alone, and executes what it decoded, in order."""

import numpy as np
import pytest

from hierarchy.corpus.codecs import decode
from hierarchy.timeline import periodic, recorded
from tests.hierarchy.model.two_rate_toys import CHUNK, agent_of, observations, toy, world


def acted(timeline):
    """The ticks of the controller's calls, the actions [T, B, A], and the ids [T, B, chunk * A] last decoded at each tick."""
    made, calls = toy("chunked"), []
    tick = made.acting.tick

    def spy(params, cache, packed, reading):
        calls.append(int(packed[0, 0]))
        return tick(params, cache, packed, reading)

    spied = made._replace(acting=made.acting._replace(tick=spy))
    agent, episodes = agent_of(spied, timeline), world(made)
    state, actions, ids = agent.begin([0, 1, 2]), [], []
    for now in range(made.ticks):
        action, state = agent.step(state, observations(episodes, now))
        actions.append(action)
        ids.append(np.asarray(state.decoded.ids))
    return calls, np.stack(actions), np.stack(ids), made.layout


@pytest.mark.parametrize("timeline", [periodic(64, CHUNK), recorded([0, 3, 5, *range(9, 64, 4)], [0, 3, 5, *range(9, 64, 4)])])
def test_what_was_decoded_is_executed_in_order(timeline):
    calls, actions, ids, layout = acted(timeline)
    assert calls == timeline.observed.tolist()
    size = layout.action.size // CHUNK
    for tick in range(64):
        since = timeline.observed[timeline.observed <= tick].max()
        expected = decode(layout.action.codec, ids[since])[:, size * (tick - since) : size * (tick - since + 1)]
        np.testing.assert_allclose(actions[tick], expected, atol=1e-6)
    assert len(np.unique(actions[:CHUNK, 0], axis=0)) == CHUNK


@pytest.mark.parametrize("timeline", [periodic(64, CHUNK + 1), recorded([2, 5], [2, 5]), periodic(50, CHUNK)])
def test_a_timeline_that_leaves_ticks_without_an_action_is_refused(timeline):
    with pytest.raises(ValueError, match=f"acts on chunks of {CHUNK} ticks"):
        agent_of(toy("chunked"), timeline)
