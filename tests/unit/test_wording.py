from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr.coding import Code

from dicom_sr import codes, conclusion, evaluations
from dicom_sr.wording import ENGLISH, SENTENCES, WORDS, Wording, WordingError, read_wording
from inference.types import Attenuation, Laterality, Lobe, Site

GERMAN = Code("de-DE", "RFC5646", "German (Germany)")


def write(path: Path, sentences: dict[str, str], words: str = "") -> Path:
    lines = [f"{key} = {sentence!r}" for key, sentence in sentences.items()]
    head = '[language]\ntag = "de-DE"\nname = "German (Germany)"\n[sentences]\n'
    path.write_text(head + "\n".join(lines) + f"\n[words]\n{words}", encoding="utf-8")
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    sentences = {**SENTENCES, "one_nodule": "Ein Rundherd wurde markiert."}
    wording = read_wording(write(tmp_path / "de.toml", sentences, '"lung" = "Lunge"'))
    assert wording.language == GERMAN
    assert wording.say("one_nodule") == "Ein Rundherd wurde markiert."
    assert (wording.word("lung"), wording.word("left lung")) == ("Lunge", "left lung")
    assert not wording.is_english
    assert len({wording.digest, ENGLISH.digest, Wording(GERMAN, SENTENCES).digest}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one_nodule": None}, "one_nodule is missing"),
        ({"other": "x"}, "other is unknown"),
        ({"nodules": "{number} nodules"}, "nodules has no {number}"),
        ({"nodules": "{count.__class__}"}, "is no plain name"),
        ({"nodules": "{0}"}, "is no plain name"),
        ({"nodules": "{count"}, "nodules: expected"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change: dict[str, str | None], message: str) -> None:
    sentences = {key: value for key, value in {**SENTENCES, **change}.items() if value is not None}
    with pytest.raises(WordingError, match=message):
        Wording(GERMAN, sentences)


@pytest.mark.parametrize(
    "content",
    ["", "[sentences]\n", "x", '[language]\ntag = "de"\nname = "German"\n[sentences]\none_nodule = 3\n'],
)
def test_a_file_that_is_no_table_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "de.toml").write_text(content)
    with pytest.raises(WordingError, match=r"de\.toml"):
        read_wording(tmp_path / "de.toml")
    with pytest.raises(WordingError, match=r"none\.toml"):
        read_wording(tmp_path / "none.toml")


def test_every_sentence_is_used() -> None:
    modules = (conclusion, evaluations, codes)
    files = [Path(str(module.__file__)) for module in modules]
    source = "".join(path.read_text() for path in (*files, files[0].with_name("report.py")))
    assert [key for key in SENTENCES if f'"{key}"' not in source] == []


def test_the_words_of_sites_and_types_can_be_translated() -> None:
    sides = [None, *Laterality]
    sites = [Site(side, lobe) for side in sides for lobe in (None, *Lobe)]
    words = {codes.site_words(s) for s in sites if s != Site(Laterality.LEFT, Lobe.MIDDLE)}
    assert words <= set(WORDS)
    assert {str(kind) for kind in Attenuation} <= set(WORDS)
