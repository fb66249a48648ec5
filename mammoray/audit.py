"""What is wrong with a data set: findings to audit.csv and audit.json. It reports and never repairs."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from mammoray.catalog import Catalog
from mammoray.findings import Finding

_COLUMNS = [field.name for field in fields(Finding)]


def of_failures(failures: pd.DataFrame) -> tuple[Finding, ...]:
    """Findings for the files that did not decode: rows of ``ingest.Decoded.failures``."""
    return tuple(
        Finding(
            severity="error",
            image_id=row.image_id,
            file=row.path,
            tag=row.where.removeprefix(row.path).removeprefix(": "),
            reason="the file cannot be decoded",
            expected=row.expected,
            found=row.found,
            what_to_do=row.remedy,
        )
        for row in failures.itertuples(index=False)
    )


def of_labels(catalog: Catalog) -> tuple[Finding, ...]:
    """One note that counts the images without a label, which is no fault of any of them."""
    unlabelled = int(catalog.rows["label"].isna().sum())
    if not unlabelled:
        return ()
    return (
        Finding(
            severity="note",
            image_id="",
            file="",
            tag="label",
            reason="images without a density label",
            expected="a label",
            found=f"{unlabelled} blank",
            what_to_do="Nothing: they are left out of training and evaluation.",
        ),
    )


def write(findings: tuple[Finding, ...], outdir: Path) -> None:
    """Write ``audit.csv`` (one row a finding) and ``audit.json`` (their counts) into ``outdir``."""
    table = pd.DataFrame([asdict(finding) for finding in findings], columns=_COLUMNS)
    table.to_csv(outdir / "audit.csv", index=False)
    groups = table.groupby(["severity", "reason", "what_to_do"], sort=True).size()
    by_reason = [{"severity": s, "reason": r, "count": int(n), "what_to_do": w} for (s, r, w), n in groups.items()]
    summary: dict[str, Any] = {
        "findings": len(table),
        "by_severity": {
            severity: int((table["severity"] == severity).sum()) for severity in ("error", "warning", "note")
        },
        "by_reason": by_reason,
    }
    (outdir / "audit.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
