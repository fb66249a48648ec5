"""Synthetic data sets in the layout and the encodings of the real ones: ``mammoray synth``, the demo, all tests.

Everything follows from the seed: identifiers, tables, pixels, and so the bytes of every file. No date, no name, no
random UID enters. How a DICOM is encoded goes with its machine (:mod:`mammoray.machines`), and machines are dealt
independently of density. Where a file stands goes with the layout (:mod:`mammoray.writers`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom.uid import generate_uid

from mammoray.config import SynthConfig
from mammoray.errors import ConfigError, RunFolderError
from mammoray.machines import FILM, SITES, make_dicom, quantise
from mammoray.phantom import Anatomy, anatomy, expose, render
from mammoray.plain import digest
from mammoray.writers import LAYOUTS, Layout, Row, patches, png

VERSION = 1
"""Counts up whenever the same seed and settings begin to give other files."""
MARK = "synth.json"
"""Written last: a folder without it is not a complete data set."""
CLASS_SHARE = {"A": 0.2, "B": 0.3, "C": 0.3, "D": 0.2}
"""Flatter than any real set (RSNA: 10, 43, 42, 5 %), so that small sets hold all classes."""
PIXELS_PER_PROCESS = 20_000_000
"""A process more for every so many pixels: about two seconds of work, as a process takes one to start."""
_AGE = {"A": 60.0, "B": 60.0, "C": 54.8, "D": 50.4}


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthSummary:
    """What :func:`write` wrote, or found already written."""

    csv: Path | None
    """The table: train.csv, classificacao.csv or metadata.csv; None in the layouts of PNG files."""
    root: Path
    """The folder of the images: what ``--dicom-root`` takes."""
    images: int
    patients: int
    per_class: dict[str, int]
    """Patients of each class A to D; with ``unlabelled`` and, in the IRMA layout, the excluded class ``5``."""
    per_syntax: dict[str, int]
    """Images of each transfer syntax, by UID; ``png`` in the layouts of PNG files."""

    @property
    def table(self) -> Path:
        """The table of a layout that has one.

        Raises
        ------
        ConfigError
            For a layout that has none.
        """
        if self.csv is None:
            raise ConfigError("--layout", "a layout with a table", "one of PNG files", "Choose another --layout.")
        return self.csv


@dataclass(frozen=True, kw_only=True, slots=True)
class _Patient:
    """Everything about a patient that depends on the others: identifiers and what is dealt by quota."""

    index: int
    folder: str
    density: str
    site: int
    machine: str
    image_ids: tuple[int, ...]
    aged: bool
    excluded: bool
    studies: int


def quota(total: int, shares: Mapping[str, float], least: int = 0) -> list[str]:
    """``total`` names in the proportions of ``shares`` by largest remainder, each at least ``least`` times.

    Examples
    --------
    >>> "".join(quota(24, CLASS_SHARE, least=5))
    'AAAAABBBBBBBCCCCCCCDDDDD'
    """
    least = min(least, total // len(shares))
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    count = {name: max(int(value), least) for name, value in exact.items()}
    while sum(count.values()) != total:
        step = 1 if sum(count.values()) < total else -1
        movable = [name for name in count if step > 0 or count[name] > least]
        count[max(movable, key=lambda name: step * (exact[name] - count[name]))] += step
    return [name for name in count for _ in range(count[name])]


def _plan(config: SynthConfig, seed: int) -> list[_Patient]:
    rng = np.random.default_rng([seed, 0])
    n, layout = config.patients, LAYOUTS[config.layout]
    excluded = n // 20 if config.layout == "irma" else 0
    elsewhere = round(n * config.unlabelled)
    labelled = n - excluded - elsewhere

    def shuffled(names: list[str]) -> list[str]:
        return [names[i] for i in rng.permutation(len(names))]

    classes = shuffled(quota(labelled, CLASS_SHARE, least=5))
    classes += shuffled(quota(n - labelled, CLASS_SHARE))
    home = {name: m.share for name, m in (FILM if layout.film else SITES[1]).items()}
    machines = shuffled(quota(n - elsewhere, home, least=1))
    machines += shuffled(quota(elsewhere, {name: m.share for name, m in SITES[2].items()}, least=1))
    folders = rng.choice(200_000 if layout.leading_zeros else 65_535, n, replace=False) + 1
    images = rng.choice(2**31 - 1, (n, 8), replace=False)
    ageless = set(rng.choice(n, n // 25, replace=False).tolist())
    return [
        _Patient(
            index=i,
            folder=_folder(layout, int(folders[i]), classes[: i + 1]),
            density=classes[i],
            site=1 if i < n - elsewhere else 2,
            machine=machines[i],
            image_ids=tuple(int(v) for v in images[i]),
            aged=i not in ageless,
            excluded=n - excluded <= i,
            studies=2 if config.layout == "study" and i % 4 == 1 else 1,
        )
        for i in range(n)
    ]


def _folder(layout: Layout, drawn: int, classes: list[str]) -> str:
    """Identifier of the last patient of ``classes``; in the layouts of PNG files her number within her class."""
    if layout.kind == ".png":
        return str(classes.count(classes[-1]))
    return f"{drawn:06d}" if layout.leading_zeros else str(drawn)


def _views(patient: _Patient, layout: Layout, rng: np.random.Generator) -> list[tuple[str, str]]:
    if patient.excluded:  # "non-standard incidence"
        return [(laterality, view) for laterality in "LR" for view in ("ML", "LM")]
    views = [(laterality, view) for laterality in "LR" for view in ("CC", "MLO")]
    if layout.kind == ".png" or patient.studies > 1:
        return views * patient.studies
    more = int(rng.integers(1, 3)) if rng.random() < (0.25 if patient.site == 1 else 0.1) else 0
    kinds = rng.choice(["CC", "MLO", "AT", "LM", "ML", "LMO"], more, p=[0.35, 0.35, 0.12, 0.08, 0.08, 0.02])
    return views + [(str(rng.choice(["L", "R"])), str(kind)) for kind in kinds]


def _age(density: str, rng: np.random.Generator) -> float:
    return float(np.clip(round(rng.normal(_AGE[density], 9)), 26, 89))


def _findings(site: int, rng: np.random.Generator) -> dict[str, object]:
    """Draw a breast's columns: invasive implies cancer; cancer implies biopsy and, at site 1, BIRADS 0."""
    cancer = rng.random() < 0.04
    birads = rng.choice(["", "0.0", "1.0", "2.0"], p=[0.11, 0.24, 0.57, 0.08])
    birads = "" if site == 2 else "0.0" if cancer else str(birads)
    recalled = birads == "0.0" and not cancer
    return {
        "cancer": int(cancer),
        "biopsy": int(cancer or (recalled and rng.random() < 0.2)),
        "invasive": int(cancer and rng.random() < 0.7),
        "BIRADS": birads,
        "difficult_negative_case": recalled or (site == 2 and not cancer and rng.random() < 0.005),
    }


