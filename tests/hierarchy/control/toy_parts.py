"""What acts in the tests of real time: in a file of its own, since every planner that is started imports it."""

import tests.conftest  # noqa: F401 (JAX as the tests run it)
from hierarchy.control.planner_process import Parts
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import toy

KIND = "film"


def make() -> Parts:
    """Returns what acts, in whichever process."""
    made = toy(KIND, "mean")
    return made.acting, made.params, Letters()
