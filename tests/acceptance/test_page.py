"""The page of a node that has received studies: what an administrator asks of it, in at most three clicks.

DCMTK sends, the node analyses, Orthanc keeps the results; somebody with the first account looks in headless
Chromium. What the page says is held against the database, the files and Orthanc.

With ``PACS_NODE_SCREENSHOTS=DIR`` pictures are kept, the phantom is drawn at its full size and analysed with
the default profile; with ``PACS_NODE_PAGE=long`` the real series of the collection are sent too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select

from inference.phantom import make_phantom, write_phantom
from inference.registry import DEFAULT_PROFILE
from pacs_node.config import DicomDestination, load_settings
from pacs_node.db import AuditEvent, Job, Series, Study
from tests import peers
from tests.acceptance.node import Node, small_phantom
from tests.ct_factory import make_ct_series, write_series
from tests.page_browser import PHONE, WIDE, Visitor, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.peer("chromium", "storescu", "orthanc"),
]

PICTURES = os.environ.get("PACS_NODE_SCREENSHOTS", "")
REAL_SERIES = ("LIDC-IDRI-0001", "C3N-00247", "Lung_Dx-A0001")
PASSWORD = "a password of one's own"
MOST_CLICKS = 3


@dataclass
class Ward:
    """A node that has worked, the archive behind it, and who came to look."""

    node: Node
    pacs: peers.Orthanc
    visitor: Visitor
    #: Study Instance UIDs
    analysed: str
    refused: str

    def job(self, study_uid: str) -> Any:
        """The latest job of a study: row, and what its ``result.json`` says."""

        def ask(session: Any) -> Any:
            query = (
                select(Job)
                .join(Series, Job.series_id == Series.id)
                .join(Study, Series.study_id == Study.id)
                .where(Study.study_uid == study_uid)
                .order_by(Job.id.desc())
            )
            job = session.scalars(query).first()
            path = next(item.path for item in job.artifacts if item.kind == "json")
            return job, json.loads((self.node.storage / path).read_text())

        return self.node.ask(ask)

    def begin(self) -> Visitor:
        """Start on the overview with no click made."""
        self.visitor.look("light", WIDE)
        self.visitor.open("/")
        self.visitor.clicks = 0
        return self.visitor

    def find(self, words: str, patient: str) -> Visitor:
        """Search from the overview and open the study that is listed: two clicks."""
        visitor = self.begin()
        visitor.page.locator("header input[name=q]").fill(words)
        visitor.click("button", "Search")
        visitor.click("link", patient)
        return visitor


def uid_of(files: list[Path]) -> str:
    return str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def first_account(node: Node, visitor: Visitor) -> None:
    """There is none before it: made on the node's own machine, its password changed at the first login."""
    visitor.open("/")
    assert visitor.says("There is no account yet, and no default password.")
    command = ["users", "add", "--one-time", "anna", "--role", "administrator"]
    made = subprocess.run(node.command(*command), capture_output=True, text=True, check=True, timeout=60)
    once = re.search(r"password, valid for \d+ hours: (\S+)", made.stdout)
    assert once is not None
    visitor.log_in("anna", once[1], "/password")
    for label in ("New password, at least 12 characters", "New password again"):
        visitor.page.get_by_label(label, exact=True).fill(PASSWORD)
    visitor.page.get_by_label("Current password").fill(once[1])
    visitor.click("button", "Set password")


@pytest.fixture(scope="module")
def ward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    directory = tmp_path_factory.mktemp("page")
    phantom = make_phantom(1) if PICTURES else small_phantom(1)
    files = write_phantom(phantom, directory / "phantom")
    too_few = write_series(make_ct_series(4, matrix=16, seed="few"), directory / "few")
    studies = [files, too_few]
    if os.environ.get("PACS_NODE_PAGE") == "long":
        unpack = request.getfixturevalue("real_ct")
        studies += [sorted(unpack(name).rglob("*.dcm")) for name in REAL_SERIES]
    for name in ("orthanc", "node"):
        (directory / name).mkdir()
    with peers.orthanc(directory / "orthanc") as pacs, chromium() as context:
        item = DicomDestination(name="pacs", host="127.0.0.1", port=pacs.dicom_port, ae_title=pacs.ae_title)
        profile = DEFAULT_PROFILE if PICTURES else "classical"
        node = Node(directory / "node", [item], profile=profile)
        try:
            node.start()
            for study in studies:
                assert peers.storescu(node.port, *study, called_ae="CTNODE").returncode == 0
            web = load_settings(node.config).web
            visitor = Visitor(
                context.new_page(),
                f"http://127.0.0.1:{web.port}",
                Path(PICTURES) if PICTURES else None,
            )
            first_account(node, visitor)
            node.wait_finished(len(studies), 500)
            yield Ward(node, pacs, visitor, uid_of(files), uid_of(too_few))
            assert visitor.complaints == []
        finally:
            node.kill()


