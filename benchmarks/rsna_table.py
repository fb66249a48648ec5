"""A table in the form of RSNA's train.csv, with its counts and none of its rows.

``python benchmarks/rsna_table.py FILE [SEED]`` writes it: 54,706 rows, 11,913 patients, the 14 columns, and what was
measured on the real table: images and patients per density, images per machine, view, BIRADS and cancer, the blanks,
and what implies what. How these are combined beyond that (ages within a class, BIRADS within a machine) is drawn by
chance. :func:`check` counts again and refuses a table that misses a fact.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]

COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
# Density to (images, patients); the blank of site 1, then the blank of site 2.
DENSITY = {"A": (3105, 553), "B": (12651, 2511), "C": (12175, 2436), "D": (1539, 309)}
BLANK = {"1": (49, 9), "2": (25187, 6095)}
MACHINES = {
    "1": {"49": 23529, "93": 1915, "216": 1908, "210": 1070, "170": 923, "190": 145, "197": 29},
    "2": {"48": 8699, "29": 8267, "21": 8221},
}
VIEWS = {"MLO": 27903, "CC": 26765, "AT": 19, "LM": 10, "ML": 8, "LMO": 1}
BIRADS = {"": 28420, "1.0": 15772, "0.0": 8249, "2.0": 2265}
AGES = {"A": 60.0, "B": 60.0, "C": 54.8, "D": 50.4}
BLANK_AGES = 37
CANCER = {"images": 1158, "breasts": 492, "patients": 486}
INVASIVE = 818
IMPLANTS = 171
DIFFICULT_BLANK = 120
_STANDARD = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))


class FactsError(ValueError):
    """The table misses a count that it was made for."""


def make(seed: int = 0) -> pd.DataFrame:
    """The table: 54,706 rows of 14 columns, all of them strings, blanks empty; sorted by patient and image.

    Raises
    ------
    FactsError
        It misses one of the facts.
    """
    rng = np.random.default_rng(seed)
    patients = _patients(rng)
    rows = _rows(patients, rng)
    _add_machines(rows, patients, rng)
    _add_findings(rows, rng)
    table = rows.assign(patient_id=_ids(len(patients), 6, rng)[rows["patient"]], image_id=_ids(len(rows), 10, rng))
    table = table[list(COLUMNS)].astype(str).sort_values(["patient_id", "image_id"], ignore_index=True)
    check(table)
    return table


def _patients(rng: np.random.Generator) -> pd.DataFrame:
    """One row per patient: site, density, number of images, age, implant."""
    groups = [("1", letter, *counts) for letter, counts in DENSITY.items()]
    groups += [(site, "", *counts) for site, counts in BLANK.items()]
    parts = []
    for site, letter, images, patients in groups:
        most = 6 if site == "2" or not letter else 14
        sizes = _sizes(images, patients, most, rng)
        age = np.clip(np.rint(rng.normal(AGES.get(letter, 58.0), 9, patients)), 27, 88)
        parts.append(pd.DataFrame({"site_id": site, "density": letter, "images": sizes, "age": age}))
    table = pd.concat(parts, ignore_index=True)
    labelled = np.flatnonzero(table["density"] != "")
    table.loc[labelled[:2], "age"] = (26.0, 89.0)
    table["implant"] = 0
    table.loc[rng.choice(labelled, IMPLANTS, replace=False), "implant"] = 1
    blank = np.flatnonzero(table["site_id"] == "2")
    table.loc[blank[pick(table["images"].to_numpy()[blank], BLANK_AGES, rng)], "age"] = np.nan
    return table


def _sizes(images: int, patients: int, most: int, rng: np.random.Generator) -> Ints:
    """Images of each patient, 4 to ``most``; most patients have 4, few have many."""
    extra = np.zeros(patients, dtype=np.int64)
    if most == 14:
        extra[0] = most - 4  # The largest is always there.
    weights = rng.gamma(0.4, size=patients)
    while (missing := images - 4 * patients - int(extra.sum())) > 0:
        open_weights = np.where(extra < most - 4, weights, 0)
        extra = np.minimum(extra + rng.multinomial(missing, open_weights / open_weights.sum()), most - 4)
    return np.asarray(extra + 4)


def pick(sizes: Ints, total: int, rng: np.random.Generator) -> Ints:
    """Indices of units, drawn by chance, whose sizes add up to exactly ``total``.

    Raises
    ------
    FactsError
        There are none.
    """
    least, rest, chosen = int(sizes.min()), total, []
    for i in rng.permutation(len(sizes)):
        left = rest - int(sizes[i])
        # What is left has to be a sum of units of the two smallest sizes, of which there are many.
        if left >= 0 and left % least <= left // least:
            chosen.append(int(i))
            rest = left
        if rest == 0:
            return np.array(chosen, dtype=np.int64)
    raise FactsError(f"no units of {total} images")


def _rows(patients: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One row per image: four standard views of every patient, then the others."""
    of_extra = np.repeat(np.arange(len(patients)), patients["images"] - 4)
    standard = pd.DataFrame(_STANDARD * len(patients), columns=["laterality", "view"])
    standard["patient"] = np.repeat(np.arange(len(patients)), 4)
    left = {view: count - 2 * len(patients) * (view in ("CC", "MLO")) for view, count in VIEWS.items()}
    extra = pd.DataFrame(
        {
            "laterality": rng.choice(["L", "R"], len(of_extra)),
            "view": rng.permutation(np.repeat(list(left), list(left.values()))),
            "patient": of_extra,
        }
    )
    rows = pd.concat([standard, extra], ignore_index=True)
    known = patients.drop(columns="images").iloc[rows["patient"]].reset_index(drop=True)
    known["age"] = known["age"].map(lambda age: "" if np.isnan(age) else f"{age:.1f}")
    return pd.concat([rows, known], axis=1)


