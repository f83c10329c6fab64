"""Budgets of a batch: how much each of its rows holds, and what is drawn for a segment."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class AbovePacking:
    """Budgets of a planner above the planner, and what is drawn for its link to the level below; times are in ticks.

    tokens, plans: of a row, plans being those that updates below see. lead_in, reread, ratios, latencies: as the planner's.
    """

    tokens: int = 64
    plans: int = 64
    lead_in: int = 126
    reread: int = 128
    ratios: tuple[int, ...] = (16, 64)
    latencies: tuple[int, ...] = tuple(range(9))

    def __post_init__(self) -> None:
        if self.reread < 1 or self.lead_in < 0:
            raise ValueError("packing: of a planner above, reread is at least 1 tick and lead_in at least 0")


@dataclasses.dataclass(frozen=True)
class Packing:
    """Budgets of a batch, and what is drawn for each of its segments. All times are in ticks.

    rows: B. controller_tokens: L. planner_tokens: S. plans: J, plans that ticks of a row see.
    action_targets: M of each action head of numbers that a layout uses. sub_goal_targets: M of the sub-goal, where a layout has
    one. text_targets: M of the controller's text and of the planner's, where a layout says text. patches: M of images.
    segment_ticks: ticks with loss in a segment; None for the whole episode, or as much as a row takes.
    lead_in: ticks before them at weight 0: N (W - 1) for a controller of N layers that each see W ticks.
    planner_lead_in: the same for a planner that does not read from tick 0.
    planner_reread, controller_reread: words are read again after this long; half of the reader's window or less.
    draw_places: patches' rows and columns are drawn within their intervals, as in training; else they are the mean.
    ratios, latencies: one of each is drawn for a segment, and a phase. wait_for_first: share that waits for its first plan.
    recorded_timelines: share of the segments of episodes that tell their timeline (`PLAN_READY`) which are cut under it; an
    observation may depend on when plans came. irregular: share of the others whose gaps are drawn one by one.
    above: of the planners above the planner, the nearest first.
    """

    rows: int = 8
    controller_tokens: int = 512
    planner_tokens: int = 320
    plans: int = 256
    action_targets: int = 512
    sub_goal_targets: int = 320
    text_targets: int = 512
    patches: int = 64
    segment_ticks: int | None = 32
    lead_in: int = 14
    planner_lead_in: int = 126
    draw_places: bool = True
    planner_reread: int = 128
    controller_reread: int = 128
    ratios: tuple[int, ...] = (1, 4, 16, 32)
    latencies: tuple[int, ...] = tuple(range(9))
    wait_for_first: float = 0.0
    recorded_timelines: float = 0.0
    irregular: float = 0.0
    above: tuple[AbovePacking, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "controller_tokens", "planner_reread", "controller_reread"):
            if getattr(self, name) < 1:
                raise ValueError(f"packing: {name} is {getattr(self, name)}, and is at least 1")
        if self.segment_ticks is not None and self.segment_ticks < 1:
            raise ValueError(f"packing: segment_ticks is {self.segment_ticks}: at least 1, or None for whole episodes")
        if min(self.lead_in, self.planner_lead_in) < 0:
            raise ValueError("packing: lead-ins are at least 0 ticks")
        for name in ("wait_for_first", "recorded_timelines", "irregular"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"packing: {name} is {getattr(self, name)}, and is a share, 0 to 1")
