import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mammoray import cache, catalog, claim, cli, ingest, pipeline, plain, prepare, storage
from mammoray.config import Config
from mammoray.errors import ConfigError, IngestError, RunFolderError
from mammoray.plain import replace
from mammoray.scale import Where
from mammoray.synth import SynthSummary
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("ray_session")


def run(data: SynthSummary, outdir: Path, config: Config = SMALL) -> tuple[dict[str, object], list[str]]:
    said: list[str] = []
    return prepare.run(data.csv, data.root, outdir, config, Where(), said.append), said


def test_cache_and_a_copy_of_the_tables_go_to_the_storage_also_where_too_few_decode(
    rsna: SynthSummary, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(rsna.table.parent, tmp_path / "data"))
    for path in sorted(copy.rglob("*.dcm"))[:20]:
        path.write_bytes(b"no DICOM at all")
    words = ["prepare", "--csv", str(copy / "train.csv"), "--dicom-root", str(copy), "--outdir", str(tmp_path / "out")]
    words += ["--height", "64", "--width", "48", "--storage", str(tmp_path / "shared")]
    assert cli.main(words) == 2
    assert not (tmp_path / "mammoray-cache").exists()
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"mammoray-cache", "out"}
    for name in prepare.FILES:
        assert (tmp_path / "shared" / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert cli.main([*words, "--min-decoded", "0.5"]) == 0
    assert json.loads((tmp_path / "shared" / "out" / "prepare.json").read_text())["new"] == 0


def test_all_rows_are_decoded_and_a_following_training_finds_them(rsna: SynthSummary, tmp_path: Path) -> None:
    facts, said = run(rsna, tmp_path / "prepared")
    assert facts["images"] == facts["decoded"] == facts["new"] == len(pd.read_csv(rsna.csv))
    assert "images/s" in "\n".join(said)
    said = []
    source = pipeline.Source(csv=rsna.csv, dicom_root=rsna.root, outdir=tmp_path / "run")
    source.outdir.mkdir()
    decoded = pipeline._decode(source, SMALL, catalog.build(rsna.csv, rsna.root), said.append)
    assert decoded.new == 0
    assert 0 < len(decoded.rows) < facts["images"], "rows without a label are no part of a training"
    assert run(rsna, tmp_path / "prepared")[0]["new"] == 0


def test_the_summary_counts_files_and_failures_by_transfer_syntax(rsna: SynthSummary, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(rsna.table.parent, tmp_path / "data"))
    broken = sorted(copy.rglob("*.dcm"))[:3]
    broken[0].write_bytes(broken[0].read_bytes()[:2500])
    broken[1].write_bytes(broken[1].read_bytes()[:-9000])
    broken[2].write_bytes(b"no DICOM at all")
    facts, said = run(replace(rsna, csv=copy / "train.csv", root=copy), tmp_path / "out")
    table = pd.DataFrame(facts["transfer_syntaxes"])
    assert table["files"].sum() == facts["images"]
    assert table["failed"].sum() == facts["failed"] == 3
    assert table.set_index("transfer_syntax").loc["unknown", ["files", "failed"]].tolist() == [1, 1]
    assert (table.loc[table["files"] > table["failed"], "median_ms"] > 0).all()
    assert any("JPEG 2000" in line or "JPEG Lossless" in line for line in said)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text()) == facts
    failures = pd.read_csv(tmp_path / "out" / "failures.csv", dtype=str)
    assert list(failures.columns) == [
        "image_id", "patient_id", "path", "where", "expected", "found", "remedy", "exception",
    ]  # fmt: skip
    assert {Path(path).name for path in failures["path"]} == {path.name for path in broken}


def test_too_many_failures_are_an_error_after_the_table_is_written(irma: SynthSummary, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(irma.table.parent, tmp_path / "data"))
    for file in list(copy.rglob("*.dcm"))[:20]:
        file.write_bytes(b"no DICOM at all")
    with pytest.raises(IngestError, match="--min-decoded"):
        run(replace(irma, csv=copy / "classificacao.csv", root=copy), tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "failures.csv")) == 20


def test_the_output_folder_may_become_that_of_a_run(irma: SynthSummary, tmp_path: Path) -> None:
    run(irma, tmp_path / "out")
    assert not claim.is_finished(tmp_path / "out", "identity")


