"""The catalogue of published checkpoints is complete and honest about what is unknown."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from inference.catalogue import checkpoints, find, parse
from inference.errors import ModelUnavailableError

ENTRY = """
[[checkpoint]]
name = "a"
title = "A"
task = "t"
network = "n"
file = "a.pt"
url = "https://h.example/a.pt"
format = "pickle"
hash_source = "nobody"
licence = "L"
intended_use = "I"
limits = "L"
training_data = "T"
published = ["P"]
"""


def test_it_names_the_published_checkpoints() -> None:
    names = {item.name for item in checkpoints()}
    assert {
        "sam2.1-hiera-tiny",
        "sam2.1-hiera-small",
        "sam2.1-hiera-base-plus",
        "sam2.1-hiera-large",
        "medsam2",
        "clip-vit-b-32",
        "clip-vit-b-32-torchscript",
        "lung-nodule-ct-detection",
        "lung-nodule-ct-detection-bundle",
    } == names
    assert len({item.file for item in checkpoints()}) == len(names)


@pytest.mark.parametrize("item", checkpoints(), ids=lambda item: item.name)
def test_every_entry_says_what_a_site_must_know(item: object) -> None:
    entry = find(item.name)  # type: ignore[attr-defined]  # pytest parametrizes with objects
    assert urlsplit(entry.url).scheme == "https"
    assert "not for primary diagnosis" in entry.intended_use.lower()
    assert "here" in entry.hash_source or entry.sha256 is None or entry.sha256 in entry.url
    assert (entry.sha256 is None) == ("no sha256 is known" in entry.hash_source)
    assert bool(entry.member) == (entry.format == "bundle")


def test_only_the_zip_has_no_known_hash() -> None:
    assert [item.name for item in checkpoints() if item.sha256 is None] == ["lung-nodule-ct-detection-bundle"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelUnavailableError, match=r"no 'sam3'; it has .*medsam2"):
        find("sam3")


def test_an_entry_without_hash_has_none() -> None:
    assert parse(ENTRY)[0].sha256 is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('name = "a"\n', ""), r"\?: .*name"),
        (('licence = "L"', 'license = "L"'), "licence, license"),
        (('format = "pickle"', 'format = "exe"'), "format"),
        (('file = "a.pt"', 'file = "../a.pt"'), "file"),
        (('file = "a.pt"', "file = 3"), "file"),
        (('file = "a.pt"', 'file = "a.pt"\nsha256 = "abc"'), "sha256"),
        (('file = "a.pt"', 'file = "a.pt"\nsize = "big"'), "size"),
        (('published = ["P"]', 'published = "P"'), "published"),
        (("[[checkpoint]]", "[[checkpoint"), "not valid TOML"),
    ],
)
def test_wrong_entries_are_refused_with_the_field(change: tuple[str, str], says: str) -> None:
    with pytest.raises(ModelUnavailableError, match=says):
        parse(ENTRY.replace(*change))


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ModelUnavailableError, match="a name twice"):
        parse(ENTRY + ENTRY)


def test_the_catalogue_loads_no_torch() -> None:
    script = "import sys, inference.catalogue as c; c.checkpoints(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