def test_what_happened_when_by_which_model_and_who_looked(ward: Ward) -> None:
    job, result = ward.job(ward.analysed)
    visitor = ward.find("PHANTOM-0001", "Phantom")
    assert visitor.says("What happened", "analysed", "visible in PACS", "chosen", "Took")
    assert visitor.page.locator("section[aria-labelledby=findings] tbody tr").count() == len(
        result["findings"]
    )
    shown = visitor.page.locator("table.timeline time").all()
    times = {(time.get_attribute("datetime") or "")[:19] for time in shown}
    assert {f"{at:%Y-%m-%dT%H:%M:%S}" for at in (job.started_at, job.finished_at)} <= times
    made = visitor.page.locator("section[aria-labelledby=models]").inner_text()
    for model in result["models"]:
        assert model["name"] in made
        assert (model["weights_sha256"] or "") in made
    assert job.input_digest in made.split()
    assert visitor.says(job.pipeline_version)
    visitor.click("link", "Who looked at it")
    assert visitor.clicks <= MOST_CLICKS
    assert visitor.says("study viewed", "user:anna", ward.analysed)
    looks = select(AuditEvent.seq).where(
        AuditEvent.study_uid == ward.analysed,
        AuditEvent.event == "study viewed",
        AuditEvent.actor == "user:anna",
    )
    assert ward.node.ask(lambda session: len(session.scalars(looks).all())) == 1


def test_why_a_study_was_not_analysed(ward: Ward) -> None:
    job, result = ward.job(ward.refused)
    visitor = ward.find(ward.refused, "Synthetic")
    assert visitor.clicks <= MOST_CLICKS
    assert visitor.says("not analysed", job.reason_code, result["reason"]["sentence"], "set aside")
    assert visitor.says("No statement is made on the presence or absence of nodules.")


def test_whether_all_is_delivered_and_the_node_is_well(ward: Ward) -> None:
    visitor = ward.begin()
    delivered = visitor.page.locator("section[aria-labelledby=destinations] tbody tr")
    assert "delivered" in delivered.inner_text()
    assert [cell.strip() for cell in delivered.locator("td.n").all_inner_texts()] == ["0", "0", "0"]
    assert visitor.page.locator("section.alarms li.failed").count() == 0
    assert visitor.says("Studies today", "enough room", "none")
    visitor.click("link", "all about the destinations")
    assert visitor.clicks <= MOST_CLICKS
    assert visitor.says("pacs", "delivered")
    for study in (ward.analysed, ward.refused):
        job, _ = ward.job(study)
        objects = {item.sop_instance_uid for item in job.artifacts if item.kind in {"seg", "sr"}}
        assert objects <= {item["SOPInstanceUID"] for item in ward.pacs.instances(study)}


def test_whether_the_model_drifts(ward: Ward) -> None:
    """After a few studies the honest answer is that nothing can be said yet."""
    visitor = ward.begin()
    visitor.click("link", "Models")
    assert visitor.clicks <= MOST_CLICKS
    drift = visitor.page.locator("section[aria-labelledby=drift]").inner_text()
    assert "too few studies" in drift or "Nothing was compared yet." in drift
    job, result = ward.job(ward.analysed)
    assert visitor.says(job.pipeline_version, *(model["name"] for model in result["models"]))


def test_no_page_is_wider_than_its_window(ward: Ward) -> None:
    """On real results; and their pictures."""
    visitor, found = ward.visitor, []
    pages = {
        "overview": "/",
        "studies": "/studies",
        "study": f"/studies/{ward.analysed}",
        "refused": f"/studies/{ward.refused}",
        "models": "/models",
        "destinations": "/destinations",
        "audit": f"/audit?study={ward.analysed}",
    }
    for name, path in pages.items():
        visitor.open(path)
        for scheme, size in (("light", WIDE), ("dark", WIDE), ("light", PHONE), ("dark", PHONE)):
            visitor.look(scheme, size)
            if visitor.overflows():
                found.append(f"{name} {size[0]}")
            visitor.shoot(f"{name}-{scheme}-{size[0]}")
            visitor.shoot(f"{name}-{scheme}-{size[0]}-top", whole=False)
    visitor.open(f"/studies/{ward.analysed}#nodule-1")
    for scheme, size in (("light", WIDE), ("dark", WIDE), ("dark", PHONE)) if PICTURES else ():
        visitor.look(scheme, size)
        visitor.page.evaluate("document.querySelector('#nodule-1').closest('section').scrollIntoView()")
        visitor.page.wait_for_timeout(300)  # the picture comes once it is in sight
        visitor.shoot(f"nodule-{scheme}-{size[0]}", whole=False)
    assert found == []
