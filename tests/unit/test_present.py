"""Tables for the terminal: whole at 80 columns, and what was drawn beside what was found."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from rich.console import Console

from inference.phantom import Attachment, Margin, NoduleSpec, PhantomNodule
from inference.types import Attenuation, Laterality, Lobe
from pacs_node.demo import show_drawn
from pacs_node.present import show_result

LARGEST: dict[str, Any] = {
    "tracking_id": "N12",
    "site": {"words": "right middle lobe"},
    "attenuation": "ground-glass",
    "attenuation_doubt": None,
    "measurements": {
        "long_axis_mm": 100.4,
        "short_axis_mm": 98.3,
        "volume_mm3": 123456.7,
        "mean_hu": -1000.4,
    },
    "key_slice": {"index": 1023},
    "detection_probability": 0.9999,
    "malignancy": {"image_only": 0.99485, "fused": None},
    "point_lps_mm": [0.0, 0.0, 0.0],
}
SUMMARY: dict[str, Any] = {
    "status": "analysed",
    "series": {
        "analysed": {
            "shape": [1, 2, 3],
            "spacing_mm": [1.0, 1.0, 1.0],
            "description": "",
            "series_uid": "1.2",
        },
        "refused": [],
    },
    "observations": [],
    "warnings": [],
    "models": [],
    "notice": "Research use only, not for primary diagnosis.",
}


def printed(*findings: dict[str, Any]) -> list[str]:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        show_result({**SUMMARY, "findings": list(findings)}, console)
    return capture.get().splitlines()


@pytest.mark.parametrize("fused", [None, 0.004])
def test_every_value_stands_whole_at_80_columns(fused: float | None) -> None:
    finding = deepcopy(LARGEST) | {"malignancy": {"image_only": 0.99485, "fused": fused}}
    lines = printed(finding)
    text = "\n".join(lines)
    assert "\u2026" not in text
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("N12"))
    for value in ("ground-glass", "100.4 x 98.3", "123457", "-1000", ">99 %"):
        assert value in row
    assert row.count(">99 %") == 2
    assert ("<1 %" in row) == (fused is not None) == ("1024" not in row)
    assert [word for word in ("right", "middle", "lobe") if word not in text] == []
    assert "readers' suspicion, not histology" in " ".join(text.split())


def test_a_type_in_doubt_is_none() -> None:
    doubt = {"read": "solid", "probability": 0.56, "measured": "part-solid", "words": "w"}
    (row,) = (
        line
        for line in printed({**LARGEST, "attenuation": None, "attenuation_doubt": doubt})
        if line.startswith("N12")
    )
    assert "not certain" in row


def drawn(label: int, x: float) -> PhantomNodule:
    return PhantomNodule(
        label=label,
        centre_lps=(x, 0.0, 0.0),
        diameter_mm=10.0,
        volume_mm3=523.6,
        attenuation=Attenuation.SOLID,
        margin=Margin.SMOOTH,
        attachment=Attachment.ISOLATED,
        laterality=Laterality.LEFT,
        lobe=Lobe.UPPER,
        spec=NoduleSpec(10.0),
    )


def test_the_demo_holds_what_was_found_against_what_was_drawn() -> None:
    console = Console(width=80, force_terminal=False)
    places = {"N1": 4.9, "N2": 35.1, "N3": -80.0}
    findings = [{"tracking_id": name, "point_lps_mm": [x, 0.0, 0.0]} for name, x in places.items()]
    with console.capture() as capture:
        show_drawn([drawn(1, 0.0), drawn(2, 30.0)], findings, console)
    assert capture.get().splitlines() == [
        "1 of 2 drawn nodules found",
        "  drawn 10 mm, solid, smooth, isolated: N1",
        "  drawn 10 mm, solid, smooth, isolated: missed",
        "  marked where none was drawn: N2, N3",
    ]
    with console.capture() as capture:
        show_drawn((), findings, console)
    assert capture.get() == ""