def _write_patient(root: Path, patient: _Patient, config: SynthConfig, seed: int) -> list[Row]:
    """Write a patient's files; returns a row per file: what the lists of the layout want, its path and its syntax."""
    rng = np.random.default_rng([seed, 1, patient.index])
    layout = LAYOUTS[config.layout]
    implant = not layout.film and patient.site == 1 and rng.random() < 0.03
    woman = anatomy(patient.density, rng, implant=implant)
    age = _age(patient.density, rng)
    findings = {laterality: _findings(patient.site, rng) for laterality in "LR"}
    views = _views(patient, layout, rng)
    series = int(rng.integers(1, 5))
    rows: list[Row] = []
    for k, (laterality, view) in enumerate(views):
        row = {
            "site_id": patient.site,
            "patient_id": patient.folder,
            "study_id": f"{1 + k // 4 if patient.studies > 1 else 1:03d}",
            "series_id": f"{1 + k % series:03d}",
            "image_id": f"IM{k + 1:04d}" if config.layout == "irma" else str(patient.image_ids[k]),
            "number": 4 * patient.index + k + 1,
            "laterality": laterality,
            "view": view,
            "age": age if patient.aged else "",
            "implant": int(woman.implant),
            "density": patient.density,
            "excluded": patient.excluded,
            "machine_id": patient.machine,
            **findings[laterality],
        }
        rows += _write_image(root, patient, woman, row, k, config, seed)
    return rows