def _add_machines(rows: pd.DataFrame, patients: pd.DataFrame, rng: np.random.Generator) -> None:
    """Deal whole patients to machines by exact image counts; one patient of site 1 stands on two machines."""
    rows["machine_id"] = ""
    sizes = patients["images"].to_numpy()
    for site, wanted in MACHINES.items():
        home, *others = wanted
        free = np.flatnonzero((patients["site_id"] == site) & (patients["density"] != "" if site == "1" else True))
        counts = {name: wanted[name] for name in others}
        if site == "1":
            twice, free = free[-1], free[:-1]
            both = rows.index[rows["patient"] == twice]
            rows.loc[both, "machine_id"] = [others[0], *[others[1]] * (len(both) - 1)]
            counts[others[0]] -= 1
            counts[others[1]] -= len(both) - 1
        for name in sorted(counts, key=lambda name: counts[name]):
            chosen = free[pick(sizes[free], counts[name], rng)]
            rows.loc[rows["patient"].isin(chosen), "machine_id"] = name
            free = np.setdiff1d(free, chosen)
        rest = (rows["site_id"] == site) & (rows["machine_id"] == "")
        rows.loc[rest, "machine_id"] = home


def _add_findings(rows: pd.DataFrame, rng: np.random.Generator) -> None:
    """Cancer, biopsy, invasive and BIRADS, a value per breast; then the difficult negative cases."""
    breast = rows["patient"] * 2 + (rows["laterality"] == "R")
    sizes = np.bincount(breast)
    cancer = _cancers(sizes, rng)
    site_1 = rows.groupby(breast)["site_id"].first().to_numpy() == "1"
    invasive = cancer[pick(sizes[cancer], INVASIVE, rng)]
    birads = np.full(len(sizes), "", dtype=object)
    birads[cancer[site_1[cancer]]] = "0.0"
    open_breasts = np.flatnonzero(site_1 & ~np.isin(np.arange(len(sizes)), cancer))
    for value in ("0.0", "1.0", "2.0"):
        chosen = open_breasts[pick(sizes[open_breasts], BIRADS[value] - int(sizes[birads == value].sum()), rng)]
        birads[chosen] = value
        open_breasts = np.setdiff1d(open_breasts, chosen)
    rows["BIRADS"] = birads[breast]
    biopsied = np.concatenate([cancer, rng.choice(len(sizes), len(cancer), replace=False)])
    for name, those in {"cancer": cancer, "biopsy": biopsied, "invasive": invasive}.items():
        rows[name] = breast.isin(those).astype(int)
    difficult = (rows["BIRADS"] == "0.0") & (rows["cancer"] == 0)
    candidates = np.flatnonzero((rows["site_id"] == "2") & (rows["cancer"] == 0))
    difficult.iloc[rng.choice(candidates, DIFFICULT_BLANK, replace=False)] = True
    rows["difficult_negative_case"] = difficult


