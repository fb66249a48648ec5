"""Each rule about one image: broken by its own fault, by no other, and by nothing that is not said."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mammoray import rules
from tests.audit_factory import table


def broken(data: pd.DataFrame) -> dict[str, list[str]]:
    """Rule to the images that break it."""
    return {name: [f.image_id for f in found] for name, found in rules.of_images(data).items() if found}


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"Modality": "RG"}, "modality"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"QualityControlImage": "YES"}, "quality_control"),
        ({"BurnedInAnnotation": "YES"}, "burned_in"),
        ({"WindowCenter": None, "WindowWidth": None}, "no_window"),
        ({"WindowWidth": 0}, "window_width"),
        ({"WindowWidth": [4096, -1], "WindowCenter": [2048, 2048]}, "window_width"),
        ({"WindowCenter": 32768, "WindowWidth": 4096}, "window_range"),
        ({"WindowCenter": 2048, "WindowWidth": 65536}, "window_range"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unreadable"),
        ({"NumberOfFrames": 2}, "unreadable"),
        ({"ImageLaterality": "R"}, "laterality"),
        ({"ViewPosition": "MLO"}, "view"),
        ({"BreastImplantPresent": "YES"}, "implant"),
    ],
)
def test_each_rule_is_broken_by_its_own_fault_alone(tmp_path: Path, attributes: dict[str, Any], rule: str) -> None:
    data = table(tmp_path, [{}, {"make": {"attributes": attributes}}])
    assert broken(data) == {rule: ["1"]}


def test_a_window_is_held_against_the_values_after_the_rescale(tmp_path: Path) -> None:
    shifted = {"RescaleIntercept": 100_000, "WindowCenter": 102_048}
    assert broken(table(tmp_path, [{"make": {"attributes": shifted}}])) == {}
    assert broken(table(tmp_path, [{"make": {"attributes": {**shifted, "RescaleIntercept": 0}}}])) != {}


def test_a_sigmoid_window_may_be_narrower_than_one(tmp_path: Path) -> None:
    for function, expected in (("SIGMOID", {}), ("LINEAR", {"window_width": ["0"]})):
        window = {"WindowWidth": 0.5, "VOILUTFunction": function}
        assert broken(table(tmp_path, [{"make": {"attributes": window}}])) == expected


def test_a_row_or_a_header_that_says_nothing_contradicts_nothing(tmp_path: Path) -> None:
    silent = {"ImageLaterality": None, "ViewPosition": None, "ViewCodeSequence": None, "BreastImplantPresent": None}
    data = table(tmp_path, [{"laterality": "", "view": "", "implant": ""}, {"make": {"attributes": silent}}])
    assert broken(data) == {}
