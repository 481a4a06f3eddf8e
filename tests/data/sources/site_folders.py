"""Folders of sites in every format, all with the same examples."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("image_folder", "npz", "csv", "leaf")
NAMES = ("hospital_a", "hospital_b", "hospital_c")
SIZES = {"hospital_a": (24, 8), "hospital_b": (31, 0), "hospital_c": (40, 10)}  # of its own two sets


def examples(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of shape (num, 4, 4) as uint8, brighter from class to class, and classes 0 to 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    images = rng.integers(0, 120, size=(num, 4, 4)) + 60 * labels[:, None, None]
    return images.astype(np.uint8), labels


def write_side(folder: Path, side: str, form: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write one set of a site: "train", "test" or, with all of its examples, "" for images."""
    if form == "image_folder":
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / side / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03d}.png")
        return
    (folder / side if form == "leaf" else folder).mkdir(parents=True, exist_ok=True)
    flat = images.reshape(len(images), -1)
    if form == "npz":
        np.savez(folder / f"{side or 'train'}.npz", features=images, labels=labels)
    elif form == "csv":
        with (folder / f"{side or 'train'}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"pixel{number}" for number in range(flat.shape[1])), "label"])
            writer.writerows([*row, label] for row, label in zip(flat.tolist(), labels.tolist(), strict=True))
    else:
        data = {"x": (flat / 255).tolist(), "y": labels.tolist()}
        user = {"users": ["own"], "num_samples": [len(labels)], "user_data": {"own": data}}
        (folder / side / "data.json").write_text(json.dumps(user))


def write_sites(folder: Path, form: str) -> Path:
    """Write three sites, of which hospital_b has no test set of its own, and return their folder."""
    for seed, (name, (num_train, num_test)) in enumerate(SIZES.items()):
        images, labels = examples(num_train + num_test, seed)
        side = "train" if num_test or form == "leaf" else ""
        write_side(folder / name, side, form, images[:num_train], labels[:num_train])
        if num_test:
            write_side(folder / name, "test", form, images[num_train:], labels[num_train:])
    return folder
