"""Settings of the archive: the PACS that is asked what it has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pacs_node.config_listener import Seconds, Section


class ArchiveSettings(Section):
    """The PACS that is asked how many images a series has, and which studies never came here."""

    destination: str = Field(
        "",
        description="Name of the destination that is asked, by C-FIND or QIDO-RS; empty: nobody is asked.",
    )
    count_images: bool = Field(True, description="Ask how many images each series has before it is analysed.")
    answer_seconds: Seconds = Field(
        60.0,
        description="Without an answer after this silence, a series closes as if nobody could be asked.",
    )
    wait_seconds: Seconds = Field(
        600.0,
        description="A series of which the archive has more images waits this long after its last one.",
    )
    incomplete: Literal["label", "refuse"] = Field(
        "label",
        description="After that wait: label analyses what came and says so in the result; refuse does not.",
    )
    list_missed: bool = Field(
        True, description="Ask each night which studies it has that never came here (pacs-node missed)."
    )
    missed_hour: Annotated[int, Field(ge=0, le=23)] = Field(
        3, description="Hour of the day, UTC, of that question."
    )
    missed_days: Annotated[int, Field(ge=1, le=60)] = Field(
        3, description="Study dates that it covers: so many days, the last is yesterday."
    )
    missed_modality: str = Field(
        "CT", pattern=r"^[A-Z0-9_ ]{1,16}$", description="Modality that such a study must have."
    )
    missed_description: str = Field(
        "",
        max_length=64,
        description="Study Description that it must have, with * and ?; empty: any.",
    )
    missed_ae_title: str = Field(
        "",
        max_length=16,
        description="Retrieve AE Title (0008,0054) that it must have; empty: any.",
    )