def _write_image(
    root: Path, patient: _Patient, woman: Anatomy, row: Row, k: int, config: SynthConfig, seed: int
) -> list[Row]:
    """Write the patient's image ``k``, or the patches of it; returns ``row`` for each file, completed."""
    layout = LAYOUTS[config.layout]
    laterality, view = row["laterality"], row["view"]
    machine = (FILM if layout.film else SITES[patient.site])[patient.machine]
    rng = np.random.default_rng([seed, 2, patient.index, k])
    phantom = render(woman, laterality, view, (config.height, config.width), rng)
    shown = expose(phantom, machine.tone, f"{laterality} {view}", rng)
    rows = []
    for piece, picture in enumerate(patches(shown, phantom.mask, rng) if layout.patches else [shown]):
        if layout.kind == ".png":
            syntax, data = "png", png(picture)
        else:
            syntax = str(machine.encoding.transfer_syntax)
            data = make_dicom(
                quantise(picture, machine.encoding),
                machine.encoding,
                laterality=laterality,
                view=view,
                patient_id=patient.folder,
                key=(digest(config), seed, patient.index, k),
                attributes=_attributes(woman, row, config, seed),
            )
        done = {**row, "piece": piece, "syntax": syntax}
        done["path"] = layout.path(done)
        (root / done["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / done["path"]).write_bytes(data)
        rows.append(done)
    return rows


def _attributes(woman: Anatomy, row: Row, config: SynthConfig, seed: int) -> dict[str, str]:
    """DICOM attributes beyond the factory's: the implant, and the UIDs of the study layout's studies and series."""
    values = {"BreastImplantPresent": "YES"} if woman.implant else {}
    if config.layout == "study":
        study = [digest(config), str(seed), row["patient_id"], row["study_id"]]
        values["StudyInstanceUID"] = generate_uid(entropy_srcs=["study", *study])
        values["SeriesInstanceUID"] = generate_uid(entropy_srcs=["series", *study, row["series_id"]])
    return values


def write(outdir: Path, config: SynthConfig, seed: int) -> SynthSummary:
    """Write a data set, or return the summary of the same one where it is already there.

    The files depend on ``config`` and ``seed`` only, not on the number of processes. ``synth.json`` is written last.

    Parameters
    ----------
    outdir : Path
        A folder that does not exist, is empty, or holds exactly this data set.
    config : SynthConfig
        Size and layout.
    seed : int
        0 or more.

    Raises
    ------
    ConfigError
        For a negative seed, or ``unlabelled`` in a layout other than RSNA's, which alone has two sites.
    RunFolderError
        Where ``outdir`` holds anything else, or cannot be written.
    """
    if seed < 0:
        raise ConfigError("--seed", "0 or more", str(seed), "Change --seed.")
    if config.layout != "rsna" and config.unlabelled:
        raise ConfigError(
            f"--unlabelled with --layout {config.layout}", "0, as every image there has a class",
            str(config.unlabelled), "Leave out one of them.",
        )  # fmt: skip
    same = {"version": VERSION, "seed": seed, "config": asdict(config)}
    present = _present(outdir, same)
    if present is not None:
        return present
    layout = LAYOUTS[config.layout]
    root = outdir / layout.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        plan = _plan(config, seed)
        by_patient = _run(root, plan, config, seed)
        rows = sorted((row for rows in by_patient for row in rows), key=lambda row: int(row["patient_id"]))
        table = layout.lists(outdir, root, rows)
        counted = {
            "csv": table.name if table else None,
            "root": layout.root,
            "images": len(rows),
            "patients": len(plan),
            "per_class": dict(sorted(Counter(_class(p) for p in plan).items())),
            "per_syntax": dict(sorted(Counter(str(row["syntax"]) for row in rows).items())),
        }
        draft = outdir / (MARK + ".partial")
        draft.write_text(json.dumps({**same, "summary": counted}, indent=1) + "\n", encoding="utf-8")
        draft.replace(outdir / MARK)
    except OSError as error:
        raise RunFolderError(str(outdir), "a writable folder", str(error), "Choose another folder.") from error
    return _summary(outdir, counted)


def _class(patient: _Patient) -> str:
    return "5" if patient.excluded else "unlabelled" if patient.site == 2 else patient.density


def _summary(outdir: Path, counted: dict[str, Any]) -> SynthSummary:
    table = counted["csv"] and outdir / counted["csv"]
    return SynthSummary(**{**counted, "csv": table, "root": outdir / counted["root"]})


def _present(outdir: Path, same: dict[str, Any]) -> SynthSummary | None:
    """Return the summary of the same data set in ``outdir``, None where nothing is; raise for anything else."""
    if not outdir.exists() or (outdir.is_dir() and not any(outdir.iterdir())):
        return None
    expected = "no folder, an empty one, or the same synthetic data set"
    remedy = "Choose another folder, or delete this one if nothing in it is needed."
    try:
        mark = json.loads((outdir / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"other files, or an unfinished data set (no readable {MARK})"
        raise RunFolderError(str(outdir), expected, found, remedy) from error
    mark = mark if isinstance(mark, dict) else {}
    if {name: mark.get(name) for name in same} != same:
        found = "a data set of other settings: " + ", ".join(f"{name} {mark.get(name)}" for name in same)
        raise RunFolderError(str(outdir), expected, found, remedy)
    summary = _summary(outdir, mark["summary"])
    images = sum(1 for _ in summary.root.rglob("*" + LAYOUTS[mark["config"]["layout"]].kind))
    if images != summary.images or (summary.csv and not summary.csv.is_file()):
        expected = " and ".join([f"{summary.images} images", *([summary.csv.name] if summary.csv else [])])
        raise RunFolderError(str(outdir), expected, f"{images} images", remedy)
    return summary


def _run(root: Path, plan: list[_Patient], config: SynthConfig, seed: int) -> list[list[Row]]:
    """Rows of every patient, in the plan's order, written by as many processes as are worth their start."""
    pixels = 4 * len(plan) * config.height * config.width
    processes = min(os.cpu_count() or 1, len(plan), 1 + pixels // PIXELS_PER_PROCESS)
    work = partial(_write_patient, root, config=config, seed=seed)
    if processes == 1:
        return [work(patient) for patient in plan]
    # Spawned, not forked: the caller may hold the threads of Ray, torch or OpenCV.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return list(pool.map(work, plan, chunksize=2))
