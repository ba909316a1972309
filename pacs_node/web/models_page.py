"""The models page: what runs, how well it was measured, what it has done, whether it drifts, who agrees."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from inference.errors import ModelUnavailableError
from inference.registry import Pipeline, load_pipeline
from pacs_node import model_use
from pacs_node.accounts import Permission
from pacs_node.agreement import Agreement, Estimate, agreement, verdict_rows
from pacs_node.audit import Event
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.drift import DIMENSIONS, MEASURES, latest_reading
from pacs_node.model_use import SCORE_EDGES, WEEKS, Use, Week
from pacs_node.web import plots
from pacs_node.web.guard import Looks, Rule
from pacs_node.web.render import Renderer

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model in use and what it was used for."""

    card: dict[str, Any]
    studies: int
    first_at: datetime | None
    last_at: datetime | None


class ModelPages:
    """Views of the models.

    Parameters
    ----------
    database
        Holds what was counted.
    settings
        The pipeline that is in use.
    renderer, looks
        Shared with the other pages.
    """

    def __init__(self, database: Database, settings: Settings, renderer: Renderer, looks: Looks) -> None:
        self._database = database
        self._settings = settings
        self._renderer = renderer
        self._looks = looks
        self._pipeline: Pipeline | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its routes."""
        return (
            Rule("GET", "/models", Permission.LOOK, self.models),
            Rule("GET", "/models/agreement", Permission.LOOK, self.agreement),
            Rule("GET", "/models/verdicts", Permission.LOOK, self.verdicts),
        )

    def models(self, request: Request) -> Response:
        """Everything about the models; names no patient, so it is no look at one."""
        now = self._renderer.clock()
        pipeline, problem = self._in_use()
        with self._database.read() as session:
            uses, cards = model_use.uses(session), model_use.cards_of(session)
            weeks, refused = model_use.weeks(session, now), model_use.refusals(session, now)
            reading = latest_reading(session)
            totals = agreement(session, weekly=False)
            weekly = agreement(session, since=now - timedelta(weeks=WEEKS - 1))
        return self._renderer.page(
            request,
            "models.html",
            here="models",
            pipeline=pipeline,
            problem=problem,
            models=_lines(pipeline, uses, cards),
            uses=[(use, _names(cards.get(use.pipeline_version, ()))) for use in uses],
            weeks=weeks,
            drawn=_drawn(weeks),
            bins=_bins(),
            refused=refused,
            reading=reading,
            drift=self._settings.drift,
            dimensions=DIMENSIONS,
            measures=MEASURES,
            agreement_totals=totals,
            agreement_weeks=weekly,
        )

    def agreement(self, request: Request) -> Response:
        """The agreement by week as a file; no study stands in it."""
        with self._database.read() as session:
            rows = [_flat(row) for row in agreement(session)]
        return self._file(request, "agreement", rows)

    def verdicts(self, request: Request) -> Response:
        """Every verdict as a file, with the UID of its study."""
        form = _form(request)
        self._looks.note(request, Event.VERDICTS_EXPORTED, every=True, format=form)
        with self._database.read() as session:
            rows = [*verdict_rows(session)]
        return self._file(request, "verdicts", rows)

    def _in_use(self) -> tuple[Pipeline | None, str]:
        """The configured pipeline, read once; or why it can't be used."""
        settings = self._settings.pipeline
        try:
            if self._pipeline is None:
                self._pipeline = load_pipeline(settings.profile, models=Path(settings.models))
        except ModelUnavailableError as error:
            return None, str(error)
        return self._pipeline, ""

    def _file(self, request: Request, name: str, rows: Sequence[dict[str, Any]]) -> Response:
        form, now = _form(request), self._renderer.clock()
        headers = {"Content-Disposition": f'attachment; filename="{name}-{now:%Y%m%dT%H%M%SZ}.{form}"'}
        if form == "json":
            return Response(json.dumps(rows, indent=1), media_type="application/json", headers=headers)
        return Response(_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


def _form(request: Request) -> str:
    form = request.query_params.get("format", "")
    if form not in {"csv", "json"}:
        raise HTTPException(400, "There is no such format; known: csv, json.")
    return form


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lines for a spreadsheet, in which nothing is taken for a formula."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.writer(out)
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return out.getvalue()


def _cell(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


def _flat(row: Agreement) -> dict[str, Any]:
    """One line: an estimate becomes four values."""
    out: dict[str, Any] = {}
    for name in Agreement.__slots__:
        value = getattr(row, name)
        if isinstance(value, Estimate):
            out |= {f"{name}_{part}" if part != "value" else name: v for part, v in asdict(value).items()}
        else:
            out[name] = value
    return out


def _lines(
    pipeline: Pipeline | None, uses: Sequence[Use], cards: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[ModelLine]:
    """The models in use; a model counts the studies of every pipeline version that had it."""
    lines = []
    for card in () if pipeline is None else pipeline.cards:
        identity = (card.name, card.version, card.weights_sha256)
        mine = [
            use
            for use in uses
            if any(
                (other.get("name"), other.get("version"), other.get("weights_sha256")) == identity
                for other in cards.get(use.pipeline_version, ())
            )
        ]
        lines.append(
            ModelLine(
                asdict(card),
                sum(use.analysed for use in mine),
                min((at for use in mine if (at := use.analysed_first_at) is not None), default=None),
                max((at for use in mine if (at := use.analysed_last_at) is not None), default=None),
            )
        )
    return lines


def _names(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{card.get('name', '')} {card.get('version', '')}" for card in cards]


def _bins() -> list[str]:
    edges = [0.0, *SCORE_EDGES, 1.0]
    return [f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in pairwise(edges)]


def _drawn(weeks: Sequence[Week]) -> dict[str, Any]:
    labels = [week.week for week in weeks]
    return {
        "use": plots.bars("use", "Studies analysed, by week", labels, [week.analysed for week in weeks]),
        "findings": plots.bars(
            "findings", "Findings for each study, by week", labels, [week.mean_findings for week in weeks]
        ),
        "scores": plots.shares(
            "scores",
            "Studies with findings by their highest malignancy, shares by week; darker is higher",
            labels,
            [week.scores for week in weeks],
            _bins(),
        ),
    }
