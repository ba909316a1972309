"""Synthetic clinical records, drawn so that they tell of cancer exactly as published models say.

No clinical record comes with the public images. A patient without a malignant nodule gets a record r from a
base population q0, one with a malignant nodule from q1, where

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
What is measured on such records says whether the fusion head can use a record, and nothing about patients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from inference.record import ITEMS, ClinicalRecord, Sex, Smoking

STATUS = (Smoking.NEVER, Smoking.FORMER, Smoking.CURRENT)
POOL = 200_000

Floats = NDArray[np.float64]


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
    """Draws records for patients with and without a malignant nodule.

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

    def draw(self, malignant: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Population, Floats]:
        """One record for each patient.

        Returns
        -------
        people, log_ratio
            `log_ratio` is the exact log likelihood ratio of each record.
        """
        rows = rng.integers(len(self.pool), size=len(malignant))
        rows[malignant] = rng.choice(len(self.pool), size=int(malignant.sum()), p=self._share)
        return self.pool.take(rows), self.log_ratio[rows]


def with_gaps(record: ClinicalRecord, missing: float, rng: np.random.Generator) -> ClinicalRecord:
    """The record without some of its items, each left out with the chance `missing`."""
    kept = rng.random(len(ITEMS)) >= missing
    return ClinicalRecord(
        **{name: getattr(record, name) for name, keep in zip(ITEMS, kept, strict=True) if keep}
    )
