"""A thousand digits in place of 60,000, and what shifts by up to two pixels do, for results.md.

    python tests/measure/few.py 0

Plays the MLP for six epochs and the DCGAN, told nothing, for three: with a thousand digits as they
are; with shifts of what is real; and with shifts of all that D sees, in both moves, as in
differentiable augmentation (Zhao et al., 2020).
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from torch.nn.functional import pad

os.environ.update(GAN_SEED=sys.argv[1], GAN_OUTPUT=f"output/few_{sys.argv[1]}")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import notebook_code, run_cell  # noqa: E402
from rows import print_row  # noqa: E402

matplotlib.use("agg")
names = notebook_code()
for cell in ("data", "judge", "score"):
    run_cell(cell, names)
helpers, images = names["helpers"], names["images"]
thousand, others = images[:1000], images[1000:2000]
latents = names["draw_latent"](len(names["test_images"]))
mlp = replace(names["settings"], name="few", seed=int(sys.argv[1]), epochs=6, turns_per_epoch=468)
dcgan = replace(names["dcgan_settings"], name="few", seed=mlp.seed, epochs=3, turns_per_epoch=936)


def shift(pictures, most=2):
    """Move each picture (N, 1, H, W) by up to so many pixels; its edges are repeated."""
    n, _, height, width = pictures.shape
    framed = pad(pictures, (most,) * 4, mode="replicate")
    down, right = torch.randint(2 * most + 1, (2, n, 1))
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    each = torch.arange(n)[:, None, None]
    return framed[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Shifted:
    """Pictures that are shifted each time they are picked."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, picked):
        return shift(self.pictures[picked])


def play(name, settings, generator, discriminator, pictures):
    game = names["LongGame"](settings, generator, discriminator)
    names["train"](game, pictures)
    drawn = helpers.generate(game.average, latents)
    drawn = drawn[:, :, 2:-2, 2:-2] if drawn.shape[2] == 32 else drawn
    row = names["score"](drawn)
    near, far = (names["nearest_images"](drawn[:2000], those)[0].median()
                 for those in (thousand, others))
    loss = game.history[-1]["D's loss"]
    print_row(name, *(f"{row[column]:.3g}" for column in ("frechet", "precision", "recall")),
              f"{near / far:.2f}", f"{loss:.2f}")


def main():
    for name, settings, generator, discriminator, pictures in [
            ("MLP", mlp, names["Generator"], names["Discriminator"], thousand),
            ("DCGAN", dcgan, names["ConvGenerator"], names["ConvDiscriminator"],
             names["frame"](thousand))]:
        class SeesShifted(discriminator):
            def forward(self, pictures):
                return super().forward(shift(pictures))

        play(f"{name}, as they are", settings, generator, discriminator, pictures)
        play(f"{name}, real ones shifted", settings, generator, discriminator, Shifted(pictures))
        play(f"{name}, all shifted that D sees", settings, generator, SeesShifted, pictures)


if __name__ == "__main__":
    main()
