from pathlib import Path

import pytest

from mammoray import cli, verbs
from mammoray.config import DataConfig
from mammoray.recipe import ApplyConfig

NEEDED = ["--checkpoint", "run", "--dicom-root", "d", "--outdir", "o"]


@pytest.mark.parametrize("verb", ["predict", "evaluate", "embed"])
def test_what_the_checkpoint_says_is_no_flag(verb: str) -> None:
    args = cli.parse(verb, [*NEEDED, "--seen", "allow", "--dataset", "files"])
    assert args.how == ApplyConfig(seen="allow") and args.data == DataConfig(dataset="files")
    for flag in ("--height", "--classes", "--arch"):
        with pytest.raises(SystemExit):
            cli.parse(verb, [*NEEDED, flag, "64"])


def test_paths_are_made_absolute_and_uris_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    args = cli.parse("predict", [*NEEDED[:2], "--dicom-root", "s3://bucket/set", "--csv", "t.csv", *NEEDED[4:]])
    request = verbs._request(args)
    assert request.dicom_root == "s3://bucket/set" and request.csv == str(tmp_path / "t.csv")
    assert (request.checkpoint, request.outdir) == (str(tmp_path / "run"), tmp_path / "o")
    args = cli.parse("embed", ["--checkpoint", "s3://bucket/run", *NEEDED[2:], "--storage", "s3://bucket/mammoray"])
    request = verbs._request(args)
    assert (request.checkpoint, request.where.storage) == ("s3://bucket/run", "s3://bucket/mammoray")


@pytest.mark.parametrize("flag", ["--checkpoint", "--dicom-root", "--csv", "--storage", "--cache"])
@pytest.mark.parametrize("verb", ["predict", "train", "tune"])
def test_a_secret_in_a_uri_is_refused_before_anything_begins(
    verb: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = NEEDED if verb == "predict" else NEEDED[2:]
    if flag == "--checkpoint" and verb != "predict":
        return
    assert cli.main([verb, *needed, flag, "s3://bucket/x?secret_key=sesame"]) == 2
    said = capsys.readouterr()
    assert "expected a URI without credentials" in said.err and "sesame" not in said.out + said.err


def test_a_folder_without_a_checkpoint_is_status_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(tmp_path), "--dicom-root", str(tmp_path), "--outdir", str(tmp_path / "o")]
    assert cli.main(["embed", *words]) == 2
    assert "the folder of a run or of a checkpoint" in capsys.readouterr().err
