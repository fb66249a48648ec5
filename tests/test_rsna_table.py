import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import rsna_table

ROOT = Path(__file__).parents[1]


def test_the_table_has_rsnas_columns_and_class_counts_as_text(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "rsna_table.py", file], check=True, capture_output=True)
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(table, rsna_table.make(0), check_dtype=False)
    counts = table.groupby("density")["patient_id"].agg(["size", "nunique"]).to_dict("list")
    assert counts == {"size": [25236, 3105, 12651, 12175, 1539], "nunique": [6104, 553, 2511, 2436, 309]}


def test_another_seed_gives_another_table_with_the_same_counts() -> None:
    tables = [rsna_table.make(seed) for seed in (1, 2)]
    assert not tables[0]["image_id"].isin(tables[1]["image_id"]).all()


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("density", "D", "densities of site 2"),
        ("machine_id", "49", "machines"),
        ("view", "CC", "views"),
        ("cancer", "1", "biopsies of cancer"),
        ("age", "25.0", "ages"),
        ("BIRADS", "2.0", "BIRADS of site 2"),
    ],
)
def test_one_wrong_cell_is_refused_by_the_name_of_the_fact(column: str, value: str, named: str) -> None:
    table = rsna_table.make(0)
    row = table.index[(table["site_id"] == "2") & (table["view"] == "MLO") & (table["biopsy"] == "0")][0]
    table.loc[row, column] = value
    with pytest.raises(rsna_table.FactsError, match=named):
        rsna_table.check(table)
