"""Small folder trees in the layouts of the real data sets, of empty files: what a catalog sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def touch(root: Path, paths: Iterable[str]) -> Path:
    """Empty files below a root; returns the root."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def table(root: Path, name: str, lines: Iterable[str]) -> Path:
    """A CSV of these lines."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def features(root: Path, folder: str, classes: Mapping[str, int]) -> None:
    """A featureS.txt: a name and its class line in turn."""
    table(root / folder, "featureS.txt", [line for name, number in classes.items() for line in (name, str(number))])


def rsna(root: Path) -> Path:
    """Three patients of RSNA, one without a density; returns the root."""
    columns = (
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
        "difficult_negative_case"
    )
    table(
        root,
        "train.csv",
        [
            columns,
            "1,10,101,L,CC,61.0,0,0,0,1.0,0,A,49,False",
            "1,10,102,R,MLO,61.0,1,1,1,0.0,0,A,49,False",
            "1,11,111,L,CC,50.0,0,0,0,1.0,1,D,93,False",
            "2,12,121,L,CC,,0,0,0,,0,,21,False",
        ],
    )
    return touch(root, [f"train_images/{path}.dcm" for path in ("10/101", "10/102", "11/111", "12/121")])


def irma(root: Path) -> Path:
    """Four exams of IRMA, one of class 5."""
    table(root, "classificacao.csv", ["AccessionNumber,Classification", "000702,3", "000706,1", "000711,5", "000717,4"])
    return touch(
        root,
        [
            "archive/000702/IM0001.dcm",
            "archive/000702/sub/IM0002.dcm",
            "archive/000706/IM0001.dcm",
            "archive/000711/IM0001.dcm",
            "archive/000717/IM0001.DCM",
        ],
    )


def study(root: Path, rows: Iterable[str] | None = None) -> Path:
    """Two patients in the layout of patients, studies and series."""
    table(
        root,
        "metadata.csv",
        rows
        or [
            "patient_id,study_id,series_id,image_id,laterality,view,density",
            "000123,1,1,im1,L,CC,2",
            "000123,1,2,im1,L,MLO,2",
            "000123,2,1,im1,R,CC,2",
            "000124,1,1,im1,L,CC,4",
        ],
    )
    return touch(
        root,
        [
            "patient_000123/study_1/series_1/im1.dcm",
            "patient_000123/study_1/series_2/im1.dcm",
            "patient_000123/study_2/series_1/im1.dcm",
            "patient_000124/study_1/series_1/im1.dcm",
        ],
    )


def mamografias(root: Path) -> Path:
    """Three folders of PNGs, each with its featureS.txt."""
    features(root, "DleftCC", {"d_left_cc (1)": 0, "d_left_cc(10)": 0})
    features(root, "DrightMLO", {"d_right_mlo (10)": 0})
    features(root, "GrightMLO", {"g_right_mlo (10).png": 3})
    return touch(
        root,
        [
            "DleftCC/d_left_cc (1).png",
            "DleftCC/d_left_cc (10).png",
            "DrightMLO/d_right_mlo (10).png",
            "GrightMLO/g_right_mlo (10).png",
        ],
    )


def patches(root: Path) -> Path:
    """Patches of two source images in one folder."""
    names = ("p_d_left_cc(10)_1", "p_d_left_cc(10)_2", "p_g_right_mlo(7)")
    features(root, "", dict(zip(names, (0, 0, 3), strict=True)))
    return touch(root, [f"{name}.png" for name in names])


def folders(root: Path) -> Path:
    """Folders named by their class, one of them by none."""
    return touch(root, ["train/A/one.png", "train/density_2/two.jpg", "test/IV/three.tif", "train/other/four.png"])