def _cancers(sizes: Ints, rng: np.random.Generator) -> Ints:
    """Indices of the breasts with cancer: the given numbers of images, breasts and patients."""
    both = CANCER["breasts"] - CANCER["patients"]
    chosen = rng.choice(len(sizes) // 2, CANCER["patients"], replace=False)
    sides = rng.integers(0, 2, len(chosen))
    breasts = np.concatenate([chosen * 2 + sides, chosen[:both] * 2 + 1 - sides[:both]])
    others = np.setdiff1d(np.arange(len(sizes) // 2), chosen)
    # A patient of one size is exchanged for another until the images are right as well.
    for place in range(both, len(chosen)):
        missing = CANCER["images"] - int(sizes[breasts].sum())
        if missing == 0:
            return np.asarray(breasts)
        fits = others[sizes[others * 2] - sizes[breasts[place]] == np.sign(missing)]
        if len(fits):
            breasts[place] = rng.choice(fits) * 2
            others = others[others != breasts[place] // 2]
    raise FactsError("no breasts with the images of the cancers")


def _ids(count: int, digits: int, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    low = 10 ** (digits - 1)
    return rng.permutation(low + np.unique(rng.integers(0, 8 * low, 2 * count))[-count:]).astype(str)


def check(table: pd.DataFrame) -> None:
    """Count everything again.

    Raises
    ------
    FactsError
        Names every fact that the table misses.
    """
    facts = {**_patient_facts(table), **_finding_facts(table)}
    wrong = [f"{name}: {found} instead of {wanted}" for name, (found, wanted) in facts.items() if found != wanted]
    if wrong:
        raise FactsError("; ".join(wrong))


def _patient_facts(table: pd.DataFrame) -> dict[str, tuple[object, object]]:
    """Name to (found, wanted): patients, densities, machines, views, ages, implants."""
    patients = table.groupby("patient_id")
    sizes, sites = patients.size(), patients["site_id"].first()
    site_1 = table["site_id"] == "1"
    density = table.groupby("density")["patient_id"].agg(["size", "nunique"])
    blank = tuple(map(sum, zip(*BLANK.values(), strict=True)))
    standard = table[table["view"].isin(["CC", "MLO"])].drop_duplicates(["patient_id", "laterality", "view"])
    ages = pd.to_numeric(table["age"])
    means = {letter: abs(ages[table["density"] == letter].mean() - mean) < 1 for letter, mean in AGES.items()}
    implants = table[table["implant"] == "1"].drop_duplicates("patient_id")["site_id"].tolist()
    return {
        "columns": (tuple(table.columns), COLUMNS),
        "rows and patients": ((len(table), len(sizes)), (54706, 11913)),
        "ids of images": (table["image_id"].nunique(), len(table)),
        "images of a patient": ((sizes.min(), sizes.max(), sizes[sites == "2"].max()), (4, 14, 6)),
        "density": ({letter: tuple(n) for letter, n in density.T.items()}, {**DENSITY, "": blank}),
        "densities of a patient": (patients["density"].nunique().max(), 1),
        "densities of site 2": (set(table.loc[~site_1, "density"]), {""}),
        "machines": (table["machine_id"].value_counts().to_dict(), {**MACHINES["1"], **MACHINES["2"]}),
        "machines of site 1": (set(table.loc[site_1, "machine_id"]), set(MACHINES["1"])),
        "patients on two machines": (sorted(patients["machine_id"].nunique())[-2:], [1, 2]),
        "views": (table["view"].value_counts().to_dict(), VIEWS),
        "standard views": (len(standard), 4 * len(sizes)),
        "ages": ((ages.min(), ages.max(), ages.isna().sum()), (26, 89, BLANK_AGES)),
        "mean ages": (means, dict.fromkeys(AGES, True)),
        "implants": (implants, ["1"] * IMPLANTS),
    }


def _finding_facts(table: pd.DataFrame) -> dict[str, tuple[object, object]]:
    """Name to (found, wanted): BIRADS, cancer, and what implies what."""
    cancer, site_1, birads = table["cancer"] == "1", table["site_id"] == "1", table["BIRADS"]
    sick, invasive = table[cancer], table[table["invasive"] == "1"]
    breasts = sick.drop_duplicates(["patient_id", "laterality"])
    difficult = table["difficult_negative_case"] == "True"
    recalled = (birads == "0.0") & ~cancer
    return {
        "BIRADS": (birads.value_counts().to_dict(), BIRADS),
        "cancer": ((len(sick), len(breasts), breasts["patient_id"].nunique()), tuple(CANCER.values())),
        "invasive": ((len(invasive), set(invasive["cancer"])), (INVASIVE, {"1"})),
        "biopsies of cancer": (set(sick["biopsy"]), {"1"}),
        "BIRADS of cancer at site 1": (set(birads[cancer & site_1]), {"0.0"}),
        "BIRADS of site 2": (set(birads[~site_1]), {""}),
        "recalled, but not difficult": (int((recalled & ~difficult).sum()), 0),
        "difficult, not recalled": (table.loc[difficult & ~recalled, "site_id"].tolist(), ["2"] * DIFFICULT_BLANK),
        "difficult with cancer": (int((difficult & cancer).sum()), 0),
    }


if __name__ == "__main__":
    made = make(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    made.to_csv(Path(sys.argv[1]), index=False)
    print(f"{len(made):,} rows, {made['patient_id'].nunique():,} patients: {sys.argv[1]}")
