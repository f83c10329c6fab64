"""Deadlines in wall-clock time: tick n is due at t0 + n * period, whatever happened before.

All times are ns of the system's monotonic clock, which processes share.
"""

import time

SPIN_NS = 300_000


class Clock:
    """A controller's clock. period_s: of a tick; 0 for one that never waits, as fast as possible."""

    def __init__(self, period_s: float):
        if period_s < 0:
            raise ValueError(f"a period of {period_s} s: it is above 0, or 0 to go as fast as possible")
        self.period_s = period_s
        self._start = 0

    @property
    def paced(self) -> bool:
        """Whether there are deadlines at all."""
        return self.period_s > 0

    def start(self, at: int | None = None) -> None:
        """Makes `at` (ns; now if not given) the deadline of tick 0."""
        self._start = time.monotonic_ns() if at is None else at

    def rephase(self, tick: int, at: int) -> None:
        """Makes `at` (ns) the deadline of this tick, and moves all others with it."""
        self._start = at - (self.deadline(tick) - self._start)

    def deadline(self, tick: int) -> int:
        """Returns when a tick is due: reckoned from tick 0, so that lateness never adds up. As of `start` if not paced."""
        return self._start + round(tick * self.period_s * 1e9)

    def approach(self, tick: int, lead_ns: int) -> bool:
        """Sleeps until so long before a tick is due; returns False, at once, where it is not as far away, or not due at all."""
        now = time.monotonic_ns()
        if not self.paced or self.deadline(tick) - now < lead_ns:
            return False
        time.sleep((self.deadline(tick) - now - lead_ns) / 1e9)
        return True

    def wait(self, tick: int) -> int:
        """Returns the time, at once if the deadline has passed, else as soon after it as can be: sleeps, then spins."""
        now = time.monotonic_ns()
        if not self.paced:
            return now
        deadline = self.deadline(tick)
        if deadline - now > SPIN_NS:
            time.sleep((deadline - now - SPIN_NS) / 1e9)
        while (now := time.monotonic_ns()) < deadline:
            pass
        return now
