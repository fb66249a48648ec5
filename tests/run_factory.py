"""The folder of a finished run, with every file in the layout that ``mammoray train`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mammoray.config import Config
from mammoray.evaluate import judge
from mammoray.plain import to_toml
from mammoray.recipe import EvaluateConfig

FILES = (
    "config.toml",
    "run.json",
    "split.json",
    "audit.json",
    "audit.csv",
    "history.jsonl",
    "metrics.json",
    "predictions.parquet",
    "examples.parquet",
)
DIGEST = "0123456789abcdef"


def make_run(
    outdir: Path,
    classes: str = "density",
    absent: str | None = None,
    examples: int = 12,
    height: int = 96,
    breasts: bool = False,
) -> Path:
    """Write the files of a finished run; class ``absent`` has no test image."""
    outdir.mkdir()
    config = Config(classes=classes, evaluate=EvaluateConfig(examples=examples))  # type: ignore[arg-type]
    names = list(config.class_names)
    predictions = make_predictions(names, absent)
    (outdir / "config.toml").write_text(to_toml(config))
    write_json(outdir / "run.json", make_run_json())
    write_json(outdir / "split.json", make_split())
    write_json(outdir / "audit.json", make_audit())
    (outdir / "audit.csv").write_text("severity,image_id,file,tag,reason,expected,found,what_to_do\n")
    (outdir / "history.jsonl").write_text("".join(json.dumps(make_epoch(i)) + "\n" for i in range(21)))
    write_json(
        outdir / "metrics.json",
        judge(predictions, config.class_names, EvaluateConfig(bootstrap=100, breasts=breasts), seed=0),
    )
    predictions.to_parquet(outdir / "predictions.parquet")
    test = predictions[predictions["fold"] == "test"]
    make_examples(test, names, examples, height, height * 3 // 4).to_parquet(outdir / "examples.parquet")
    make_augmented(height, height * 3 // 4).to_parquet(outdir / "augmented.parquet")
    return outdir


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))


def make_run_json() -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "layout": "rsna",
        "num_workers": 2,
        "decoded": 1483,
        "failed": 3,
        "parameters": 4_012_672,
        "best_epoch": 14,
        "started": "2025-11-22T11:17:03+00:00",
        "seconds": {"catalog": 1.24, "audit": 8.1, "decode": 92.3, "train": 1284.1, "evaluate": 11.9},
        "split_digest": DIGEST,
        "device": "cuda",
        "limits": [
            "The CSV has no patient_id: exams were grouped by accession number, so a patient with two exams may stand "
            "in two folds.",
            "Class D has 9 patients in the test fold; its recall is uncertain.",
        ],
    }


def make_split() -> dict[str, Any]:
    # By density letter whatever the network's classes are, as mammoray.split counts.
    shares = {"A": 0.11, "B": 0.41, "C": 0.4, "D": 0.08}
    folds = {}
    for fold, patients in {"train": 223, "val": 74, "test": 73}.items():
        counts = {
            name: {"images": 4 * round(patients * shares[name]), "patients": round(patients * shares[name])}
            for name in shares
        }
        total = {unit: sum(count[unit] for count in counts.values()) for unit in ("images", "patients")}
        folds[fold] = {**total, "classes": counts}
    return {"digest": DIGEST, "grouped_by": "patient_id", "folds": folds, "unlabelled": {"images": 317, "patients": 79}}


def make_audit() -> dict[str, Any]:
    reasons = [
        ("error", "cannot be decoded", 3, "Leave these files out, or restore them from the archive."),
        ("warning", "no density label", 317, "Label them, or leave them to mammoray predict."),
        ("note", "no VOI window in the header", 41, "Nothing: the full grey range is used."),
    ]
    keys = ("severity", "reason", "count", "what_to_do")
    by_reason = [dict(zip(keys, reason, strict=True)) for reason in reasons]
    return {"findings": 361, "by_severity": {"error": 3, "warning": 317, "note": 41}, "by_reason": by_reason}


def make_epoch(epoch: int) -> dict[str, Any]:
    learned = 1 - np.exp(-epoch / 5)
    wobble = 0.02 * np.sin(7 * epoch)
    return {
        "epoch": epoch,
        "train_loss": None if epoch == 0 else 1.4 - 0.95 * learned,
        "val_loss": 1.39 - 0.7 * learned + 0.012 * max(epoch - 12, 0) + wobble,
        "val_accuracy": 0.25 + 0.5 * learned + wobble,
        "val_balanced_accuracy": 0.25 + 0.42 * learned + wobble,
        "val_kappa": 0.76 * learned + wobble,
        "val_auc": 0.5 + 0.4 * learned + wobble / 2,
        "lr": 3e-4 * (1 - epoch / 20),
        "seconds": 62.5,
        "images_per_second": 14.3,
    }


def make_predictions(names: list[str], absent: str | None) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    k = len(names)
    frequency = np.array([0.11, 0.41, 0.4, 0.08] if k == 4 else [0.52, 0.48])
    rows = []
    for patient in range(147):
        fold = "val" if patient < 74 else "test"
        truth = int(rng.choice(k, p=frequency))
        if fold == "test" and names[truth] == absent:
            truth = 1
        for view in range(4):
            logits = -1.1 * np.abs(np.arange(k) - truth) ** 1.3 + rng.normal(0, 0.9, k)
            p = np.exp(logits) / np.exp(logits).sum()
            rows.append(
                {
                    "image_id": f"{1_459_541_000 + 4 * patient + view}",
                    "patient_id": f"{patient}",
                    "laterality": "LLRR"[view],
                    "view": ("CC", "MLO")[view % 2],
                    "fold": fold,
                    "label": names[truth],
                    "predicted": names[int(p.argmax())],
                    **{f"p_{name}": float(x) for name, x in zip(names, p, strict=True)},
                }
            )
    return pd.DataFrame(rows)


def make_examples(test: pd.DataFrame, names: list[str], count: int, height: int, width: int) -> pd.DataFrame:
    wrong = test[test["label"] != test["predicted"]].head(count // 2)
    right = test[test["label"] == test["predicted"]].head(count - len(wrong))
    columns = ["image_id", "fold", "label", "predicted"]
    chosen = pd.concat([wrong, right])
    examples = chosen[columns].copy()
    examples["probability"] = chosen[[f"p_{name}" for name in names]].max(axis=1)
    examples["height"], examples["width"] = height, width
    examples["pixels"] = [
        phantom(names.index(label) / (len(names) - 1), i, height, width) for i, label in enumerate(chosen["label"])
    ]
    return examples


def make_augmented(height: int, width: int, images: int = 2, variants: int = 3) -> pd.DataFrame:
    places = [(image, variant) for image in range(images) for variant in range(variants + 1)]
    return pd.DataFrame(
        {
            "image_id": [f"{1_459_540_000 + image}" for image, _ in places],
            "variant": [variant for _, variant in places],
            "height": height,
            "width": width,
            "pixels": [phantom(0.3 + 0.1 * variant, image, height, width) for image, variant in places],
        }
    )


def phantom(density: float, seed: int, height: int, width: int) -> bytes:
    """Half an ellipse at the left with blobs of tissue: enough to judge a montage by."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (x / (0.78 * width)) ** 2 + ((y - height / 2) / (0.46 * height)) ** 2 < 1
    small = Image.fromarray(rng.uniform(0, 255, (14, 11)).astype(np.uint8))
    blobs = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.where(inside, 50 + (0.25 + 0.75 * density) * blobs * 0.8, 0).clip(0, 255).astype(np.uint8).tobytes()


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    write_json(path, document)
