"""Fusion of image and record: what is missing changes nothing, what is there is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.errors import ModelUnavailableError
from inference.fusion import (
    EMBEDDING,
    MECHANISMS,
    SYNTHETIC_STATEMENT,
    TABLE,
    Fusion,
    ImageEvidence,
    ImageParts,
    JointEmbedding,
    Mechanism,
    NoduleFacts,
    RecordParts,
    apply_record,
    brock_range,
    clip_text_tower,
    encode_table,
    mechanism_of,
)
from inference.fusion.attention import CrossAttention
from inference.fusion.attributes import GROUPS, Attributes
from inference.fusion.contrast import Contrast
from inference.fusion.mechanism import VIEWS, Direction
from inference.fusion.table import ITEM_COLUMNS
from inference.fusion.view_attention import ViewAttention
from inference.openclip_model import REFERENCE, build_clip
from inference.record import ClinicalRecord, RecordReading, Sex, Smoking, accept
from inference.risk import brock_2b
from inference.types import Attenuation, Finding, Laterality, Lobe, Malignancy, Measurements, Site
from inference.weights import write_weights

NODULE = NoduleFacts(8.0, 1, Attenuation.SOLID, upper_lobe=False, spiculated=False)
FULL = ClinicalRecord(62.0, Sex.FEMALE, Smoking.FORMER, 40.0, 8.0, True, False, True)
Floats = NDArray[np.float32]


def tower(sentences: Sequence[str]) -> Floats:
    """Another vector for another sentence."""
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=EMBEDDING) / 16 for text in sentences]
    return np.array(rows, np.float32).reshape(-1, EMBEDDING)


def network(kind: type[Mechanism] = JointEmbedding, seed: int = 0) -> Mechanism:
    """Drawn weights whose every part matters."""
    torch.manual_seed(seed)
    made = kind().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.scale.fill_(0.7)
    made.offset.fill_(0.4)
    made.reads_text.fill_(True)
    made.reads_brock.fill_(True)
    return made


def evidence(seed: int, probability: float = 0.3) -> ImageEvidence:
    rng = np.random.default_rng(seed)
    embedding, views = rng.normal(size=EMBEDDING) / 16, np.abs(rng.normal(size=(VIEWS, EMBEDDING)))
    return ImageEvidence(probability, embedding.astype(np.float32), views.astype(np.float32))


def drawn_image(count: int, seed: int = 0) -> ImageParts:
    generator = torch.Generator().manual_seed(seed)
    return ImageParts(
        torch.randn(count, EMBEDDING, generator=generator),
        torch.rand(count, VIEWS, EMBEDDING, generator=generator),
    )


def drawn_record(count: int, has_table: torch.Tensor, has_text: torch.Tensor) -> RecordParts:
    table = np.stack([encode_table(replace(FULL, age_years=50.0 + age), NODULE) for age in range(count)])
    text = torch.randn(count, EMBEDDING, generator=torch.Generator().manual_seed(1)) / 16
    return RecordParts(torch.from_numpy(table), text, has_table, has_text)


@pytest.fixture(scope="module", params=list(MECHANISMS))
def each(request: pytest.FixtureRequest) -> Mechanism:
    return network(mechanism_of(request.param))


@pytest.fixture(scope="module")
def fusion() -> Fusion:
    return Fusion(network(), tower)


# nothing known


def test_without_a_record_the_result_is_the_image_s(each: Mechanism) -> None:
    fusion, empty = Fusion(each, tower), ClinicalRecord(history_text="Mrs Doe smokes")
    for seed, probability in enumerate((0.0, 1e-9, 0.1, 1 / 3, 0.5, 0.987654321, 1.0)):
        seen = evidence(seed, probability)
        assert fusion.probability(seen, empty, NODULE) == probability
        assert fusion.malignancy(seen, empty, NODULE) == Malignancy(probability, None)


def test_rows_without_a_record_get_exactly_nothing(each: Mechanism) -> None:
    has, none = torch.arange(16) % 2 == 0, torch.zeros(16, dtype=torch.bool)
    image = drawn_image(16)
    correction = each(image, drawn_record(16, has & (torch.arange(16) % 4 == 0), has))
    assert (correction[~has] == 0).all()
    assert (correction[has] != 0).all()
    assert (each(image, drawn_record(16, none, none)) == 0).all()
    assert (each(None, drawn_record(16, none, none)) == 0).all()
    assert (each.calibrated(correction, has)[~has] == 0).all()
    assert torch.allclose(each.calibrated(correction, has)[has], 0.7 * correction[has] + 0.4)


def test_absent_tokens_alone_already_correct_nothing(each: Mechanism) -> None:
    """The difference is 0 by itself; the rows are not only masked afterwards."""
    none = torch.zeros(4, dtype=torch.bool)
    found = each.correction(drawn_image(4), drawn_record(4, none, none))
    assert found.abs().max() < 1e-5


# something known


def test_a_record_corrects_and_the_image_s_value_stays(each: Mechanism) -> None:
    fusion = Fusion(each, tower)
    for seed in range(3):
        found = fusion.malignancy(evidence(seed), FULL, NODULE)
        assert found.image_only == 0.3
        assert found.fused is not None
        assert 0 < found.fused < 1
        assert found.fused != 0.3


@pytest.mark.parametrize("item", sorted(FULL.items()))
def test_each_item_alone_is_enough_and_each_matters(fusion: Fusion, item: str) -> None:
    seen = evidence(1)
    alone = ClinicalRecord(**{item: FULL.items()[item]})
    assert fusion.probability(seen, alone, NODULE) != seen.probability
    if item not in {"pack_years", "years_quit", "smoking"}:
        without = replace(FULL, **{item: None})
        assert fusion.probability(seen, without, NODULE) != fusion.probability(seen, FULL, NODULE)


def test_parts_that_it_wasn_t_trained_with_are_left_out() -> None:
    made = network()
    made.reads_text.fill_(False)
    made.reads_brock.fill_(False)
    seen = evidence(2)
    assert Fusion(made, tower).probability(seen, FULL, NODULE) == Fusion(made).probability(seen, FULL)
    made.reads_brock.fill_(True)
    assert Fusion(made).probability(seen, FULL, NODULE) != Fusion(made).probability(seen, FULL)
    made.reads_text.fill_(True)
    assert Fusion(made, tower).probability(seen, FULL) != Fusion(made).probability(seen, FULL)


def test_the_result_doesn_t_depend_on_what_else_is_in_the_batch(each: Mechanism) -> None:
    table = torch.from_numpy(
        np.stack([encode_table(FULL, NODULE), encode_table(ClinicalRecord(age_years=70), None)])
    )
    yes, image = torch.ones(2, dtype=torch.bool), drawn_image(2)
    together = each(image, RecordParts(table, None, yes, yes))
    alone = each(image.rows(torch.tensor([1])), RecordParts(table[1:], None, yes[1:], yes[1:]))
    assert together[1].item() == pytest.approx(alone[0].item(), abs=1e-5)


# one mechanism


def known(count: int) -> RecordParts:
    yes = torch.ones(count, dtype=torch.bool)
    return drawn_record(count, yes, yes)


def test_views_are_read_where_a_mechanism_reads_them(each: Mechanism) -> None:
    image = drawn_image(4)
    other = ImageParts(image.embedding, drawn_image(4, seed=2).views)
    assert torch.equal(each(image, known(4)), each(other, known(4))) is not each.reads_views
    bare = ImageParts(image.embedding)
    if each.reads_views:
        with pytest.raises(ValueError, match="reads views"):
            each(bare, known(4))
    else:
        assert torch.equal(each(bare, known(4)), each(image, known(4)))


def test_the_image_weighs_the_record_between_nothing_and_twice() -> None:
    made = network(ViewAttention)
    assert isinstance(made, ViewAttention)
    _, difference = made.direction(known(16))
    ratio = made(drawn_image(16), known(16)) / difference
    assert ratio.min() >= 0
    assert ratio.max() <= 2
    assert ratio.std() > 0


def test_the_order_of_the_views_counts_only_in_cross_attention() -> None:
    image = drawn_image(4)
    assert image.views is not None
    turned = ImageParts(image.embedding, image.views.flip(1))
    pooled, across = network(ViewAttention), network(CrossAttention)
    torch.testing.assert_close(pooled(image, known(4)), pooled(turned, known(4)), rtol=1e-4, atol=1e-5)
    assert (across(image, known(4)) - across(turned, known(4))).abs().max() > 1e-4


def test_a_masked_item_is_not_looked_at() -> None:
    made = network(CrossAttention)
    assert isinstance(made, CrossAttention)
    record = known(4)
    record.table[:, [TABLE.index(name) for name in ITEM_COLUMNS["emphysema"]]] = 0
    with torch.no_grad():
        before = made(drawn_image(4), record)
        item = list(ITEM_COLUMNS).index("emphysema")
        made.items[item] += 5
        made.places[item] += 5
        torch.testing.assert_close(made(drawn_image(4), record), before)


def test_contrast_is_bounded_by_its_temperature() -> None:
    made = network(Contrast)
    assert isinstance(made, Contrast)
    most = 4 * made.temperature.exp().item()
    assert made(drawn_image(16), known(16)).abs().max().item() <= most
    with torch.no_grad():
        made.prompts.copy_(made.prompts.flip(0))  # the other sentence is the positive one
    turned = made(drawn_image(16), known(16))
    made.prompts.copy_(made.prompts.flip(0))
    torch.testing.assert_close(turned, -made(drawn_image(16), known(16)))


def test_a_group_of_which_nothing_is_known_says_nothing() -> None:
    made = network(Attributes)
    assert isinstance(made, Attributes)
    table = torch.from_numpy(encode_table(ClinicalRecord(smoking=Smoking.CURRENT), None))[None]
    yes = torch.ones(1, dtype=torch.bool)
    told = made.told(RecordParts(table, None, yes, yes))[0]
    groups = (*GROUPS, "words")
    assert {name for name, value in zip(groups, told.tolist(), strict=True) if value} == {"tobacco"}


def test_direction_is_the_difference_to_nothing() -> None:
    torch.manual_seed(0)
    direction = Direction().eval()
    none = torch.zeros(3, dtype=torch.bool)
    assert (direction(drawn_record(3, none, none))[1] == 0).all()
    assert (direction(known(3))[1] != 0).all()


# the table


def test_table() -> None:
    row = dict(zip(TABLE, encode_table(FULL, NODULE).tolist(), strict=True))
    low, high = brock_range(FULL, NODULE) or (None, None)
    assert low is not None
    assert low == high  # all is known
    assert row == pytest.approx(
        {
            **dict.fromkeys(TABLE, 0.0),
            **{name: 1.0 for name in TABLE if name.endswith(" known")},
            "sex": 1.0,
            "former": 1.0,
            "pack_years": 2.0,
            "years_quit": 0.8,
            "family_history_lung_cancer": 1.0,
            "cancer_history": -1.0,
            "emphysema": 1.0,
            "brock middle": low.logit / 3,
        },
        abs=1e-6,
    )
    assert not encode_table(ClinicalRecord(), NODULE).any()
    assert encode_table(FULL, None)[-3:].tolist() == [0.0, 0.0, 0.0]


def test_does_not_smoke_is_never_or_former() -> None:
    row = dict(zip(TABLE, encode_table(ClinicalRecord(smoking=Smoking.NOT_CURRENT), None), strict=True))
    assert (row["never"], row["former"], row["current"], row["smoking known"]) == (0.5, 0.5, 0.0, 1.0)


def test_brock_is_a_range_where_something_isn_t_known() -> None:
    found = brock_range(ClinicalRecord(age_years=62.0, sex=Sex.MALE), NoduleFacts(8.0, 1, Attenuation.SOLID))
    assert found is not None
    facts: dict[str, Any] = {
        "age_years": 62.0,
        "female": False,
        "diameter_mm": 8.0,
        "attenuation": Attenuation.SOLID,
        "nodule_count": 1,
    }
    flags = ("family_history_lung_cancer", "emphysema", "upper_lobe", "spiculated")
    assert found[0] == brock_2b(**{**facts, **dict.fromkeys(flags, False)})
    assert found[1] == brock_2b(**{**facts, **dict.fromkeys(flags, True)})
    assert brock_range(ClinicalRecord(sex=Sex.MALE), NODULE) is None


# findings


def finding(name: str, malignancy: Malignancy | None) -> Finding:
    sizes = Measurements(270.0, 8.0, 7.0, 7.5, 8.5, 20.0, 10.0, -100.0, 90.0)
    return Finding(
        tracking_uid=f"1.2.{len(name)}",
        tracking_id=name,
        mask=np.ones((1, 1, 1), np.bool_),
        origin=(0, 0, 0),
        key_slice=0,
        key_point=(0.0, 0.0),
        long_axis=((0.0, 0.0), (0.0, 1.0)),
        short_axis=((0.0, 0.0), (1.0, 0.0)),
        measurements=sizes,
        detection_probability=0.9,
        attenuation=Attenuation.SOLID,
        site=Site(Laterality.RIGHT, Lobe.UPPER),
        malignancy=malignancy,
    )


def test_findings_get_both_values_and_the_report_says_what_was_used(fusion: Fusion) -> None:
    reading = accept(
        {"age_years": 62, "sex": "F", "emphysema": "yes", "history_text": "Mrs Doe"}, "record.json"
    )
    findings = (finding("N1", Malignancy(0.3)), finding("N2", None))
    fused, notes = apply_record(findings, (evidence(3), None), reading, fusion)
    assert fused[0].malignancy is not None
    assert fused[0].malignancy.image_only == 0.3
    assert fused[0].malignancy.fused is not None
    assert fused[1] == findings[1]
    by_name = {note.name: note.value for note in notes}
    assert by_name["record_items_used"] == (
        "age_years (record.json), sex (record.json), emphysema (record.json)"
    )
    assert by_name["record_model"] + "." == SYNTHETIC_STATEMENT
    assert "synthetic" in SYNTHETIC_STATEMENT
    # by hand: -6.78917 + 0.6011 + 0.2953 + 5.385484 (1.581139 - 0.8^-0.5) + 0.6581 + 2 x 0.0824 = -2.5757,
    # and 0.2961 + 0.7729 more where family history and spicules are there
    assert by_name["brock_2b_of_N1"] == "7.1 % to 18.1 %, by what is not known"
    assert not any("Doe" in note.value for note in notes)


def test_findings_without_a_record_stay_as_they_are(fusion: Fusion) -> None:
    findings = (finding("N1", Malignancy(0.3)),)
    assert apply_record(findings, (evidence(3),), RecordReading(), fusion) == (findings, ())


def test_brock_says_what_lies_outside_its_cohort(fusion: Fusion) -> None:
    _, notes = apply_record(
        (finding("N1", None),), (None,), accept({"age_years": 30, "sex": "M"}, "x"), fusion
    )
    assert "50 to 75 years old" in notes[-1].value


# weights and text tower


def test_weights_are_read_back(tmp_path: Path, each: Mechanism) -> None:
    path = tmp_path / "fusion.safetensors"
    digest = write_weights(each.state_dict(), path, {"name": "test"})
    loaded = Fusion.load(path, digest, tower, mechanism=each.name)
    seen = evidence(4)
    want = Fusion(each, tower).probability(seen, FULL, NODULE)
    assert loaded.probability(seen, FULL, NODULE) == pytest.approx(want, abs=5e-3)  # stored as float16
    with pytest.raises(ModelUnavailableError, match="sha256"):
        Fusion.load(path, "0" * 64, mechanism=each.name)
    other = "attributes" if each.name == "contrast" else "contrast"
    with pytest.raises(ModelUnavailableError, match="don't fit"):
        Fusion.load(path, digest, mechanism=other)


@pytest.mark.parametrize("name", ["late-fusion", None])
def test_a_card_must_name_a_mechanism(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(ModelUnavailableError, match="contrast, joint-embedding, cross-attention"):
        Fusion.load(tmp_path / "x.safetensors", "0" * 64, mechanism=name)


def test_mechanisms_are_numbered_as_documented() -> None:
    assert [kind.number for kind in MECHANISMS.values()] == [f"M{number}" for number in range(1, 7)]


def test_text_tower_of_clip() -> None:
    torch.manual_seed(0)
    text = {
        key: value
        for key, value in build_clip(REFERENCE).state_dict().items()
        if not key.startswith("visual.") and key != "logit_scale"
    }
    embed = clip_text_tower(text)
    found = embed([FULL.sentence(), FULL.sentence(), "Man."])
    assert found.shape == (3, EMBEDDING)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    with pytest.raises(ModelUnavailableError, match="text tower"):
        clip_text_tower({"nothing": torch.zeros(1)})
