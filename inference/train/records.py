"""Synthetic clinical records, drawn so that they tell of a disease exactly as published models say.

No clinical record comes with the public images. Each patient has one hidden state, healthy or diseased, and
one record r, whatever nodules it has: from a base population q0 if healthy, else from q1, where

    q1(r) / q0(r) = exp(s(r)) / E_q0[exp(s)]

so that the log likelihood ratio of a record is ``s(r) - log E_q0[exp(s)]``. ``s`` is the sum of published
coefficients times items (`score`):

- Brock 2b (McWilliams 2013): 0.0286687 for each year of age, 0.6011 for a woman, 0.296109 for lung cancer
  in the family, 0.2953112 for emphysema;
- Mayo (Swensen 1997): 0.7917 for whoever smokes or has smoked, 1.3388 for an earlier cancer outside the
  chest;
- PLCOm2012 (Tammemagi 2013), smokers and former smokers only: 0.2597431 for a current smoker,
  -1.822606 for ((cigarettes a day / 10)^-1 - 0.4021541613), 0.0317321 for each year smoked,
  -0.0308572 for each year since quitting.

Taking them together is an invention of this project: the models were never fitted jointly, and they count
smoking more than once. The base population (`base_population`) is made of round numbers, not of a cohort.
What is measured on such records says whether a fusion can use a record, and nothing about patients.

How the hidden state comes about is one of three `Dependence`, and it is the only way in which a record knows
anything of the images:

- OUTCOME: the state is the truth that is predicted, whether a nodule of the patient is rated above 3. So the
  record's log likelihood ratio is known exactly, and a fusion can be held against it. One bit for each
  patient passes, through the ratio above and no other way.
- RATINGS: the state is drawn by `disease_chance` from size, spiculation and texture as the radiologists
  rated them, as EMeRALDS makes its records of ratings. The rating of malignancy is not read: given those
  three, the record doesn't depend on it. What such a record tells is in the image too.
- NONE: everybody is healthy, the record knows nothing. The control.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from inference.record import ITEMS, ClinicalRecord, Sex, Smoking

STATUS = (Smoking.NEVER, Smoking.FORMER, Smoking.CURRENT)
POOL = 200_000

STEEPNESS = 2.0
SMOOTH_SOLID_MM = 10.0

Floats = NDArray[np.float64]


class Dependence(StrEnum):
    """What a record knows of the images; see the module."""

    OUTCOME = "outcome"
    RATINGS = "ratings"
    NONE = "none"


def disease_chance(diameter_mm: Floats, spiculation: Floats, texture: Floats) -> float:
    """Chance of the hidden state of one patient from its nodules, for `Dependence.RATINGS`.

    The logistic function of `STEEPNESS` times the image terms of Brock 2b (size, spiculation, part-solid or
    non-solid) of the nodule where they are highest, less those of a smooth solid nodule of 10 mm. The
    coefficients are published; the steepness and the 10 mm are round numbers of this project.

    Parameters
    ----------
    diameter_mm, spiculation, texture
        Shape (nodules,): longest diameter, and the readers' mean ratings from 1 to 5. Spiculated from 3 on;
        non-solid below 2, solid above 4 (the mapping of arXiv 2504.21344).
    """
    size = -5.385484 * ((diameter_mm / 10) ** -0.5 - (SMOOTH_SOLID_MM / 10) ** -0.5)
    kind = np.where(texture < 2, -0.1276, np.where(texture > 4, 0.0, 0.377))
    highest = float((size + 0.7729335 * (spiculation >= 3) + kind).max())
    return float(1 / (1 + np.exp(-STEEPNESS * highest)))


@dataclass(frozen=True)
class Population:
    """Records as columns, each of shape (n,).

    Parameters
    ----------
    age
        Whole years.
    female, family, cancer, emphysema
        0 or 1.
    status
        Index into `STATUS`.
    cigarettes
        A day; 0 for who never smoked.
    smoked, quit
        Years smoked, and years since quitting.
    """

    age: Floats
    female: Floats
    status: Floats
    cigarettes: Floats
    smoked: Floats
    quit: Floats
    family: Floats
    cancer: Floats
    emphysema: Floats

    def __len__(self) -> int:
        return len(self.age)

    def take(self, rows: NDArray[np.intp]) -> Population:
        """The records of these rows."""
        return Population(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    def record(self, row: int) -> ClinicalRecord:
        """One row as a complete record."""
        status = STATUS[int(self.status[row])]
        return ClinicalRecord(
            age_years=float(self.age[row]),
            sex=Sex.FEMALE if self.female[row] else Sex.MALE,
            smoking=status,
            pack_years=float(round(self.cigarettes[row] / 20 * self.smoked[row], 1)),
            years_quit=float(self.quit[row]) if status is Smoking.FORMER else None,
            family_history_lung_cancer=bool(self.family[row]),
            cancer_history=bool(self.cancer[row]),
            emphysema=bool(self.emphysema[row]),
        )


def base_population(count: int, rng: np.random.Generator) -> Population:
    """Draw the base population q0.

    Age normal (61, 9) within 40 to 85; 45 % women; 25 % never, 45 % former, 30 % current smokers; began at 15
    to 22; former smokers quit after at least 5 years; 5 to 60 cigarettes a day around 18; lung cancer in the
    family 12 %; earlier cancer 8 %; emphysema 5 % of those who never smoked and 25 % of the others.
    """
    age = np.clip(np.round(rng.normal(61, 9, count)), 40, 85)
    status = rng.choice(3, count, p=(0.25, 0.45, 0.30)).astype(float)
    ever = status > 0
    began = rng.integers(15, 23, count)
    longest = np.minimum(age - began - 5, 40)
    quit_for = np.where(status == 1, np.floor(rng.uniform(1, longest + 1)), 0.0)
    cigarettes = np.clip(np.round(np.exp(rng.normal(np.log(18), 0.5, count))), 5, 60)
    return Population(
        age=age,
        female=(rng.random(count) < 0.45).astype(float),
        status=status,
        cigarettes=np.where(ever, cigarettes, 0.0),
        smoked=np.where(ever, age - began - quit_for, 0.0),
        quit=quit_for,
        family=(rng.random(count) < 0.12).astype(float),
        cancer=(rng.random(count) < 0.08).astype(float),
        emphysema=(rng.random(count) < np.where(ever, 0.25, 0.05)).astype(float),
    )


def score(people: Population) -> Floats:
    """The sum s of published coefficients times items, shape (n,)."""
    ever = people.status > 0
    intensity = 10 / np.maximum(people.cigarettes, 1) - 0.4021541613
    plco = 0.2597431 * (people.status == 2) - 1.822606 * intensity
    plco += 0.0317321 * (people.smoked - 27) - 0.0308572 * (people.quit - 10)
    brock = 0.0286687 * (people.age - 62) + 0.6011 * people.female
    brock += 0.296109 * people.family + 0.2953112 * people.emphysema
    mayo = 0.7917 * ever + 1.3388 * people.cancer
    return np.asarray(brock + mayo + np.where(ever, plco, 0.0))


class RecordSource:
    """Draws records for healthy and diseased patients.

    Parameters
    ----------
    seed
        Of the base population.
    size
        Of the base population; q0 and q1 are exact with regard to it.
    """

    def __init__(self, seed: int, size: int = POOL) -> None:
        self.pool = base_population(size, np.random.default_rng(seed))
        s = score(self.pool)
        odds = np.exp(s)
        self.log_ratio = s - np.log(odds.mean())
        self._share = odds / odds.sum()

    def draw(self, diseased: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Population, Floats]:
        """One record for each patient.

        Parameters
        ----------
        diseased
            The hidden state, bool, shape (patients,).

        Returns
        -------
        people, log_ratio
            `log_ratio` is the exact log likelihood ratio of each record for the hidden state.
        """
        rows = rng.integers(len(self.pool), size=len(diseased))
        rows[diseased] = rng.choice(len(self.pool), size=int(diseased.sum()), p=self._share)
        return self.pool.take(rows), self.log_ratio[rows]


def with_gaps(record: ClinicalRecord, missing: float, rng: np.random.Generator) -> ClinicalRecord:
    """The record without some of its items, each left out with the chance `missing`."""
    kept = rng.random(len(ITEMS)) >= missing
    return ClinicalRecord(
        **{name: getattr(record, name) for name, keep in zip(ITEMS, kept, strict=True) if keep}
    )
