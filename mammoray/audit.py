"""What is wrong with a data set: ``mammoray audit``, and the findings of a run. It reports and never repairs.

It writes audit.json (counts, and whether the data set is fit), audit.csv (a row a finding) and audit.html. No identity
of a patient enters them but the ids of the CSV.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from mammoray import __version__, auditpage, cluster, inventory, outputs, prepare, relations, rules, tally
from mammoray.catalog import Catalog
from mammoray.config import AuditConfig, Config, DataConfig
from mammoray.errors import RunFolderError
from mammoray.findings import Finding
from mammoray.plain import replace
from mammoray.scale import Where
from mammoray.storage import Place

FILES = ("audit.csv", "audit.json", "audit.html")
Say = Callable[[str], None]
_COLUMNS = [field.name for field in fields(Finding)]
_SEVERITIES = ("error", "warning", "note")


def run(
    csv: Place | None,
    dicom_root: Place,
    outdir: Path,
    source: DataConfig,
    config: AuditConfig,
    where: Where,
    say: Say,
) -> dict[str, Any]:
    """Look at a data set and write down what is found.

    Parameters
    ----------
    csv : str, Path or None
    dicom_root : str or Path
    outdir : Path
        As every node of the cluster sees them; csv as in :func:`mammoray.catalog.build`.
    source : DataConfig
        How table and tree are read; its ``quarantine`` is where the list of images with an error is written.
    config : AuditConfig
    where : Where

    Returns
    -------
    dict
        The content of audit.json.

    Raises
    ------
    MammorayError
        The table and the tree cannot be read at all, or the output cannot be written.
    """
    data = prepare.read_catalog(csv, dicom_root, Config(data=replace(source, quarantine=None)), say)
    list_of_bad = source.quarantine and source.quarantine.absolute()
    own = (*FILES, list_of_bad.name) if list_of_bad and list_of_bad.parent == outdir.absolute() else FILES
    with outputs.written(outdir, own, where.storage):
        return _run(data, outdir, list_of_bad, config, where, say)


def _run(
    data: Catalog, outdir: Path, quarantine: Path | None, config: AuditConfig, where: Where, say: Say
) -> dict[str, Any]:
    started = time.monotonic()
    with cluster.connect(where.address):
        table = inventory.take(data.rows, data.root, config, _throttled(say))
    seconds = time.monotonic() - started
    by_rule = {**rules.of_images(table), **relations.between_images(table, data.grouped_by)}
    of_files = tuple(finding for found in by_rule.values() for finding in found)
    findings = (*data.findings, *of_labels(data), *of_files)
    content = write(findings, outdir, summary(data, table, by_rule, config, seconds))
    page = auditpage.render(outdir.resolve().name, content, _montage(of_files, data.root, config))
    (outdir / FILES[2]).write_text(page, encoding="utf-8", newline="\n")
    if quarantine is not None:
        say(f"quarantine: {write_quarantine(of_files, quarantine)} images in {quarantine}")
    return content


def _montage(findings: tuple[Finding, ...], root: str, config: AuditConfig) -> list[tuple[Finding, auditpage.Picture]]:
    """The findings to show, with their pictures; none of an image whose header says that text is burned into it."""
    odd = auditpage.choose(findings)
    texts = {finding.file for finding in findings if finding.reason == rules.BURNED_IN}
    files = [finding.file for finding in odd if finding.file not in texts]
    pictures = inventory.thumbnails(files, root, config.limit_seconds, inventory.THUMBNAIL)
    by_file = dict(zip(files, pictures, strict=True))
    return [(finding, by_file.get(finding.file)) for finding in odd]


def summary(
    data: Catalog, table: pd.DataFrame, by_rule: Mapping[str, list[Finding]], config: AuditConfig, seconds: float
) -> dict[str, Any]:
    """What audit.json says beside the findings."""
    absent = sum(finding.count for finding in data.findings if finding.severity == "error")
    good, share = tally.share_readable(table, absent)
    reasons = why_not_fit(share, by_rule, config.min_readable)
    if not data.rows["label"].notna().any():
        reasons.append("no image has a label")
    return {
        "version": __version__,
        "fit": not reasons,
        "why_not": reasons,
        "layout": data.layout,
        "grouped_by": data.grouped_by,
        "limits": list(data.limits),
        "leak": data.leak,
        "looked_at": "heads and pixels" if config.pixels else "heads",
        "images": len(table),
        "patients": int(table["patient_id"].nunique()),
        "absent": absent,
        "readable": good,
        "readable_share": round(share, 6),
        "min_readable": config.min_readable,
        "rules": {name: len(found) for name, found in by_rule.items()},
        "counts": tally.tally(table),
        "classes": tally.classes(table),
        "seconds": round(seconds, 3),
    }


def why_not_fit(readable_share: float, by_rule: Mapping[str, list[Finding]], min_readable: float) -> list[str]:
    """Reasons why a model should not be trained on the data set as it is; none means that it is fit.

    A data set is fit when at least ``min_readable`` of its images can be read (those of the CSV that have no file count
    as unreadable), and nothing says that a patient may stand on two sides of a split: no image or SOP Instance UID
    under several patients, no header that names another patient than its row. Single unreadable images, warnings and
    notes leave it fit: they are left out of training, or are for somebody to look at.

    Parameters
    ----------
    readable_share : float
        0 to 1.
    by_rule : mapping of str to list of Finding
    min_readable : float
        0 to 1.

    Examples
    --------
    >>> why_not_fit(0.9, {}, 0.95)
    ['90.0 % of the images can be read, of which 95 % are needed']
    """
    reasons = []
    if readable_share < min_readable:
        reasons.append(
            f"{100 * readable_share:.1f} % of the images can be read, of which {100 * min_readable:g} % are needed"
        )
    for name in relations.LEAKS:
        errors = [finding for finding in by_rule.get(name, []) if finding.severity == "error"]
        if errors:
            reasons.append(f"{errors[0].reason}: {len(errors)}")
    return reasons


def headline(content: Mapping[str, Any]) -> list[str]:
    """What is printed at the end: the verdict, its reasons, and the counts of the findings."""
    total = content["images"] + content["absent"]
    counts: dict[str, int] = {}
    for row in content["by_reason"]:  # One reason may have several remedies.
        kind = f"{row['severity']}: {row['reason']}"
        counts[kind] = counts.get(kind, 0) + row["count"]
    return [
        *(f"  {kind}: {count:,}" for kind, count in counts.items()),
        f"readable: {content['readable']:,} of {total:,}",
        "fit" if content["fit"] else "not fit: " + "; ".join(content["why_not"]),
    ]


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
            count=unlabelled,
        ),
    )


def write(findings: tuple[Finding, ...], outdir: Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``audit.csv`` (one row a finding) and ``audit.json`` (``facts``, and the counts of the findings).

    Returns
    -------
    dict
        The content of audit.json.
    """
    ordered = sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))
    table = pd.DataFrame([asdict(finding) for finding in ordered], columns=_COLUMNS)
    table.to_csv(outdir / FILES[0], index=False)
    groups = table.groupby(["severity", "reason", "what_to_do"], sort=True)["count"].sum()
    by_reason = [{"severity": s, "reason": r, "count": int(n), "what_to_do": w} for (s, r, w), n in groups.items()]
    by_reason.sort(key=lambda row: _SEVERITIES.index(row["severity"]))
    content: dict[str, Any] = {
        **(facts or {}),
        "findings": int(table["count"].sum()),
        "by_severity": {s: int(table.loc[table["severity"] == s, "count"].sum()) for s in _SEVERITIES},
        "by_reason": by_reason,
    }
    (outdir / FILES[1]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def write_quarantine(findings: tuple[Finding, ...], file: Path) -> int:
    """Write the images that have an error: a CSV of path, image_id and reason, which ``mammoray train`` takes.

    Returns
    -------
    int
        How many there are; an image with several errors stands there once.
    """
    rows = [(f.file, f.image_id, f.reason) for f in findings if f.severity == "error" and f.file and f.image_id]
    table = pd.DataFrame(rows, columns=["path", "image_id", "reason"]).drop_duplicates("path").sort_values("path")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(file, index=False)
    except OSError as error:
        found = type(error).__name__
        raise RunFolderError(str(file), "a file that can be written", found, "Choose another --quarantine.") from error
    return len(table)


def _throttled(say: Say, every: float = 2.0) -> Callable[[inventory.Progress], None]:
    last = time.monotonic()

    def tell(progress: inventory.Progress) -> None:
        nonlocal last
        if progress.done == progress.total or time.monotonic() - last > every:
            last = time.monotonic()
            say(str(progress))

    return tell
