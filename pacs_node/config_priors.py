"""Settings of earlier examinations: where they are looked for, and how long a study waits for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pacs_node.config_listener import Port, Section


class PriorsSettings(Section):
    """Earlier chest CTs of the patient, to compare with (docs/priors.md)."""

    own: bool = Field(True, description="Look for them among the studies that this node has received.")
    retrieve: Literal["off", "wado-rs", "c-get", "c-move"] = Field(
        "off",
        description="How they are fetched from archive.destination: wado-rs from one of kind dicomweb, "
        "c-get or c-move from one of kind dicom. off: the archive is not asked.",
    )
    wait_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        120.0, description="The longest that a study waits for the archive; then it is analysed without."
    )
    number: Annotated[int, Field(ge=1, le=5)] = Field(
        1, description="How many are got ready, the latest first; the first that can be compared is used."
    )
    max_years: Annotated[float, Field(gt=0, le=50)] = Field(5.0, description="Older ones are not used.")
    max_mb: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        4096,
        description="Space that what is fetched for a study may take; storage.reserve_mb stays free besides.",
    )
    move_ae_title: str = Field(
        "",
        max_length=16,
        description="AE title that the archive moves to (c-move); it must know it, with this machine's "
        "address and move_port. Another one than the listener's: what comes there is no study to analyse.",
    )
    move_host: str = Field("127.0.0.1", description="Address to listen on for it; 0.0.0.0: every interface.")
    move_port: Port = Field(11113, description="TCP port for it, open only while something is being fetched.")

    @model_validator(mode="after")
    def _move_is_whole(self) -> PriorsSettings:
        if self.retrieve == "c-move" and not self.move_ae_title.strip():
            raise ValueError('retrieve = "c-move" needs move_ae_title')
        return self