def test_an_output_folder_below_a_file_is_an_error(irma: SynthSummary, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="--outdir"):
        run(irma, tmp_path / "file" / "out")


def test_a_data_set_on_an_object_store_is_prepared_as_one_on_a_disk(
    irma: SynthSummary, s3: str, tmp_path: Path
) -> None:
    system, base = storage.filesystem(storage.join(s3, "irma"))
    for file in (path for path in irma.table.parent.rglob("*") if path.is_file()):
        with system.open_output_stream(f"{base}/{file.relative_to(irma.table.parent).as_posix()}") as sink:
            sink.write(file.read_bytes())
    root = storage.join(s3, "irma")
    said: list[str] = []
    facts = prepare.run(None, root, tmp_path / "out", SMALL, Where(), said.append)
    local, _ = run(irma, tmp_path / "local")
    same = ("images", "decoded", "failed")
    assert {name: facts[name] for name in same} == {name: local[name] for name in same}
    assert facts["new"] == facts["images"] and local["new"] == local["images"], "another place is another file"
    assert prepare.run(None, root, tmp_path / "out", SMALL, Where(), said.append)["new"] == 0
    assert not any("127.0.0.1" in line or "sesame" in line for line in said)

    def pixels(root: storage.Place, csv: Path | None) -> bytes:
        rows = catalog.build(csv, root).rows
        decoded = ingest.prepare(
            rows, catalog.build(csv, root).root, prepare.cache_path(tmp_path / "out", SMALL), SMALL.decode, SMALL.ingest
        ).rows.sort_values("image_id")
        return cache.load_pixels(decoded["shard"].tolist(), decoded["position"].to_numpy(), SMALL.decode).tobytes()

    assert pixels(root, None) == pixels(irma.root, irma.csv)


def test_a_root_with_a_key_in_it_is_refused_without_telling_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dicom-root") as caught:
        prepare.run(None, "s3://me:sesame@bucket/set", tmp_path / "out", SMALL, Where(), print)
    assert "sesame" not in str(caught.value)


def test_the_cache_is_a_uri_as_given_or_an_absolute_path(tmp_path: Path) -> None:
    def with_cache(cache: str | None) -> Config:
        return replace(SMALL, ingest=replace(SMALL.ingest, cache=cache))

    uri = "s3://bucket/prefix?scheme=http"
    assert prepare.cache_path(tmp_path / "run", with_cache(uri)) == uri
    assert prepare.cache_path(tmp_path / "run", with_cache(None)) == str(tmp_path / "mammoray-cache")
    assert prepare.cache_path(tmp_path / "run", with_cache("here")) == str(Path("here").absolute())


def test_the_command_line_reads_its_sections_of_a_config_file(irma: SynthSummary, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(plain.to_toml(SMALL), encoding="utf-8")
    words = ["--csv", str(irma.csv), "--dicom-root", str(irma.root), "--outdir", str(tmp_path / "out")]
    args = cli.parse("prepare", [*words, "--config", str(file), "--limit-seconds", "7"])
    assert args.decode == SMALL.decode
    assert args.ingest == replace(SMALL.ingest, limit_seconds=7.0)
    assert cli.main(["prepare", *words, "--config", str(file)]) == 0
    assert (tmp_path / "out" / "prepare.json").is_file()


def test_a_sigterm_ends_a_decode_with_one_line_and_the_next_one_goes_on(rsna: SynthSummary, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"mammoray-{os.getpid()}-term"
    words = [sys.executable, "-m", "mammoray.cli", "prepare", "--csv", str(rsna.csv), "--dicom-root", str(rsna.root)]
    words += ["--outdir", str(tmp_path / "out"), "--shard-images", "4", "--height", "96", "--width", "80"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_TMPDIR": str(folder)}
    try:
        process = subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout
        assert next(line for line in process.stdout if line.startswith("decode:"))
        process.terminate()
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 143
        assert complaints.startswith("stopped: the run: expected to be left alone"), complaints
        assert len(complaints.splitlines()) == 1
        again = subprocess.run(words, env=own, capture_output=True, text=True, timeout=200, check=False)
        assert again.returncode == 0, again.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)
