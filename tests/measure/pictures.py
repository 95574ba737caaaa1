"""Section 15 of the notebook on real pictures, by its own cells. None of them is kept here.

    python tests/measure/pictures.py emoji 64    Debian's fonts-noto-color-emoji, with unicode-data
    python tests/measure/pictures.py letters 64  capitals in all installed fonts that have them
    python tests/measure/pictures.py digits 8    the coloured digits of section 15
    python tests/measure/pictures.py penalty 8   the weight of R1 on the coloured digits
    python tests/measure/pictures.py wide 1      25 turns with width 64, at three learning rates

The number says how many epochs to play, of 234 turns; GAN_SEED says with which seed. Writes
tests/measure/pictures/NAME.png: two rows of pictures, then drawings that nobody has chosen.
"""

import os
import resource
import string
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import save_image

what, epochs = sys.argv[1], sys.argv[2]
os.environ["GAN_OUTPUT"] = f"output/pictures_{what}_{os.environ.setdefault('GAN_SEED', '0')}"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import SOURCES, notebook_code, run_cell  # noqa: E402
from rows import print_row  # noqa: E402

FONTS = Path("/usr/share/fonts")


def draw_emoji(folder):
    """All sequences of Unicode's list that the font has as one picture: RGBA, 136 x 128."""
    font = ImageFont.truetype(str(next(FONTS.rglob("NotoColorEmoji.ttf"))), 109)
    listed = Path("/usr/share/unicode/emoji/emoji-test.txt").read_text(encoding="utf-8")
    for line in listed.splitlines():
        codes, _, status = line.partition(";")
        if not status.strip().startswith("fully-qualified"):
            continue
        text = "".join(chr(int(code, 16)) for code in codes.split())
        if font.getlength(text) < 140:
            picture = Image.new("RGBA", (136, 128))
            ImageDraw.Draw(picture).text((0, 0), text, font=font, embedded_color=True)
            picture.save(folder / f"{'-'.join(codes.split())}.png")


def draw_letters(folder):
    """The capitals of all fonts that have the Latin letters, but for symbols; each font once."""
    seen = set()
    for path in sorted([*FONTS.rglob("*.ttf"), *FONTS.rglob("*.otf")]):
        known = TTFont(path, lazy=True).getBestCmap() or {}
        if "Symbol" in path.name or not known.keys() >= set(map(ord, string.ascii_letters)):
            continue
        font = ImageFont.truetype(str(path), 44)
        look = bytes(font.getmask("Qgaf"))
        for letter in string.ascii_uppercase if look not in seen else "":
            picture = Image.new("L", (64, 64), 255)
            ImageDraw.Draw(picture).text((32, 50), letter, 0, font, anchor="ms")
            (folder / letter).mkdir(exist_ok=True)
            picture.save(folder / letter / f"{path.stem}.png")
        seen.add(look)


def train_on(names, **changes):
    """The cell that trains, with these changes in its text. Returns the game."""
    source = SOURCES["own-train"]
    for old, new in {"epochs=8": f"epochs={epochs}", **changes}.items():
        assert old in source
        source = source.replace(old, new)
    exec(source, names)
    return names["mine"]


def main():
    matplotlib.use("agg")
    names = notebook_code()
    run_cell("data", names)
    names.update(EPOCH=468, settings=replace(names["settings"], seed=int(os.environ["GAN_SEED"])),
                 save_image=save_image)
    helpers, draw_latent = names["helpers"], names["draw_latent"]
    folder, channels = names["output"] / "pictures", 1 if what == "letters" else 3
    if what in ("digits", "penalty", "wide"):
        run_cell("sample-folder", names)
        folder = names["sample"]
    else:
        names["sample"] = None
        folder.mkdir(exist_ok=True)
        {"emoji": draw_emoji, "letters": draw_letters}[what](folder)
    start = time.perf_counter()
    pictures = names["images_from"](folder, 64, channels)
    print(f"read in {time.perf_counter() - start:.1f} s")
    names.update(folder=folder, channels=channels, pictures=pictures)

    if what == "penalty":
        digits = torch.tensor([int(file.parent.name) for file in sorted(folder.rglob("*.png"))])
        judge = helpers.train_judge(pictures[:], digits)
        real, _ = helpers.judge_images(judge, pictures[:])
        neighbour_radii, share_in_balls = names["neighbour_radii"], names["share_in_balls"]
        radii = neighbour_radii(real)
        for weight in (0.1, 1.0, 10.0, 100.0):
            game = train_on(names, **{"r1_weight=10.0": f"r1_weight={weight}"})
            drawn = helpers.generate(game.average, draw_latent(len(pictures)))
            features, _ = helpers.judge_images(judge, drawn)
            distance = names["frechet_distance"](real, features)
            precision = share_in_balls(features, real, radii)
            recall = share_in_balls(real, features, neighbour_radii(features))
            loss = game.history[-1]["D's loss"]
            scores = distance, precision, recall, loss
            print_row(f"R1 {weight}", *(f"{score:.3g}" for score in scores))
        return

    if what == "wide":
        for rate in ("2e-3", "5e-4", "2e-4"):
            game = train_on(names, **{"=2e-3": f"={rate}", "channels)": "channels, 64)",
                                      "max(1, EPOCH // 2)": "25"})
            print_row(f"width 64, rate {rate}", *(f"{game.history[0][name]:.2f}"
                                                  for name in ("D's loss", "G's loss")))
        return

    game = train_on(names)
    seconds = sum(means["seconds"] for means in game.history)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print_row(what, len(pictures), game.turn, f"{seconds:.0f} s", f"{game.turn / seconds:.1f}/s",
              f"{memory:.2f} GB")
    page = torch.cat([names["draw_from"](pictures, 24),
                      helpers.generate(game.average, draw_latent(48))])
    path = Path(__file__).parent / "pictures" / f"{what}.png"
    save_image(page, path, nrow=12, normalize=True, value_range=(-1, 1))
    Image.open(path).quantize(48, dither=0).save(path, optimize=True)


if __name__ == "__main__":
    main()
