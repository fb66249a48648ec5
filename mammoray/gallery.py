"""The images of a run as HTML: those it was judged on, and those that training made of a few."""

from __future__ import annotations

from mammoray.figures import png_uri, short_id
from mammoray.markup import Html, el, join, number
from mammoray.recipe import AugmentConfig
from mammoray.runfolder import Json, RunFolder

# What a report says of each setting, in the order in which it is applied: the text, and the unit's size.
_SAID = {
    "flip_horizontal": ("mirrored left to right (probability {:.3g})", 1),
    "flip_vertical": ("mirrored top to bottom (probability {:.3g})", 1),
    "rotation": ("turned by up to {:.3g}°", 1),
    "zoom": ("scaled by up to {:.3g} %", 100),
    "shift": ("shifted by up to {:.3g} % of each side", 100),
    "contrast": ("contrast changed by up to {:.3g} %", 100),
    "brightness": ("brightness by up to {:.3g} % of the range", 100),
    "gamma": ("gamma with a logarithm of up to {:.3g}", 1),
    "noise": ("noise of up to {:.3g} % of the range", 100),
    "cutout": ("a square of {:.3g} % of the shorter side blackened", 100),
}


def judged(folder: RunFolder) -> Html:
    """The kept images of the fold that the run is judged on, wrong ones first."""
    rows = [row for row in folder.examples if row["fold"] == folder.fold]
    if not rows:
        return el("p", "No example images were kept (--examples 0).", class_="quiet")
    test = folder.predictions[folder.predictions["fold"] == folder.fold]
    hits = int((test["label"] == test["predicted"]).sum())
    parts: list[Html] = []
    for title, right, of in (("Wrong", False, len(test) - hits), ("Right", True, hits)):
        group = [row for row in rows if (row["label"] == row["predicted"]) is right]
        empty = el("p", "None among the examples.", class_="quiet")
        shown = el("div", *(_example(row, title.lower()) for row in group), class_="montage") if group else empty
        parts += [el("h3", f"{title}: {len(group):,} of {of:,}"), shown]
    return join(parts)


def _example(row: Json, kind: str) -> Html:
    name, truth, said, sure = row["image_id"], row["label"], row["predicted"], number(row["probability"], 2)
    alt = f"Image {name}: truth {truth}, predicted {said} with probability {sure}"
    image = el("img", src=png_uri(row["pixels"], row["height"], row["width"]), alt=alt)
    identifier = el("small", short_id(str(name)), title=name)
    return el("figure", image, el("figcaption", el("b", f"{truth} → {said}"), f" ({sure})", identifier), class_=kind)


def augmented(folder: RunFolder) -> Html:
    """A row an image: as decoded, then as training varies it; and by how much it may."""
    note = el("p", amounts(folder.config.augment))
    if not folder.augmented:
        return join([note, el("p", "This run kept no such images.", class_="quiet")])
    columns = 1 + max(row["variant"] for row in folder.augmented)
    shown = [_variant(row) for row in sorted(folder.augmented, key=lambda row: (str(row["image_id"]), row["variant"]))]
    grid = el("div", *shown, class_="montage variants", style=f"--n:{columns}")
    return join([note, el("div", grid, class_="scroll")])


def amounts(config: AugmentConfig) -> str:
    """Say what is done to training images, and how much of it.

    Examples
    --------
    >>> amounts(AugmentConfig(augment=False))
    'Training images were not varied (--no-augment).'
    """
    if not config.augment:
        return "Training images were not varied (--no-augment)."
    said = [text.format(unit * getattr(config, name)) for name, (text, unit) in _SAID.items() if getattr(config, name)]
    sentences = []
    if said:
        sentences.append(f"Each time that an image is trained on, it is varied anew, in this order: {', '.join(said)}.")
    if config.mixup:
        sentences.append("Images are mixed in pairs, and their labels alike; the mixtures are not shown.")
    return (" ".join(sentences) or "Training images were not varied.").replace(" %", "\u00a0%")


def _variant(row: Json) -> Html:
    title = f"variant {row['variant']}" if row["variant"] else "as decoded"
    source, alt = png_uri(row["pixels"], row["height"], row["width"]), f"Image {row['image_id']}, {title}"
    identifier = el("small", short_id(str(row["image_id"])), title=row["image_id"]) if not row["variant"] else ""
    return el("figure", el("img", src=source, alt=alt), el("figcaption", title, identifier))
