"""The report: whatever a finished run's folder holds, the page says it, says it safely, and says nothing else."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammoray.config import Config
from mammoray.errors import RunFolderError
from mammoray.figures import DEEP, short_id, stacked_bar, ticks
from mammoray.plain import replace, to_toml
from mammoray.report import write_report
from tests.run_factory import FILES, edit_json, make_audit, make_epoch, make_examples, make_run

CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Tags with their attributes, the text outside the style sheet, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(outdir: Path) -> Page:
    return Page(write_report(outdir).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


# What the page says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "absent", "examples"),
    [("density", None, 12), ("binary", None, 4), ("density", "D", 4), ("density", None, 0)],
)
def test_page_is_well_formed_and_undefined_is_never_nan(
    tmp_path: Path, classes: str, absent: str | None, examples: int
) -> None:
    page = report(make_run(tmp_path / "run", classes, absent, examples))
    assert page.open == []
    assert not re.search(r"\b(nan|null|inf)\b", page.text, re.IGNORECASE)
    assert len([image for image in page.all("img") if "truth" in (image["alt"] or "")]) == examples


@pytest.mark.parametrize("classes", ["density", "binary"])
def test_every_count_of_the_inputs_is_on_the_page(tmp_path: Path, classes: str) -> None:
    run = make_run(tmp_path / "run", classes)
    page = report(run)
    cells = set(page.words)
    split = json.loads((run / "split.json").read_text())
    for fold in split["folds"].values():
        for count in (fold, *fold["classes"].values()):
            assert {f"{count['images']:,}", f"{count['patients']:,}"} <= cells
    levels = json.loads((run / "metrics.json").read_text())["folds"]["test"]
    for level in levels.values():
        assert {f"{n:,}" for row in level["confusion"] for n in row} <= cells
        assert {f"n = {sum(row):,}" for row in level["confusion"]} <= cells
    for reason in make_audit()["by_reason"]:
        assert {reason["reason"], reason["what_to_do"], f"{reason['count']:,}"} <= cells
    assert "1,483 images were decoded and 3 could not be. 317 images of 79 patients have no label" in page.text
    assert "361 findings" in page.text and "audit.csv" in page.text


def test_confusion_matrices_keep_rows_as_truth(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    matrix = json.loads((run / "metrics.json").read_text())["folds"]["test"]["image"]["confusion"]
    first = html.split('class="confusion"')[1].split("</table>")[0]
    shown = [int(n.replace(",", "")) for n in re.findall(r"<b>([\d,]+)</b>", first)]
    assert shown == [n for row in matrix for n in row]


def test_every_metric_and_its_interval_is_on_the_page(run: Path) -> None:
    text = report(run).text.replace("\u2212", "-")
    for levels in json.loads((run / "metrics.json").read_text())["folds"].values():
        for level in levels.values():
            for key in ("accuracy", "balanced_accuracy", "kappa", "auc", "f1"):
                metric = level[key]
                assert f"{metric['value']:.3f} {metric['low']:.3f} to {metric['high']:.3f}" in text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.6, 0.8, "better than"),
        (0.3, 0.6, "not distinguishable from"),
        (0.1, 0.3, "worse than"),
        (None, None, "not tested (there is no interval) against"),
    ],
)
def test_verdict_compares_the_interval_with_the_majority_baseline(
    run: Path, low: float | None, high: float | None, verdict: str
) -> None:
    def change(metrics: Any) -> None:
        patient = metrics["folds"]["test"]["patient"]
        patient["majority_accuracy"] = 0.43
        patient["accuracy"].update(value=0.7, low=low, high=high)

    edit_json(run / "metrics.json", change)
    assert f"{verdict} always answering the most frequent class (0.43)" in report(run).text


def test_research_notice_and_limits_come_before_the_first_section(run: Path) -> None:
    text = report(run).text
    notice, limit = text.index("Research software, not a medical device"), text.index("grouped by accession number")
    assert notice < limit < text.index("Each row is a true class")


def test_no_limits_means_no_empty_box(run: Path) -> None:
    edit_json(run / "run.json", lambda document: document.update(limits=[]))
    assert "Limits of this run" not in report(run).text


def test_null_metrics_and_epochs_are_shown_as_undefined(run: Path) -> None:
    def clear(metrics: Any) -> None:
        for levels in metrics["folds"].values():
            for level in levels.values():
                for key in ("accuracy", "balanced_accuracy", "kappa", "auc", "f1"):
                    level[key] = {"value": None, "low": None, "high": None}
                level["majority_accuracy"] = None

    edit_json(run / "metrics.json", clear)
    epoch = dict.fromkeys(make_epoch(0))
    # NaN is not JSON, but Python's writer puts it there unless told otherwise.
    (run / "history.jsonl").write_text(json.dumps({**epoch, "epoch": 0, "val_loss": float("nan")}) + "\n")
    text = report(run).text
    assert "not comparable with" in text
    assert "Undefined in every epoch." in text
    assert "nan" not in text.lower()


def test_untrained_and_best_epochs_are_marked(run: Path) -> None:
    page = report(run)
    assert page.words.count("epoch 0: untrained") == 2
    assert page.words.count("best: epoch 14") == 2


def collapse(run: Path, epochs: set[int], cause: str | None) -> None:
    records = [make_epoch(i) for i in range(21)]
    for record in records:
        record["collapse"] = ["96 % of the images are called B (limit 95 %)"] if record["epoch"] in epochs else []
    records[-1]["collapse_cause"] = cause
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_collapse_is_told_above_the_charts_with_its_cause_and_epoch_by_epoch(run: Path) -> None:
    collapse(run, {18, 20}, "B is the commonest class.")
    page = report(run)
    told = page.text.index("In 2 of 21 epochs the network answered (nearly) the same for all images.")
    assert told < page.text.index("epoch 0: untrained")
    assert "Epoch 20, the last of them: 96 % of the images are called B (limit 95 %)." in page.text
    assert "Likely cause: B is the commonest class." in page.text
    assert "Collapse" in page.words
    assert page.words.count("96 % of the images are called B (limit 95 %)") == 2, "once an epoch, in the table"


def test_without_a_collapse_nothing_is_told_of_one(run: Path) -> None:
    assert "ollapse" not in report(run).text.split("config.toml")[0]
    collapse(run, set(), None)
    assert "ollapse" not in report(run).text.split("config.toml")[0]


def test_wrong_and_right_examples_stand_apart_with_truth_prediction_and_probability(run: Path) -> None:
    page = report(run)
    for row in pd.read_parquet(run / "examples.parquet").itertuples():
        alt = (
            f"Image {row.image_id}: truth {row.label}, predicted {row.predicted} with probability {row.probability:.2f}"
        )
        assert alt in [image["alt"] for image in page.all("img")]
        assert f"{row.label} → {row.predicted}" in page.words
    test = pd.read_parquet(run / "predictions.parquet").query("fold == 'test'")
    hits = int((test["label"] == test["predicted"]).sum())
    assert f"Wrong: 6 of {len(test) - hits}" in page.words and f"Right: 6 of {hits}" in page.words


def test_the_whole_config_is_on_the_page(run: Path) -> None:
    assert any(word == (run / "config.toml").read_text() for word in report(run).words)


# Safety ----------------------------------------------------------------------------------------------------------


def test_everything_from_the_files_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&$name"
    run = make_run(tmp_path / "a<b>&$c")
    edit_json(
        run / "run.json", lambda d: d.update(version=evil, layout=evil, device=evil, limits=[evil], seconds={evil: 1})
    )
    edit_json(run / "split.json", lambda d: d.update(grouped_by=evil))
    edit_json(run / "audit.json", lambda d: d["by_reason"][0].update(severity=evil, reason=evil, what_to_do=evil))
    edit_json(run / "audit.json", lambda d: d.update(by_severity={evil: 1}))
    (run / "history.jsonl").write_text(json.dumps({**make_epoch(1), "collapse": [evil], "collapse_cause": evil}) + "\n")
    pd.read_parquet(run / "augmented.parquet").assign(image_id=evil).to_parquet(run / "augmented.parquet")
    edit_json(run / "metrics.json", lambda d: d["intervals"].update(method=evil))
    examples = pd.read_parquet(run / "examples.parquet").assign(image_id=evil, label=evil, predicted=evil)
    examples.to_parquet(run / "examples.parquet")
    page = report(run)
    assert page.open == [] and not page.all("script")
    assert page.text.count(evil) >= 8
    assert "a<b>&$c" in page.words
    assert page.all("img")[0]["alt"] == f"Image {evil}: truth {evil}, predicted {evil} with probability " + (
        f"{examples['probability'].iloc[0]:.2f}"
    )


def test_page_needs_nothing_but_itself(run: Path) -> None:
    page = report(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {name for name, _ in page.tags}
    links = [value or "" for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"https?://|//\w|@import|url\(", re.sub(r'src="data:[^"]*"', "", html))
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    targets = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert {link for link in links if link.startswith("#")} <= targets


def test_every_image_and_figure_has_a_text_alternative(run: Path) -> None:
    page = report(run)
    assert all(image["alt"] for image in page.all("img"))
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in page.all("svg"))


def test_only_ids_of_the_csv_identify(run: Path) -> None:
    (run / "audit.csv").write_text(
        "severity,image_id,file,tag,reason,expected,found,what_to_do\nnote,1,f,t,r,e,DOE^JANE,w\n"
    )
    assert "DOE" not in report(run).text


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
    first, second = (write_report(make_run(tmp_path / side / "run")) for side in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert write_report(first.parent).read_bytes() == second.read_bytes()


def _luminance(rgb: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_confusion_text_has_contrast_at_every_share_in_both_themes() -> None:
    css = (Path(__file__).parents[1] / "mammoray" / "page.css").read_text()
    for theme in css.split("prefers-color-scheme: dark")[:2]:
        value = {key: re.search(rf"--{key}: ([^;]+);", theme)[1] for key in ("fill", "tint", "deep", "cell")}  # type: ignore[index]
        fill = [int(c) for c in value["fill"].split()]
        tint, deep, cell = ([int(value[key][i : i + 2], 16) for i in (1, 3, 5)] for key in ("tint", "deep", "cell"))
        for share in np.linspace(0, 1, 101):
            back = tuple(share * f + (1 - share) * t for f, t in zip(fill, tint, strict=True))
            text = tuple(deep if share >= DEEP else cell)
            light, dark = sorted((_luminance(back), _luminance(text)), reverse=True)  # type: ignore[arg-type]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (share, back)


@pytest.mark.parametrize("name", FILES)
def test_no_page_is_written_where_a_file_is_missing(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunFolderError):
        write_report(run)
    assert not (run / "report.html").exists()


# Figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.21, 1.0), (0.6, 1.47), (3.0, 3.0), (0.0, 12345.0)])
def test_ticks_are_few_ascending_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found == sorted(set(found)) and len(found) <= 7
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in found)


def test_stacked_bar_fills_its_width_and_leaves_absent_classes_out() -> None:
    bar = stacked_bar({"A": 1, "B": 2, "C": 0, "D": 7}, "Test")
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar)]
    assert len(widths) == 3 and sum(widths) == pytest.approx(100, abs=0.01)
    assert stacked_bar({"A": 0}, "Empty").count("seg") == 0


def test_short_ids_keep_the_end_and_small_images_are_not_enlarged(run: Path) -> None:
    assert short_id("1.2.826.0.1.3680043.8.498.4711").endswith("498.4711")
    examples = make_examples(pd.read_parquet(run / "predictions.parquet"), list("ABCD"), 2, 64, 48)
    examples.assign(fold="test").to_parquet(run / "examples.parquet")
    source = report(run).all("img")[0]["src"] or ""
    assert base64.b64decode(source.split(",")[1])[16:24] == (48).to_bytes(4, "big") + (64).to_bytes(4, "big")


def test_config_of_another_run_is_still_a_config(run: Path) -> None:
    (run / "config.toml").write_text(to_toml(replace(Config(), seed=99)))
    assert "99" in report(run).words


# A browser -------------------------------------------------------------------------------------------------------


def browse(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
    flags = [f"--{flag}" for flag in ("headless", "no-sandbox", "disable-sync", *quiet)]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_browser_shows_the_page_without_complaint(run: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    uri = write_report(run).as_uri()
    done = browse(tmp_path, f"--screenshot={shot}", "--window-size=1200,1600", "--enable-logging=stderr", uri)
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as image:
        grey = np.asarray(image.convert("L"))
    # Text, rules and figures: a blank page or an error page has next to no ink.
    assert grey.shape == (1600, 1200) and 0.01 < float((grey < 128).mean()) < 0.6


def test_breasts_stand_beside_images_and_patients_where_they_were_judged(tmp_path: Path) -> None:
    assert "by breast" not in write_report(make_run(tmp_path / "without")).read_text()
    page = write_report(make_run(tmp_path / "with", breasts=True)).read_text()
    assert "by breast" in page
    assert "Breasts, n = 146" in page


def test_the_page_says_why_a_training_was_stopped(tmp_path: Path) -> None:
    outdir = make_run(tmp_path / "run")
    lines = (outdir / "history.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), "stopped": "no better kappa in 5 epochs (--patience)"}
    (outdir / "history.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert "no better kappa in 5 epochs (--patience)" in write_report(outdir).read_text()


def test_the_page_says_that_validation_images_were_learned_and_when_the_schedule_was_cut(run: Path) -> None:
    edit_json(run / "metrics.json", lambda d: d["folds"].pop("val"))
    predictions = pd.read_parquet(run / "predictions.parquet")
    predictions[predictions["fold"] == "test"].to_parquet(run / "predictions.parquet")
    (run / "config.toml").write_text('[train]\nepochs = 30\nstop_epoch = 20\ntrain_on = "train_and_val"\n')
    page = report(run)
    assert "The validation images were learned from too" in page.text
    assert "--stop-epoch 20, of a schedule of 30" in page.text
    assert "best validation" not in page.text
    assert "that the network never saw" in page.text
