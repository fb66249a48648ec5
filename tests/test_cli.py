import subprocess
import sys
import time
from pathlib import Path

import pytest

from mammoray import cli, recipe
from mammoray.errors import ConfigError
from mammoray.synth import SynthSummary


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mammoray.cli", *words], capture_output=True, text=True, check=False)


def test_help_is_quick_and_imports_neither_ray_nor_torch() -> None:
    code = "import sys; from mammoray.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    assert "'mammoray.cli'" in modules
    for heavy in ("ray", "torch", "timm", "pandas", "cv2", "numpy"):
        assert f"'{heavy}'" not in modules
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert "train-density" in program("--help").stdout
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_every_verb_shows_flags_with_types_and_defaults(verb: str) -> None:
    done = program(verb, "--help")
    assert done.returncode == 0
    assert ("--outdir PATH" in done.stdout) == (verb != "doctor")
    if verb in ("train", "train-density", "crossval"):
        for words in (
            "--csv {None}|STR",
            "--dicom-root STR",
            "--epochs INT",
            "(default: 20)",
            "--arch STR",
            "{density,binary,cancer}",
            "in pixels",
        ):
            assert words in done.stdout


def test_both_names_of_the_program_are_installed() -> None:
    for name in ("mammoray", "mammography"):
        done = subprocess.run(
            [str(Path(sys.executable).parent / name), "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "0.1.0"


def test_flags_go_before_the_config_file_and_that_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[train]\nepochs = 7\n[optim]\nlr = 0.5\n", encoding="utf-8")
    needed = ["--csv", "a.csv", "--dicom-root", "d", "--outdir", "o"]
    args = cli.parse("train", [*needed, "--config", str(file), "--lr", "0.25", "--num-workers", "3"])
    assert args.settings.train == recipe.TrainConfig(epochs=7)
    assert args.settings.optim == recipe.OptimConfig(lr=0.25)
    assert args.settings.model == recipe.ModelConfig()
    assert args.scale.num_workers == 3
    assert args.csv == "a.csv"


def test_a_wrong_setting_ends_with_status_2_and_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = program("train", "--csv", "x", "--dicom-root", "x", "--outdir", "x", "--folds", "2")
    assert done.returncode == 2
    assert "--folds" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_missing_csv_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = program("train", "--csv", "none.csv", "--dicom-root", ".", "--outdir", str(tmp_path / "o"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "none.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_verb_is_an_error() -> None:
    done = program("trian")
    assert done.returncode == 2
    assert "train" in done.stderr


def test_two_dashes_before_the_flags_are_allowed_as_in_the_older_system(tmp_path: Path) -> None:
    assert (
        cli.main(
            ["synth", "--", "--outdir", str(tmp_path / "set"), "--patients", "1", "--height", "64", "--width", "64"]
        )
        == 0
    )
    assert (tmp_path / "set" / "train.csv").exists()


def test_synth_says_how_to_train_on_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["synth", "--outdir", str(tmp_path / "set"), "--patients", "1", "--height", "64", "--width", "64"])
    assert f"--csv {tmp_path / 'set' / 'train.csv'} --dicom-root" in capsys.readouterr().out


def test_synth_names_no_table_where_the_layout_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--patients", "1", "--height", "64", "--width", "64"]
    cli.main(["synth", "--outdir", str(tmp_path / "set"), "--layout", "folders", *size])
    assert capsys.readouterr().out.endswith(f"synthetic patients: --dicom-root {tmp_path / 'set' / 'folders'}\n")


def test_a_folder_that_cannot_be_written_ends_with_status_2(rsna: SynthSummary) -> None:
    words = ["--csv", str(rsna.csv), "--dicom-root", str(rsna.root), "--outdir", "/proc/none", "--no-pretrained"]
    done = program("train", *words)
    assert done.returncode == 2
    assert "--outdir" in done.stderr


def test_a_config_that_is_a_folder_and_a_csv_below_a_file_are_errors(rsna: SynthSummary, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    needed = ["--dicom-root", str(rsna.root), "--outdir", str(tmp_path / "o")]
    for words in (["--csv", str(rsna.csv), "--config", "."], ["--csv", str(tmp_path / "file" / "x.csv")]):
        done = program("train", *needed, *words)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")


@pytest.mark.usefixtures("ray_session")
def test_the_audit_runs_by_the_command_of_the_system_that_this_one_replaces(
    irma: SynthSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", "--", "--csv", str(irma.csv), "--dicom-root", str(irma.root)]) == 0
    assert {file.name for file in (tmp_path / "outputs" / "audit").iterdir()} == {
        "audit.csv",
        "audit.json",
        "audit.html",
    }


def test_an_error_that_nobody_foresaw_is_status_2_and_not_the_1_of_an_unfit_data_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise RuntimeError("unforeseen")

    monkeypatch.setitem(cli.VERBS, "report", (cli.ReportArgs, fail, ""))
    assert cli.main(["report", "--outdir", "x"]) == 2
    assert "RuntimeError: unforeseen" in capsys.readouterr().err


def test_the_rehearsals_of_a_training_are_flags_of_train_alone_and_exclude_each_other(tmp_path: Path) -> None:
    needed = ["--dicom-root", "d", "--outdir", str(tmp_path)]
    args = cli.parse("train", [*needed, "--dry-run"])
    assert args.dry_run and not args.overfit_batch
    assert args.settings == cli.parse("train", needed).settings, "they are no part of a run's identity"
    with pytest.raises(ConfigError, match="--overfit-batch"):
        cli.parse("train", [*needed, "--dry-run", "--overfit-batch"])
    with pytest.raises(SystemExit):
        cli.parse("crossval", [*needed, "--dry-run"])
