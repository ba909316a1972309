"""Tables of what HL7 messages told of patients."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from pacs_node.db import Base


class ClinicalMessageRow(Base):
    """One message that was taken. The same message again adds no second row."""

    __tablename__ = "clinical_message"
    __table_args__ = (UniqueConstraint("sender", "control_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(index=True)
    #: MSH-3 and MSH-4
    sender: Mapped[str]
    address: Mapped[str]
    control_id: Mapped[str]
    kind: Mapped[str]
    #: SHA-256 of what it says
    digest: Mapped[str]
    patient_id: Mapped[str] = mapped_column(index=True)
    #: YYYYMMDD or a part of it; empty where it isn't known
    birth_date: Mapped[str]
    #: female, male or empty
    sex: Mapped[str]
    facts: Mapped[list[ClinicalFactRow]] = relationship(
        back_populates="message", order_by="ClinicalFactRow.id", cascade="all, delete-orphan"
    )


class ClinicalFactRow(Base):
    """One value of a message."""

    __tablename__ = "clinical_fact"

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[int] = mapped_column(ForeignKey("clinical_message.id"), index=True)
    #: empty where the message has none
    accession_number: Mapped[str]
    item: Mapped[str]
    value: Mapped[Any] = mapped_column(JSON)
    #: of a number
    unit: Mapped[str]
    #: ISO date, None where the message has none
    on_date: Mapped[str | None]
    source: Mapped[str]
    message: Mapped[ClinicalMessageRow] = relationship(back_populates="facts")
