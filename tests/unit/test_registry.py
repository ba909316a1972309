from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference import cade, registry
from inference.errors import ModelUnavailableError
from inference.registry import DETECTION, load_pipeline

CARD = """
profile = "site"
[card]
name = "N"
version = "1"
task = "nodule-detection"
summary = "S"
intended_use = "Research. Not for primary diagnosis."
limits = "L"
licence = "Apache-2.0"
training_data = "T"
performance = ["P"]
{extra}
[card.parameters]
threshold = 0.5
"""


def folder_with(tmp_path: Path, extra: str = "", text: str | None = None) -> Path:
    (tmp_path / "one.toml").write_text(CARD.format(extra=extra) if text is None else text, encoding="utf-8")
    return tmp_path


def test_the_classical_profile_is_complete_and_honest() -> None:
    pipeline = load_pipeline("classical")
    card = pipeline.card(DETECTION)
    assert pipeline.profile == "classical"
    assert pipeline.version.startswith("classical-")
    assert len(pipeline.version) <= 64
    assert "Not for primary diagnosis" in card.intended_use
    assert "no malignancy" in card.intended_use
    assert card.weights_sha256 is None
    assert card.performance
    weights = {f"weight_{name}" for name in cade.terms(dict.fromkeys(FEATURES, 1.0))}
    assert weights | {"intercept", "min_probability", "max_findings"} <= set(card.parameters)


FEATURES = (
    "diameter_mm",
    "elongation",
    "flatness",
    "solidity",
    "attached",
    "border",
    "roundness",
    "contrast_hu",
    "response_hu",
)


def test_unknown_profile_and_unknown_task_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="no model card names the profile 'full'"):
        load_pipeline("full", folder=folder_with(tmp_path))
    with pytest.raises(ModelUnavailableError, match="no model for malignancy"):
        load_pipeline("site", folder=tmp_path).card("malignancy")


def test_version_follows_cards_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_pipeline("site", folder=folder_with(tmp_path)).version
    assert load_pipeline("site", folder=tmp_path).version == first
    text = CARD.format(extra="").replace("threshold = 0.5", "threshold = 0.6")
    assert load_pipeline("site", folder=folder_with(tmp_path, text=text)).version != first
    folder_with(tmp_path)
    package = Path(registry.__file__).parent
    copied = tmp_path / "package"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("*.safetensors", "*.pyc"))
    monkeypatch.setattr("inference.registry.resources.files", lambda _name: copied)
    assert load_pipeline("site", folder=tmp_path).version == first
    (copied / "train" / "cade.py").write_text("# what only trains changes no result\n")
    assert load_pipeline("site", folder=tmp_path).version == first
    for module in ("extent.py", "guidelines/growth.py", "fusion/joint.py"):
        before = load_pipeline("site", folder=tmp_path).version
        with (copied / module).open("a") as source:
            source.write("# another rim\n")
        assert load_pipeline("site", folder=tmp_path).version != before


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('name = "N"', 'name = ""', "name"),
        ('limits = "L"\n', "", "limits"),
        ('performance = ["P"]', "performance = [1]", "performance"),
        ("threshold = 0.5", 'threshold = "high"', "parameters"),
        ('licence = "Apache-2.0"', 'licence = "A"\nlicense = "B"', "license"),
        ("[card]", "[cart]", "name, version, task"),
        ("[card]", "[card", "not valid TOML"),
    ],
)
def test_wrong_card_is_refused_with_the_field(tmp_path: Path, old: str, new: str, names: str) -> None:
    with pytest.raises(ModelUnavailableError, match=f"one.toml.*{names}"):
        load_pipeline("site", folder=folder_with(tmp_path, text=CARD.format(extra="").replace(old, new)))


def test_weights_are_held_against_their_sha256(tmp_path: Path) -> None:
    content = b"weights" * 1000
    digest = hashlib.sha256(content).hexdigest()
    folder_with(tmp_path, f'weights = "w.safetensors"\nweights_sha256 = "{digest}"')
    with pytest.raises(ModelUnavailableError, match=r"w\.safetensors are missing"):
        load_pipeline("site", folder=tmp_path)
    (tmp_path / "w.safetensors").write_bytes(content)
    assert load_pipeline("site", folder=tmp_path).cards[0].weights_sha256 == digest
    (tmp_path / "w.safetensors").write_bytes(content + b"!")
    with pytest.raises(ModelUnavailableError, match="have sha256"):
        load_pipeline("site", folder=tmp_path)


@pytest.mark.parametrize("name", ["w.pt", "w.pkl", "../w.safetensors", "/tmp/w.safetensors"])
def test_only_safetensors_beside_the_card(tmp_path: Path, name: str) -> None:
    folder_with(tmp_path, f'weights = "{name}"\nweights_sha256 = "{"0" * 64}"')
    with pytest.raises(ModelUnavailableError, match="not the name of a safetensors file"):
        load_pipeline("site", folder=tmp_path)


def test_weights_without_digest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="belong together"):
        load_pipeline("site", folder=folder_with(tmp_path, 'weights = "w.safetensors"'))


def test_asking_for_the_version_loads_no_torch() -> None:
    script = (
        "import sys\n"
        "from inference.registry import load_pipeline\n"
        "load_pipeline()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
