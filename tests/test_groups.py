import pandas as pd
import pytest

from mammoray import groups
from mammoray.errors import CatalogError

FRAME = pd.DataFrame({"patient": ["p1", "p1", "p2", ""], "group": ["a", "b", "a", "c"], "line": [2, 3, 4, 5]})


def test_a_group_may_hold_several_patients_but_not_divide_one() -> None:
    groups.require_whole(FRAME.assign(group="a"), ["patient"], "t.csv: g")
    with pytest.raises(CatalogError, match=r"t\.csv: g: .*1 patients in several, such as that of lines 2, 3"):
        groups.require_whole(FRAME, ["patient"], "t.csv: g")


def test_where_no_patient_is_known_none_is_divided() -> None:
    groups.require_whole(FRAME, [], "g")
    groups.require_whole(FRAME.assign(patient=""), ["patient"], "g")


def test_a_row_without_a_group_is_an_error_with_its_line() -> None:
    with pytest.raises(CatalogError, match="1 blank cells, in lines 5"):
        groups.require(FRAME, "patient", "g")
