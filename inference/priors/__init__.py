"""An examination against an earlier one: lungs registered, nodules matched, change and doubling time."""

from inference.priors.compare import compare, keep_tracking
from inference.priors.types import Look, PriorExamination

__all__ = ["Look", "PriorExamination", "compare", "keep_tracking"]
