from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pydicom
import pytest
from PIL import Image

from mammoray import synth, writers
from mammoray.config import SynthConfig
from mammoray.errors import RunFolderError
from mammoray.machines import FILM
from mammoray.phantom import anatomy, draw, expose, render
from mammoray.synth import SynthSummary, write
from mammoray.writers import LAYOUTS

SEED = 5
PNG_LAYOUTS = ("mamografias", "patches", "folders")
SOURCE = re.compile(r"p_([d-g])_(left|right)_(cc|mlo)\((\d+)\)(?:_([2-9]))?")


def config(layout: Any, patients: int = 12) -> SynthConfig:
    return SynthConfig(patients=patients, height=96, width=80, layout=layout)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SynthSummary]:
    root = tmp_path_factory.mktemp("writers")
    return {name: write(root / name, config(name), SEED) for name in LAYOUTS}


def features(file: Path) -> dict[str, int]:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) % 2 == 0
    return dict(zip(lines[::2], map(int, lines[1::2]), strict=True))


def metadata(data: SynthSummary) -> list[dict[str, str]]:
    with data.table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def plan(layout: str) -> list[synth._Patient]:
    return synth._plan(config(layout), SEED)


# All layouts ---------------------------------------------------------------------------------------------------------


def test_every_layout_of_the_setting_has_a_writer() -> None:
    assert set(get_args(get_type_hints(SynthConfig)["layout"])) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_four_classes_are_present_and_the_summary_counts_every_file(
    layout: str, sets: dict[str, SynthSummary]
) -> None:
    data = sets[layout]
    assert set(data.per_class) == set("ABCD") and sum(data.per_class.values()) == data.patients == 12
    files = [p for p in data.root.rglob("*") if p.suffix == LAYOUTS[layout].kind]
    assert data.images == len(files) == sum(data.per_syntax.values()) >= 4 * 12
    assert (data.csv is None) == (layout in PNG_LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_is_found_again_and_refused_where_a_file_is_missing(layout: str, tmp_path: Path) -> None:
    first = write(tmp_path, config(layout, 2), 1)
    assert write(tmp_path, config(layout, 2), 1) == first
    next(first.root.rglob("*" + LAYOUTS[layout].kind)).unlink()
    with pytest.raises(RunFolderError, match=f"found {first.images - 1} images"):
        write(tmp_path, config(layout, 2), 1)


# The study layout ----------------------------------------------------------------------------------------------------


def test_study_rows_and_files_are_one_to_one(sets: dict[str, SynthSummary]) -> None:
    data = sets["study"]
    rows = metadata(data)
    assert list(rows[0]) == ["patient_id", "study_id", "series_id", "image_id", "laterality", "view", "density"]
    named = [
        f"patient_{r['patient_id']}/study_{r['study_id']}/series_{r['series_id']}/{r['image_id']}.dcm" for r in rows
    ]
    assert sorted(named) == sorted(p.relative_to(data.root).as_posix() for p in data.root.rglob("*.dcm"))
    assert data.csv == data.root / "metadata.csv"
    assert {p.name for p in data.root.iterdir() if not p.name.startswith("patient_")} == {"metadata.csv", synth.MARK}


def test_study_patients_keep_six_digits_and_one_density(sets: dict[str, SynthSummary]) -> None:
    density: dict[str, set[str]] = {}
    for row in metadata(sets["study"]):
        density.setdefault(row["patient_id"], set()).add(row["density"])
    assert all(re.fullmatch(r"\d{6}", patient) for patient in density)
    assert any(patient.startswith("0") for patient in density)
    assert all(len(values) == 1 for values in density.values())
    by_plan = {p.folder: {str("ABCD".index(p.density) + 1)} for p in plan("study")}
    assert density == by_plan and set.union(*density.values()) == set("1234")


def test_some_patients_have_two_studies_of_four_views_and_a_study_has_one_to_four_series(
    sets: dict[str, SynthSummary],
) -> None:
    rows = metadata(sets["study"])
    studies = {(r["patient_id"], r["study_id"]) for r in rows}
    per_patient = Counter(patient for patient, _ in studies)
    assert Counter(per_patient.values()) == {1: 9, 2: 3}
    for patient in (p for p, count in per_patient.items() if count == 2):
        views = Counter((r["study_id"], r["laterality"], r["view"]) for r in rows if r["patient_id"] == patient)
        assert set(views.values()) == {1} and len(views) == 8
    series = Counter((p, s) for p, s, _ in {(r["patient_id"], r["study_id"], r["series_id"]) for r in rows})
    assert series.keys() == studies and set(series.values()) == {1, 2, 3, 4}


def test_study_headers_agree_with_the_table_and_with_the_folders(sets: dict[str, SynthSummary]) -> None:
    folders: dict[tuple[str, str], set[str]] = {}
    for row in metadata(sets["study"]):
        keys = [row[f"{level}_id"] for level in ("patient", "study", "series")]
        folder = sets["study"].root.joinpath(
            *(f"{a}_{b}" for a, b in zip(("patient", "study", "series"), keys, strict=True))
        )
        header = pydicom.dcmread(folder / f"{row['image_id']}.dcm", stop_before_pixels=True)
        assert (header.PatientID, header.ImageLaterality, header.ViewPosition) == (
            row["patient_id"], row["laterality"], row["view"],
        )  # fmt: skip
        folders.setdefault(("study", header.StudyInstanceUID), set()).add("/".join(keys[:2]))
        folders.setdefault(("series", header.SeriesInstanceUID), set()).add("/".join(keys))
    assert all(len(places) == 1 for places in folders.values())
    assert len(folders) == len({p for places in folders.values() for p in places})


# The layouts of PNG files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", PNG_LAYOUTS)
def test_pngs_are_8_bit_grey_and_hold_nothing_but_pixels(layout: str, sets: dict[str, SynthSummary]) -> None:
    for path in sets[layout].root.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.info) == ("PNG", "L", {})
            assert image.size == ((40, 40) if layout == "patches" else (80, 96))
            assert np.asarray(image).max() > 50


