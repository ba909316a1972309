"""Tables of the notifications."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from pacs_node.db import Base


class Notice(Base):
    """One event for one channel, the same bytes at each attempt. It names no patient."""

    __tablename__ = "notice"
    __table_args__ = (
        UniqueConstraint("seq", "channel"),
        Index("notice_queue", "channel", "next_attempt_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    #: of the row of the audit record that it tells
    seq: Mapped[int]
    #: webhook or mail
    channel: Mapped[str]
    topic: Mapped[str]
    #: the same at each attempt: receivers tell repetitions by it
    message_id: Mapped[str]
    #: JSON
    body: Mapped[str]
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    #: None once it was taken or given up
    next_attempt_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    #: what came of the last attempt
    status: Mapped[str | None]


class NoticePosition(Base):
    """How far the audit record was read for messages."""

    __tablename__ = "notice_position"

    name: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int]
