"""Draws gan_diagram.png, the picture of section 2:  python .github/gan_diagram.py

The fake image is another real one, blurred, so that the picture needs no training.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
import gan_helpers as helpers  # noqa: E402

FORWARD = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.5}


def box(axes, x, y, width, height, text, colour):
    axes.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour,
                                 edgecolor="#555555", linewidth=1.5))
    axes.text(x, y, text, ha="center", va="center", fontsize=15)


def back(axes, start, end, colour, bend):
    """An arrow that a gradient follows."""
    axes.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "linestyle": "--",
        "connectionstyle": f"arc3,rad={bend}"})


def main():
    images, _ = helpers.load_mnist(train=True)
    image, other = images[:1], images[11:12]  # both are a 5
    noise = 0.25 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    fake = torch.nn.functional.avg_pool2d(other, 3, stride=1, padding=1) + noise
    figure = plt.figure(figsize=(14.4, 5.25), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1440), ylim=(525, 0))
    axes.axis("off")
    for picture, y in [(image, 105), (fake, 345)]:
        box(axes, 695, y, 140, 140, "", "#eeeeee")
        axes.imshow(picture[0, 0], cmap="gray", vmin=-1, vmax=1, zorder=3, aspect="auto",
                    extent=(633, 757, y + 62, y - 62))
    box(axes, 150, 345, 158, 108, "latent $z$:\nrandom\nnumbers", "#eeeeee")
    box(axes, 422, 345, 182, 108, "generator\n$G$", "#cfe4ff")
    box(axes, 985, 225, 207, 107, "discriminator\n$D$", "#ffe0c2")
    box(axes, 1282, 225, 167, 107, "verdict:\nreal or fake?", "#eeeeee")
    axes.text(612, 105, "real image $x$", ha="right", va="center", fontsize=15)
    axes.text(695, 257, "fake image $G(z)$", ha="center", va="center", fontsize=15)
    for start, end in [((229, 345), (331, 345)), ((513, 345), (625, 345)),
                       ((765, 135), (881, 182)), ((765, 316), (881, 268)),
                       ((1089, 225), (1199, 225))]:
        axes.annotate("", end, start, arrowprops=FORWARD)
    back(axes, (1240, 172), (1028, 172), "#d95f02", 0.45)
    axes.text(985, 70, "$D$'s gradient: tell them apart", color="#d95f02", va="center", fontsize=15)
    back(axes, (1240, 279), (1028, 279), "#1f6fbf", -0.45)
    back(axes, (952, 279), (767, 362), "#1f6fbf", -0.3)
    back(axes, (648, 416), (458, 400), "#1f6fbf", -0.5)
    axes.text(1051, 438, "$G$'s gradient, through $D$:\nbe taken for real", color="#1f6fbf",
              va="center", fontsize=15)
    figure.savefig(FOLDER / "gan_diagram.png")


if __name__ == "__main__":
    main()
