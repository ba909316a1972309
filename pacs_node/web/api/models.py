"""Operations on models: what there is, what it has done, whether it drifts, and who agrees with it."""

from __future__ import annotations

import logging
from pathlib import Path

from inference.errors import ModelUnavailableError
from inference.inventory import inventory
from pacs_node import model_use
from pacs_node.accounts import Permission
from pacs_node.agreement import agreement
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.drift import latest_reading
from pacs_node.web.api import model_schemas as schemas
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError

logger = logging.getLogger(__name__)


class Models:
    """The operations and what they need; none names a patient or a study."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database, self._pipeline, self._clock = database, settings.pipeline, clock

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        look = Permission.LOOK
        return (
            Operation("GET", "/models", look, self.list_models),
            Operation("GET", "/models/use", look, self.get_model_use),
            Operation("GET", "/models/drift", look, self.get_drift),
            Operation("GET", "/models/agreement", look, self.get_agreement),
        )

    def list_models(self) -> schemas.Models:
        """Models that the node has or could fetch, as their cards and the catalogue say."""
        try:
            found = inventory(Path(self._pipeline.models))
        except ModelUnavailableError as error:
            logger.exception("models can't be listed")
            raise ProblemError(Code.FAILED, str(error)) from None
        return schemas.Models(
            profile=self._pipeline.profile,
            models=tuple(schemas.Model.model_validate(model) for model in found),
        )

    def get_model_use(self) -> schemas.ModelUse:
        """What each pipeline version has done, and scores by week."""
        now = self._clock()
        with self._database.read() as session:
            uses, weeks = model_use.uses(session), model_use.weeks(session, now)
            refused = model_use.refusals(session, now)
        return schemas.ModelUse(
            versions=tuple(schemas.Use.model_validate(use) for use in uses),
            weeks=tuple(schemas.Week.model_validate(week) for week in weeks),
            score_edges=tuple(model_use.SCORE_EDGES),
            refusals=tuple(
                schemas.ReasonCount(reason_code=code or "", studies=count) for code, count in refused
            ),
        )

    def get_drift(self) -> schemas.Drift:
        """Recent results against earlier ones, by scanner, kernel and slice thickness."""
        with self._database.read() as session:
            reading = latest_reading(session)
        return schemas.Drift(reading=None if reading is None else schemas.Reading.model_validate(reading))

    def get_agreement(self) -> schemas.Agreement:
        """How often radiologists agreed, by pipeline version and week."""
        with self._database.read() as session:
            rows = agreement(session)
        return schemas.Agreement(weeks=tuple(schemas.Agreed.model_validate(row) for row in rows))
