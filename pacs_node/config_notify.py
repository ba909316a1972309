"""Settings of the notifications: what is told to whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pacs_node.config_listener import Hours, Port, Section, is_loopback
from pacs_node.config_web import is_safe_url

Topic = Literal[
    "study failed",
    "study analysed",
    "study not analysed",
    "delivery failed",
    "destination away",
    "destination back",
    "intake paused",
    "intake resumed",
    "disk low",
    "disk enough",
    "clock doubted",
    "studies missed",
    "audit broken",
    "login locked",
    "account changed",
]
"""What can be told."""

USUAL: tuple[Topic, ...] = (
    "study failed",
    "delivery failed",
    "destination away",
    "destination back",
    "intake paused",
    "intake resumed",
    "disk low",
    "disk enough",
    "clock doubted",
    "studies missed",
    "audit broken",
)


class NotifySettings(Section):
    """What is told by webhook and by e-mail; no message names a patient."""

    events: tuple[Topic, ...] = Field(USUAL, strict=False, description="What is told.")
    page_url: str = Field(
        "",
        description="Address of the page for links to studies, such as https://node.example; empty: none.",
    )
    webhook_url: str = Field(
        "", description="Gets each event as JSON by POST (https; http on this machine only); empty: none."
    )
    webhook_secret_file: str = Field(
        "",
        description="File with the secret of at least 24 characters that signs each request (HMAC-SHA256, "
        "as standardwebhooks.com has it).",
    )
    webhook_ca_file: str = Field(
        "", description="Whom to trust for its TLS (PEM); empty: the authorities of the system."
    )
    mail_host: str = Field("", description="SMTP server that takes our mail; empty: no mail is sent.")
    mail_port: Port = Field(587, description="Its TCP port.")
    mail_tls: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="none: to this machine only; its certificate is always checked."
    )
    mail_ca_file: str = Field(
        "", description="Whom to trust for its TLS (PEM); empty: the authorities of the system."
    )
    mail_user: str = Field("", description="Name to log in with; empty: without.")
    mail_password_file: str = Field("", description="File with its password.")
    mail_from: str = Field("", description="Sender's address.")
    mail_to: tuple[Annotated[str, Field(pattern=r"^[^\s@]+@[^\s@]+$")], ...] = Field(
        (), strict=False, description="Recipients' addresses."
    )
    give_up_hours: Hours = Field(
        24.0, description="A message that nobody took for so long is given up; older events are not told."
    )

    @model_validator(mode="after")
    def _webhook_is_whole(self) -> NotifySettings:
        if self.webhook_url and not is_safe_url(self.webhook_url.partition("?")[0]):
            raise ValueError("webhook_url must be https://..., or http://... on this machine")
        if self.webhook_url and not self.webhook_secret_file:
            raise ValueError("webhook_url needs webhook_secret_file: who gets it must know who sent it")
        if self.page_url and not is_safe_url(self.page_url):
            raise ValueError("page_url must be https://..., or http://... on this machine")
        return self

    @model_validator(mode="after")
    def _mail_is_whole(self) -> NotifySettings:
        if not self.mail_host:
            return self
        if not self.mail_from or "@" not in self.mail_from or not self.mail_to:
            raise ValueError("mail_host needs mail_from and mail_to")
        if self.mail_tls == "none" and not is_loopback(self.mail_host):
            raise ValueError('mail_tls = "none" is for a server on this machine only')
        if bool(self.mail_user) != bool(self.mail_password_file):
            raise ValueError("mail_user and mail_password_file need each other")
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """By what is told; empty: nothing is."""
        chosen = {"webhook": self.webhook_url, "mail": self.mail_host}
        return tuple(name for name, place in chosen.items() if place)
