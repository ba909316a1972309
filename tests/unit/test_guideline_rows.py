"""Rows of facts in, answers out: the table and ``pacs-node guidelines``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inference.guidelines.fact_row import FactError
from inference.guidelines.table import ASKS, answer
from pacs_node.guidelines_cli import guidelines

SCREENED = {"ask": "lung-rads", "screening": "yes"}
FOUND_BY_CHANCE = {
    "ask": "fleischner",
    "screening": False,
    "known_cancer": False,
    "immunosuppressed": "no",
    "age_years": "61",
}
BROCK = {
    "ask": "brock-2b",
    "age_years": 62,
    "female": "no",
    "family_history_lung_cancer": 0,
    "emphysema": False,
    "diameter_mm": "8",
    "attenuation": "solid",
    "upper_lobe": "No",
    "spiculated": "false",
    "nodule_count": 1,
}
ROWS: list[tuple[dict[str, Any], str | None]] = [
    ({"ask": "lung-rads-nodule", "mean_diameter_mm": 7, "attenuation": "solid"}, "3"),
    ({"ask": "lung-rads-nodule", "long_mm": 10.1, "short_mm": "5.9", "attenuation": "SOLID"}, "4A"),
    ({"ask": "lung-rads-nodule", "volume_mm3": 112, "attenuation": "solid"}, "2"),
    ({"ask": "lung-rads-nodule", "volume_mm3": 113, "attenuation": "solid"}, "3"),
    (
        {
            "ask": "lung-rads-nodule",
            "mean_diameter_mm": 12,
            "attenuation": "part solid",
            "solid_mean_diameter_mm": 6.2,
        },
        "4A",
    ),
    ({"ask": "lung-rads-nodule", "mean_diameter_mm": 7, "attenuation": "solid", "change": "unknown"}, None),
    ({"ask": "lung-rads-nodule", "attenuation": "solid"}, None),
    # what has become of it follows from the sizes
    (
        {
            "ask": "lung-rads-nodule",
            "mean_diameter_mm": 8,
            "attenuation": "solid",
            "earlier_mean_diameter_mm": 6,
            "earlier_months": 12,
        },
        "4B",
    ),
    (
        {
            "ask": "lung-rads-nodule",
            "mean_diameter_mm": 7,
            "attenuation": "solid",
            "earlier_mean_diameter_mm": 7,
            "earlier_category": "3",
            "earlier_months": 6,
        },
        "2",
    ),
    (
        {
            "ask": "lung-rads-nodule",
            "mean_diameter_mm": 20,
            "cyst": "thick-walled",
            "change": "growing",
            "cyst_changes": "growing cystic part; growing wall or nodularity",
        },
        "4B",
    ),
    ({**SCREENED}, "1"),
    ({**SCREENED, "mean_diameter_mm": 7, "attenuation": "solid", "other_significant": "yes"}, "3S"),
    (
        {
            **SCREENED,
            "nodules": [
                {"mean_diameter_mm": 5, "attenuation": "solid"},
                {"mean_diameter_mm": 9, "attenuation": "solid", "suspicious": ["spiculation"]},
            ],
        },
        "4X",
    ),
    ({"ask": "lung-rads", "mean_diameter_mm": 7, "attenuation": "solid"}, None),
    ({**SCREENED, "nodules": [{"attenuation": "solid"}]}, None),
    ({**SCREENED, "infection": ["consolidation"]}, "0"),
    (
        {**FOUND_BY_CHANCE, "mean_diameter_mm": 7, "attenuation": "solid", "high_risk": "no"},
        "single solid nodule, 6 to 8 mm, low risk",
    ),
    (
        {**FOUND_BY_CHANCE, "mean_diameter_mm": 7, "attenuation": "solid", "high_risk": "yes", "count": 3},
        "multiple solid nodules, 6 mm or more, high risk",
    ),
    ({**FOUND_BY_CHANCE, "volume_mm3": 251, "attenuation": "solid"}, "single solid nodule, above 8 mm"),
    ({**FOUND_BY_CHANCE, "mean_diameter_mm": 7, "attenuation": "solid"}, None),
    (
        {
            **FOUND_BY_CHANCE,
            "high_risk": "no",
            "nodules": [
                {"mean_diameter_mm": 5, "attenuation": "solid"},
                {"mean_diameter_mm": 9, "attenuation": "ground-glass"},
            ],
        },
        "single solid nodule, below 6 mm, low risk; single ground-glass nodule, 6 mm or more",
    ),
    ({**FOUND_BY_CHANCE}, "no nodule to follow"),
    ({"ask": "bts", "diameter_mm": 5.5, "attenuation": "solid"}, "solid, 5 to below 6 mm"),
    (
        {"ask": "change", "earlier_mean_diameter_mm": 6, "mean_diameter_mm": 7.6, "earlier_months": 24},
        "slowly growing",
    ),
    ({"ask": "change", "mean_diameter_mm": 7.6, "earlier_months": 24}, None),
    (
        {"ask": "doubling", "earlier_volume_mm3": 100, "volume_mm3": 200, "days": 300},
        "growing, doubling in less than 400 days",
    ),
    (
        {"ask": "doubling", "earlier_diameter_mm": 6, "diameter_mm": 6, "days": 300},
        "no growth (volume change below 25 %)",
    ),
]


@pytest.mark.parametrize(("row", "category"), ROWS)
def test_a_row_has_its_answer(row: dict[str, Any], category: str | None) -> None:
    found = answer(row)
    assert found["category"] == category
    assert (category is None) == bool(found["missing"])
    json.dumps(found, allow_nan=False)


def test_risks() -> None:
    assert answer(BROCK)["probability"] == pytest.approx(0.01716, abs=5e-6)
    unknown = answer({**BROCK, "upper_lobe": "unknown"})
    assert unknown["probability"] is None
    assert unknown["missing"] == ["upper lobe"]
    assert unknown["range"] == pytest.approx([0.01716, 0.03261], abs=5e-5)
    assert answer({**BROCK, "age_years": None})["range"] is None
    known = {"ask": "va", "age_years": 62, "ever_smoker": "no", "diameter_mm": 10}
    assert answer(known)["probability"] == pytest.approx(0.079132, abs=1e-6)
    assert answer({**known, "ever_smoker": "yes"})["missing"] == ["years since quitting"]
    assert answer({"ask": "doubling", "days": 3})["missing"] == ["the earlier size", "the size now"]
    assert set(ASKS) >= {"brock-2a", "mayo", "peking"}
    for name in ("brock-2a", "mayo", "peking"):
        assert answer({"ask": name})["probability"] is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"ask": "lungrads"}, "known: lung-rads"),
        ({**SCREENED, "diametre_mm": 7}, "unknown fact: diametre_mm"),
        ({**SCREENED, "mean_diameter_mm": "7 mm", "attenuation": "solid"}, "is no number"),
        ({**SCREENED, "mean_diameter_mm": "nan", "attenuation": "solid"}, "is no number"),
        ({**SCREENED, "mean_diameter_mm": True, "attenuation": "solid"}, "is no number"),
        ({**SCREENED, "mean_diameter_mm": -7, "attenuation": "solid"}, "a nodule of -7"),
        (
            {**SCREENED, "mean_diameter_mm": 7, "attenuation": "firm"},
            "known: solid, part-solid, ground-glass",
        ),
        ({"ask": "lung-rads", "screening": "perhaps"}, "write yes, no or unknown"),
        ({**SCREENED, "nodules": "two"}, "no list of nodules"),
        ({"ask": "lung-rads-nodule", "mean_diameter_mm": 7, "earlier_category": "3"}, "earlier_months"),
        ({**SCREENED, "mean_diameter_mm": 7, "attenuation": "solid", "count": 1e9}, "no number of nodules"),
    ],
)
def test_a_row_that_can_not_be_read_says_why(row: dict[str, Any], words: str) -> None:
    with pytest.raises(FactError, match=words):
        answer(row)


def test_the_examples_of_the_document_hold(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "guidelines.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/guidelines.md", "exec"), {})
    (rows,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    table = tmp_path / "table.csv"
    table.write_text(rows, encoding="utf-8")
    status, answers = run(table)
    assert (status, [row["agrees"] for row in answers]) == (0, [True] * 3)


def run(path: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    done = CliRunner().invoke(guidelines, [str(path), *more])
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_scores_a_table(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "mean_diameter_mm,attenuation,change,expected\n7,solid,,3\n8,solid,new,4B\n7,solid,unknown,\n",
        encoding="utf-8",
    )
    status, rows = run(table, "--ask", "lung-rads-nodule")
    assert status == 0
    assert [row["category"] for row in rows] == ["3", "4B", None]
    assert all(row["agrees"] for row in rows)
    assert rows[0]["rules"] == [
        {"rule": "3: solid, 6 to below 8 mm, baseline", "because": "solid, mean diameter 7.0 mm, baseline"}
    ]
    table.write_text("mean_diameter_mm,attenuation,expected\n7,solid,4A\n", encoding="utf-8")
    status, rows = run(table, "--ask", "lung-rads-nodule")
    assert (status, rows[0]["agrees"]) == (1, False)


def test_the_command_reads_json(tmp_path: Path) -> None:
    one = tmp_path / "facts.json"
    one.write_text(json.dumps({**BROCK, "expected": 0.0172}), encoding="utf-8")
    status, rows = run(one)
    assert (status, rows[0]["agrees"]) == (0, True)
    one.write_text(json.dumps([{**BROCK, "expected": 0.02}, {"ask": "no"}]), encoding="utf-8")
    status, rows = run(one)
    assert status == 2
    assert rows[0]["agrees"] is False
    assert "known: lung-rads" in rows[1]["error"]
    lines = tmp_path / "facts.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row, _ in ROWS), encoding="utf-8")
    status, rows = run(lines)
    assert (status, len(rows)) == (0, len(ROWS))


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_file_that_is_no_table(tmp_path: Path, content: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content.encode("latin-1"))
    done = CliRunner().invoke(guidelines, [str(path)])
    assert done.exit_code == 1
    assert "Error: " in done.output
