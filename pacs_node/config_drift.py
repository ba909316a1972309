"""Settings of the comparison of recent results with earlier ones."""

from __future__ import annotations

from pydantic import Field

from pacs_node.config_listener import Section


class DriftSettings(Section):
    """When results that differ from earlier ones of the same pipeline are an alarm."""

    recent_days: int = Field(28, ge=1, le=365, description="Results of so many days are compared ...")
    reference_days: int = Field(180, ge=1, le=3650, description="... with those of so many days before.")
    least_studies: int = Field(
        50, ge=20, description="No comparison with fewer studies on either side: chance alone would differ."
    )
    distance: float = Field(
        0.2,
        gt=0,
        le=1,
        description="An alarm from this Kolmogorov-Smirnov distance on (the largest difference of the two "
        "cumulative shares), if chance explains it in less than 5 % over all comparisons.",
    )
