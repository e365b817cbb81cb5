"""Ranks that hold up the others: in each step their own work takes much longer than that of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mnist_dist.distributed.step_timer import OWN_PHASES, Phase

RATIO = 1.5
"""Own seconds of a step, as a multiple of the median of the other ranks, above which a rank is behind."""
ROWS = 3
"""Consecutive rows after which a rank counts as behind, and after which it no longer does."""
MIN_WAIT = 0.05
"""Seconds that a rank must cost the others in a row: less is noise, as in rows of a few short steps."""
PHASE_NAMES: dict[Phase, str] = {
    "data": "gathering the batch",
    "compute": "the forward and backward pass",
    "optimizer": "the optimizer's update",
    "other": "what lies between two steps",
}
Times = dict[Phase, float]
"""Own seconds of a step on one rank, by phase, without communication."""


@dataclass(frozen=True)
class Straggler:
    """A rank that is behind."""

    rank: int
    host: str
    """The machine's name."""
    seconds: float
    """Own seconds of a step, in the last row."""
    ratio: float
    """These as a multiple of the median of the other ranks."""
    phase: Phase
    """What takes longest, compared with the median of the other ranks."""
    phase_seconds: float
    others_phase_seconds: float
    """The median of the other ranks."""

    def describe(self) -> str:
        """Rank, machine, times and phase in words."""
        return (
            f"rank {self.rank} on {self.host} holds up the others: its own work takes {format_ms(self.seconds)} a "
            f"step, {self.ratio:.1f} times the median of theirs (over {RATIO} in {ROWS} rows); it spends longer on "
            f"{PHASE_NAMES[self.phase]}: {format_ms(self.phase_seconds)} against {format_ms(self.others_phase_seconds)}"
        )


class StragglerDetector:
    """Finds the ranks that are behind, row by row.

    Args:
        hosts: the machine of each rank.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self.slow_rows = [0] * len(hosts)  # by rank: consecutive rows above RATIO, or below it as a negative number
        self.behind: dict[int, Straggler] = {}

    def update(self, times: Sequence[Times], steps: int) -> tuple[list[Straggler], list[int]]:
        """Take the times of a row, by rank.

        Args:
            steps: number of steps in the row.

        Returns:
            The ranks that are behind since this row, the slowest first; and those that are no longer.
        """
        seconds = [sum(each.values()) for each in times]
        ratios = ratios_to_others(seconds)
        began, ended = [], []
        for rank, ratio in enumerate(ratios):
            rows = self.slow_rows[rank]
            wait = steps * seconds[rank] * (1 - 1 / ratio) if ratio > 0 else 0.0
            is_slow = ratio > RATIO and wait >= MIN_WAIT
            self.slow_rows[rank] = max(rows, 0) + 1 if is_slow else min(rows, 0) - 1
            if rank in self.behind and self.slow_rows[rank] <= -ROWS:
                del self.behind[rank]
                ended.append(rank)
            elif rank in self.behind or self.slow_rows[rank] == ROWS:
                if rank not in self.behind:
                    began.append(rank)
                self.behind[rank] = describe_straggler(rank, self.hosts[rank], ratio, times)
        return sorted((self.behind[rank] for rank in began), key=lambda each: -each.ratio), ended


def ratios_to_others(seconds: Sequence[float]) -> list[float]:
    """Each rank's seconds as a multiple of the median of the other ranks; 1 where that is 0.

    Args:
        seconds: of two ranks at least.
    """
    ranks = sorted(range(len(seconds)), key=seconds.__getitem__)
    ranked = [seconds[rank] for rank in ranks]
    middle = ((len(seconds) - 2) // 2, (len(seconds) - 1) // 2)  # of all but one
    ratios = [1.0] * len(seconds)
    for position, rank in enumerate(ranks):
        others = sum(ranked[index + (index >= position)] for index in middle) / 2
        if others > 0:
            ratios[rank] = seconds[rank] / others
    return ratios


def describe_straggler(rank: int, host: str, ratio: float, times: Sequence[Times]) -> Straggler:
    """The straggler of this rank, from the times of all ranks."""
    own = times[rank]
    others = {phase: median(each[phase] for i, each in enumerate(times) if i != rank) for phase in OWN_PHASES}
    phase = max(OWN_PHASES, key=lambda phase: own[phase] - others[phase])
    return Straggler(rank, host, sum(own.values()), ratio, phase, own[phase], others[phase])


def format_ms(seconds: float) -> str:
    """12.3 ms"""
    return f"{1000 * seconds:.1f} ms"
