"""A catalog's files into the decoded cache, with progress, and a table of what is there: ``mammoray prepare``.

It writes two files into the output folder: failures.csv, a row per file that did not decode, and prepare.json.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydicom.uid import UID

from mammoray import __version__, catalog, cluster, ingest, nodes, outputs, plain, raster, storage
from mammoray.config import Config
from mammoray.findings import Finding
from mammoray.sandbox import Sandbox
from mammoray.scale import Where
from mammoray.storage import Place

_CACHE = "mammoray-cache"
FILES = ("failures.csv", "prepare.json")
Say = Callable[[str], None]


def run(csv: Place | None, dicom_root: Place, outdir: Path, config: Config, where: Where, say: Say) -> dict[str, Any]:
    """Decode all rows of a catalog, with a label or without, so that a later training finds them.

    Parameters
    ----------
    csv : str, Path or None
    dicom_root : str or Path
    outdir : Path
        As every node of the cluster sees them; csv as in :func:`mammoray.catalog.build`.
    config : Config
        Its data, decode and ingest sections count.
    where : Where

    Returns
    -------
    dict
        The content of prepare.json.

    Raises
    ------
    IngestError
        As of :func:`mammoray.ingest.prepare` and :func:`mammoray.ingest.check_enough`; the files are written before.
    """
    config = shared(config, where)
    data = read_catalog(csv, dicom_root, config, say)
    with outputs.written(outdir, FILES, where.storage):
        return _run(data, outdir, config, where, say)


def _run(data: catalog.Catalog, outdir: Path, config: Config, where: Where, say: Say) -> dict[str, Any]:
    with cluster.connect(where.address):
        decoded = decode(data.rows, data.root, outdir, config, say)
    decoded.failures.to_csv(outdir / FILES[0], index=False)
    syntaxes = by_transfer_syntax(decoded, data.root, config.ingest.limit_seconds)
    facts = {
        "version": __version__,
        "cache": storage.shown(cache_path(outdir, config)),
        "images": len(data.rows),
        "decoded": len(decoded.rows),
        "failed": len(decoded.failures),
        "new": decoded.new,
        "seconds": round(decoded.seconds, 3),
        "images_per_second": round(decoded.new / decoded.seconds, 2),
        "transfer_syntaxes": syntaxes,
    }
    (outdir / FILES[1]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for line in pd.DataFrame(syntaxes).to_string(index=False, na_rep="").splitlines():
        say(line)
    ingest.check_enough(decoded, config.ingest)
    return facts


def read_catalog(
    csv: Place | None, dicom_root: Place, config: Config, say: Say, unlabelled: bool = False
) -> catalog.Catalog:
    """Build the catalog and say what it is: layout, evidence, counts, classes, and what results from it cannot know."""
    data = catalog.build(csv, dicom_root, config.data, config.classes, unlabelled)
    say(f"catalog: {data.layout} layout ({'; '.join(data.evidence)})")
    groups = "patients" if data.grouped_by == "patient_id" else f"groups by {data.grouped_by}"
    say(f"catalog: {len(data.rows)} images of {data.rows['patient_id'].nunique()} {groups}, {_counted(data.findings)}")
    for line in catalog.class_table(data.rows, config.classes).to_string().splitlines():
        say(f"  {line}")
    for limit in data.limits:
        say(f"limit: {limit}")
    return data


def _counted(findings: tuple[Finding, ...]) -> str:
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.severity] += finding.count
    said = ", ".join(f"{counts[kind]} {kind}s" for kind in ("error", "warning", "note") if counts[kind])
    return f"{counts.total()} findings" + (f" ({said})" if said else "")


def cache_path(outdir: Path, config: Config) -> str:
    """Path or URI of the decoded cache: ``--cache``, or a folder beside the output folder that sibling runs share."""
    given = config.ingest.cache
    return given if given and "://" in given else str(Path(given or outdir.parent / _CACHE).resolve())


def shared(config: Config, where: Where) -> Config:
    """The settings with the cache on ``--storage``, where there is one and ``--cache`` names no other."""
    if where.storage is None or config.ingest.cache:
        return config
    cache = storage.join(storage.absolute(where.storage), _CACHE)
    return plain.replace(config, ingest=plain.replace(config.ingest, cache=cache))


def decode(rows: pd.DataFrame, root: str, outdir: Path, config: Config, say: Say) -> ingest.Decoded:
    """Decode what the cache lacks of these rows, and say how it goes. Needs a connection to Ray."""
    store = cache_path(outdir, config)
    nodes.require_seen({"--cache": store}, root, rows["path"])
    say(f"decode: {len(rows)} files into {storage.shown(store)}")
    decoded = ingest.prepare(rows, root, store, config.decode, config.ingest, _throttled(say))
    say(
        f"decode: {decoded.new} new, {len(rows) - decoded.new} from the cache, "
        f"{len(decoded.failures)} failed, {decoded.seconds:.1f} s"
    )
    for failure in decoded.failures.head(5).itertuples():
        say(f"  {failure.path}: expected {failure.expected}, found {failure.found}")
    return decoded


def _throttled(say: Say, every: float = 2.0) -> Callable[[ingest.Progress], None]:
    last = time.monotonic()

    def tell(progress: ingest.Progress) -> None:
        nonlocal last
        if progress.done == progress.total or time.monotonic() - last > every:
            last = time.monotonic()
            say(str(progress))

    return tell


def by_transfer_syntax(decoded: ingest.Decoded, root: str, limit: float) -> list[dict[str, Any]]:
    """Files of each encoding, the commonest first.

    Returns
    -------
    list of dict
        ``transfer_syntax`` (the standard's name), ``uid``, ``files``, ``failed`` among them, and ``median_ms``, the
        processor time of decoding one, or None where none decoded. Raster images have a media type as both of the
        former.
    """
    failed = pd.DataFrame(
        {"uid": _transfer_syntaxes([storage.join(root, path) for path in decoded.failures["path"]], limit)}
    )
    good = pd.DataFrame({"uid": decoded.rows["transfer_syntax"], "ms": decoded.rows["seconds"] * 1000})
    every = pd.concat([good.assign(failed=0), failed.assign(failed=1, ms=float("nan"))])
    rows = [
        {
            "transfer_syntax": _encoding(uid),
            "uid": uid,
            "files": len(files),
            "failed": int(files["failed"].sum()),
            "median_ms": None if files["ms"].isna().all() else round(float(files["ms"].median()), 1),
        }
        for uid, files in every.groupby("uid")
    ]
    return sorted(rows, key=lambda row: (-row["files"], row["uid"]))


def _encoding(uid: str) -> str:
    if uid in raster.MEDIA_TYPES.values():
        return uid  # pydicom would warn of a UID with letters.
    return str(UID(uid).name) if uid else "unknown"


def _transfer_syntaxes(files: list[str], limit: float) -> list[str]:
    """UID of each file that could not be decoded, as far as its header says; read where it can do no harm."""
    reader = Sandbox("mammoray.header:transfer_syntax", limit)
    found = [outcome.value or "" for outcome in reader.run([(file,) for file in files])]
    reader.close()
    return found