def test_mamografias_has_a_folder_and_a_list_per_tissue_side_and_view(sets: dict[str, SynthSummary]) -> None:
    root = sets["mamografias"].root
    assert root.name == "mamografias"
    wanted = {f"{t}{side}{view}" for t in "DEFG" for side in ("left", "right") for view in ("CC", "MLO")}
    assert {p.name for p in root.iterdir()} == wanted
    for folder in root.iterdir():
        tissue, side, view = re.fullmatch("([DEFG])(left|right)(CC|MLO)", folder.name).groups()  # type: ignore[union-attr]
        listed = features(folder / "featureS.txt")
        assert set(listed.values()) == {"DEFG".index(tissue)}
        assert {f"{name}.png" for name in listed} | {"featureS.txt"} == {p.name for p in folder.iterdir()}
        count = sum(p.density == "ABCD"["DEFG".index(tissue)] for p in plan("mamografias"))
        assert list(listed) == [f"{tissue}_{side}_{view} ({n + 1})".lower() for n in range(count)]


def test_a_listed_class_is_the_density_of_the_phantom_in_the_image(sets: dict[str, SynthSummary]) -> None:
    root, shape = sets["mamografias"].root, (96, 80)
    for patient in plan("mamografias"):
        woman = anatomy(patient.density, np.random.default_rng([SEED, 1, patient.index]))
        for k, (laterality, view) in enumerate((s, v) for s in "LR" for v in ("CC", "MLO")):
            rng = np.random.default_rng([SEED, 2, patient.index, k])
            phantom = render(woman, laterality, view, shape, rng)
            shown = expose(phantom, FILM[patient.machine].tone, f"{laterality} {view}", rng)
            side = {"L": "left", "R": "right"}[laterality]
            letter = "DEFG"["ABCD".index(patient.density)]
            folder = root / f"{letter}{side}{view}"
            name = f"{letter}_{side}_{view} ({patient.folder})".lower()
            with Image.open(folder / f"{name}.png") as image:
                assert (folder / f"{name}.png").read_bytes() == writers.png(shown)
                np.testing.assert_array_equal(image, np.rint(shown * 255))
            label = features(folder / "featureS.txt")[name]
            assert label / 4 - 0.08 <= phantom.fraction <= (label + 1) / 4 + 0.08


def test_patches_stand_in_one_folder_with_one_list_and_name_their_source(sets: dict[str, SynthSummary]) -> None:
    root = sets["patches"].root
    listed = features(root / "featureS.txt")
    assert {f"{name}.png" for name in listed} | {"featureS.txt"} == {p.name for p in root.iterdir()}
    counts: Counter[tuple[str, ...]] = Counter()
    for name, label in listed.items():
        tissue, *source, piece = SOURCE.fullmatch(name).groups()  # type: ignore[union-attr]
        assert label == "defg".index(tissue)
        counts[(tissue, *source)] += 1
        assert int(piece or 1) == counts[(tissue, *source)]
    assert len(counts) == 4 * 12 and set(counts.values()) == {1, 2, 3}


@pytest.mark.parametrize(("shape", "side"), [((416, 320), 128), ((256, 300), 128), ((96, 80), 40), ((64, 64), 32)])
def test_patches_are_squares_of_the_image_that_lie_in_the_breast(shape: tuple[int, int], side: int) -> None:
    for seed in range(6):
        phantom = draw("ABCD"[seed % 4], "LR"[seed % 2], ("CC", "MLO")[seed % 2], shape, np.random.default_rng(seed))
        numbered = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        cut = writers.patches(numbered, phantom.mask, np.random.default_rng(seed))
        assert 1 <= len(cut) <= 3 and len({piece[0, 0] for piece in cut}) == len(cut)
        for piece in cut:
            y, x = divmod(int(piece[0, 0]), shape[1])
            np.testing.assert_array_equal(piece, numbered[y : y + side, x : x + side])
            assert phantom.mask[y : y + side, x : x + side].mean() > 0.7


def test_classes_has_a_folder_per_class_and_names_that_tell_no_patient(sets: dict[str, SynthSummary]) -> None:
    root = sets["folders"].root
    assert {p.name for p in root.iterdir()} == set("ABCD")
    names = [p.name for p in root.rglob("*.png")]
    assert len(set(names)) == len(names) == 48 and all(re.fullmatch(r"img_\d{4}\.png", name) for name in names)
    women = Counter(p.density for p in plan("folders"))
    assert {folder.name: len(list(folder.iterdir())) for folder in root.iterdir()} == {d: 4 * women[d] for d in "ABCD"}


def test_png_layouts_leave_no_other_file_than_the_mark(sets: dict[str, SynthSummary]) -> None:
    for layout in PNG_LAYOUTS:
        outdir = sets[layout].root.parent
        assert {p.name for p in outdir.iterdir()} == {sets[layout].root.name, synth.MARK}
        assert json.loads((outdir / synth.MARK).read_text())["summary"]["csv"] is None
