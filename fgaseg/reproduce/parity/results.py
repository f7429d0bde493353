"""Errors of the compared tensors, and the limits that they have to keep."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

# An error is the largest difference as a share of the recording's largest absolute value.
STAGE_LIMIT = 1e-4  # of every stage
MEDIAN_LIMIT = 1e-5  # of the median over the stages of a case
# Of gradients. Rounding alone moves the released code's own by up to 2.5e-4 (its float32 beside our float64; ours in
# float32 by 2.3e-4), because sums over all pixels of all classes cancel and ReLU has a kink.
GRADIENT_LIMIT = 1e-3


@dataclass(frozen=True)
class StageResult:
    """One recorded tensor."""

    name: str
    error: float | None  # None: our model does not compute this tensor
    note: str = ""

    @property
    def limit(self) -> float:
        """The largest error that passes."""
        return GRADIENT_LIMIT if self.name.startswith("grad") else STAGE_LIMIT

    @property
    def passed(self) -> bool:
        """Within the limit, or not compared; NaN fails."""
        return self.error is None or self.error <= self.limit


@dataclass(frozen=True)
class CaseResult:
    """All recorded tensors of one file."""

    name: str
    stages: list[StageResult]
    seconds: float

    @property
    def errors(self) -> list[float]:
        """Of the stages that were compared."""
        return [stage.error for stage in self.stages if stage.error is not None]

    @property
    def worst(self) -> float:
        """The largest error except those of gradients."""
        return max((e for e, limit in self._with_limits() if limit == STAGE_LIMIT), default=float("nan"))

    @property
    def worst_gradient(self) -> float | None:
        """The largest error of a gradient; None if the case has none."""
        return max((e for e, limit in self._with_limits() if limit == GRADIENT_LIMIT), default=None)

    @property
    def median(self) -> float:
        """Median over the stages of their errors."""
        return statistics.median(self.errors) if self.errors else float("nan")

    @property
    def passed(self) -> bool:
        """Whether all limits are kept; a case of which nothing was compared does not pass."""
        return self.median <= MEDIAN_LIMIT and all(stage.passed for stage in self.stages)

    def dump(self) -> dict[str, Any]:
        """The fields and the figures derived from them, as plain JSON types."""
        figures = {"worst": self.worst, "worst_gradient": self.worst_gradient, "median": self.median}
        return {**asdict(self), **figures, "passed": self.passed}

    def _with_limits(self) -> list[tuple[float, float]]:
        return [(stage.error, stage.limit) for stage in self.stages if stage.error is not None]


def verdict(case: CaseResult) -> str:
    """One line: the errors that decide, and the decision."""
    limits = f"limits {STAGE_LIMIT:.0e}, of gradients {GRADIENT_LIMIT:.0e}, median {MEDIAN_LIMIT:.0e}"
    decision = "passes" if case.passed else f"FAILS ({limits})"
    gradients = "" if case.worst_gradient is None else f" (of gradients {case.worst_gradient:.1e})"
    return (
        f"{case.name}: worst element {case.worst:.1e}{gradients}, median stage {case.median:.1e}: {decision}, "
        f"{case.seconds:.0f} s"
    )
