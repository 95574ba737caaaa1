"""Plumbing for HandwrittenNumberGAN.ipynb: everything that a reader of the story may skip.

Each function can be used on its own, and nothing here knows the notebook's classes.

Images are float tensors (N, 1, H, W) with pixels from -1 (black) to 1 (white), unless a docstring
says otherwise. Functions that show pictures take tensors from any device.
"""

import base64
import contextlib
import copy
import dataclasses
import gzip
import io
import json
import math
import numbers
import os
import struct
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.transforms.functional import center_crop
from torchvision.utils import make_grid
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
ARCHIVES = FOLDER / "data" / "MNIST" / "raw"
JUDGE_FILE = FOLDER / "data" / "judge.pt"


# Device, data, settings ---------------------------------------------------------------------------

def choose_device() -> torch.device:
    """The device to train on: what GAN_DEVICE names, or else a GPU if there is one, or the CPU.

    A GPU that fails at a first addition is not used; a printed line says so. Raises ValueError if
    GAN_DEVICE names a device that this machine lacks; the message lists those that it has.
    """
    present = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type  # "cuda", "mps", "xpu", ...
        numbered = [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
        present = [kind, *numbered, "cpu"]
    name = os.environ.get("GAN_DEVICE", "").strip().lower() or present[0]
    if name not in present:
        raise ValueError(
            f"GAN_DEVICE = {name!r} is not in this machine, which has: {', '.join(present)}")
    try:
        torch.ones(2, device=name) + 1
    except Exception as error:  # PyTorch finds a GPU that is too old for it, which fails only here
        reason, *_ = [*str(error).splitlines(), type(error).__name__]
        print(f"The device {name} fails ({reason}), so the CPU does the work.")
        name = "cpu"
    return torch.device(name)


def _read_archive(path: Path, dimensions: int) -> torch.Tensor:
    """The bytes of a gzipped IDX file (MNIST's format) as a uint8 tensor.

    Raises OSError, which says how to get the file back, if it is missing or damaged.
    """
    try:
        with gzip.open(path) as file:  # gzip's own checksum finds damage
            content = bytearray(file.read())
        magic, *sizes = struct.unpack_from(f">{1 + dimensions}i", content)
        if magic != 0x800 + dimensions:  # 8 stands for bytes, then comes the number of dimensions
            raise ValueError("another kind of file has this name")
        start = 4 + 4 * dimensions
        return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(sizes)
    except Exception as error:
        raise OSError(f"'{path}' is missing or damaged ({error}). `git checkout -- data` brings it "
                      "back, or torchvision.datasets.MNIST downloads it") from error


def load_mnist(train: bool, device: torch.device | str = "cpu",
               folder: Path | str = ARCHIVES) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST (LeCun, Cortes and Burges, 1998) as two tensors on `device`, read from its archives.

    Returns images, float32 (N, 1, 28, 28) in [-1, 1], and labels, int64 (N,), beginning with 0.
    There are 60,000 images to train on (`train`) and 10,000 to test with; another data set in the
    same format may have other numbers of them. Raises OSError if an archive is missing or damaged,
    or if images and labels do not belong together.
    """
    stem = "train" if train else "t10k"
    image_path = Path(folder) / f"{stem}-images-idx3-ubyte.gz"
    label_path = Path(folder) / f"{stem}-labels-idx1-ubyte.gz"
    images = _read_archive(image_path, dimensions=3)
    labels = _read_archive(label_path, dimensions=1)
    if images.shape != (len(labels), 28, 28):
        raise OSError(f"'{image_path}' holds {len(images):,} images of {tuple(images.shape[1:])} "
                      f"pixels, and '{label_path}' {len(labels):,} labels: there must be as many "
                      "of both, and (28, 28) pixels")
    return images[:, None].to(device).float().div_(127.5).sub_(1), labels.to(device).long()


RANGES = {  # for each setting of the notebook, its lowest and highest value; an int must be whole
    "seed": (0, 2**63 - 1), "batch_size": (2, 60_000), "turns_per_epoch": (1, 1_000_000),
    "latent_dim": (1, 10_000), "learning_rate": (0.0, 1.0), "decay_from": (0.0, 1.0),
    "beta1": (0.0, 0.9999), "beta2": (0.0, 0.9999), "r1_weight": (0.0, 10_000.0),
    "r1_every": (1, 1_000_000)}


def check_settings(settings) -> None:
    """Check a dataclass of settings against RANGES.

    Numbers of other libraries become Python's own, since a checkpoint can hold no others. Raises
    ValueError with the name, the value and the range of the first setting that cannot work.
    """
    for name, (low, high) in RANGES.items():
        value, kind = getattr(settings, name), type(low)
        wanted = numbers.Integral if kind is int else numbers.Real
        if not (isinstance(value, wanted) and low <= value <= high):  # NaN is in no range
            hint = " (a whole number)" if kind is int else ""
            raise ValueError(f"{name} = {value!r} must be from {low:,} to {high:,}{hint}")
        object.__setattr__(settings, name, kind(value))  # the only way into a frozen dataclass
    if not str(settings.name).replace("_", "").isalnum():
        raise ValueError(f"name = {settings.name!r} must be letters, digits and _")


@contextlib.contextmanager
def exact_products():
    """Make matrix products as exact as float32 allows, in a `with` block or a decorated function.

    This does not concern convolutions, whose factors a GPU may round.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Progress line ------------------------------------------------------------------------------------

def _in_kernel() -> bool:
    """Whether this runs in a Jupyter or Colab kernel rather than in a plain script."""
    ipython = sys.modules.get("IPython")  # present only where a notebook or IPython is running
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _DisplayLine(tqdm):
    """A tqdm bar that updates one IPython display, where a terminal would use carriage returns."""

    handle = None

    def display(self, msg=None, pos=None):
        text = {"text/plain": str(self) if msg is None else msg}
        if self.handle is None:
            display = sys.modules["IPython"].display.display
            self.handle = display(text, raw=True, display_id=True)
        elif text["text/plain"]:
            self.handle.update(text, raw=True)
        return True


def progress_line(total: int, done: int = 0) -> tqdm:
    """A tqdm bar over `total` turns, of which `done` have been played already.

    In a Jupyter or Colab kernel the bar is a single display that is updated in place. So a saved
    notebook keeps one line of text, and no widget, no carriage returns and nothing on stderr.
    """
    options = {"total": total, "initial": done, "unit": "turn", "mininterval": 0.5}
    if _in_kernel():
        return _DisplayLine(**options, file=io.StringIO(), ncols=116, ascii=False)
    return tqdm(**options, file=sys.stdout, dynamic_ncols=True)


def report(progress: tqdm, turn: int, means: dict[str, float]) -> None:
    """Move a progress line to this turn, and show these means (name = number) behind it.

    Raises FloatingPointError, which says what to do, if one of the means is NaN or infinite.
    """
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"training broke down between turns {progress.n:,} and {turn:,}: {name} is {mean}. "
                "Begin a new game (RESUME = False) with a lower learning_rate or a higher "
                "r1_weight. What earlier epochs have saved is intact; another `name` in the "
                "settings keeps it from being replaced.")
    progress.set_postfix_str(", ".join(f"{name} {mean:.2f}" for name, mean in means.items()),
                             refresh=False)
    progress.update(turn - progress.n)


# Pictures -----------------------------------------------------------------------------------------

PAGE = 9.6  # inches, the width of a full picture
DPI = 100   # pixels per inch
GAP = 2     # pixels between the images of a grid, before it is enlarged
REAL, G = "black", "C0"  # the same colours in every figure; orange is for D
SAYS = "D says: 'real'"


def picture(name: str, width: int):
    """A picture from the folder .github, `width` pixels wide, or a sentence if it is missing.

    The notebook shows it as the output of a cell, because few programs that show notebooks find a
    picture by its path.
    """
    from IPython.display import Image as Shown
    path = FOLDER / ".github" / name
    return Shown(path, width=width) if path.exists() else f"{name} is missing: git checkout .github"


def show() -> None:
    """Show all open figures, and close them: Jupyter does that by itself, a script does not."""
    plt.show()
    plt.close("all")


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Return these images unchanged if they are images (N, 1, H, W), N > 0, with pixels in [-1, 1].

    Raises ValueError, which says what is wrong, if they are not. NaN is refused, too.
    """
    if not (images.ndim == 4 and images.shape[1] == 1 and len(images) > 0):
        raise ValueError(
            f"images must have the shape (N, 1, H, W), N at least 1, not {tuple(images.shape)}")
    low, high = images.detach().aminmax()
    if not (low >= -1 and high <= 1):  # written like this, it also catches NaN
        raise ValueError(f"images must have pixels in [-1, 1], not from {low:.4g} to {high:.4g}")
    return images


def _grid(images: torch.Tensor, columns: int, scale: int, greys: int = 256,
          group: int = 0) -> np.ndarray:
    """Arrange images row by row in one array (height, width) of uint8, enlarged `scale` times.

    After every `group` rows (0: never) there is a wider gap. With 12 `greys` the file of a picture
    is half as large as with 256.
    """
    levels = check_images(images).detach().cpu().add(1).div(2).mul(greys - 1).round()
    parts = levels.split(group * columns if group else len(levels))
    grids = [make_grid(part / (greys - 1), nrow=columns, padding=GAP, pad_value=0.25)[0]
             for part in parts]
    room = torch.ones(2 * GAP, grids[0].shape[1])  # white, like the page
    grid = torch.cat([strip for part in grids for strip in (room, part)][1:])
    large = grid.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
    return large.mul(255).round().byte().numpy()


def _grid_figure(images, columns, title="", labels=(), row_labels=(), column_labels=(), scale=2,
                 group=0, right=0):
    """Make the figure that `plot_grid` shows.

    Also returns how many pixels from the top the row labels are. Labels of rows and columns lie
    outside the figure, where Jupyter adds room for them. `right`: inches of space on the right.
    """
    grid = _grid(images, columns, scale, 12, group)
    height, width = grid.shape
    top = 24 if title else 0
    figure = plt.figure(figsize=(width / DPI + right, (height + top) / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, width / DPI / (width / DPI + right), height / (height + top)))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.set_title(title, fontsize=10, pad=6)
    axes.set_frame_on(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    down, across = (images.shape[2] + GAP) * scale, (images.shape[3] + GAP) * scale
    rows_each = group or 1  # a label stands beside its group
    between = rows_each * down + (3 * GAP * scale if group else 0)
    middle = (rows_each * down + GAP * scale) / 2
    heights = [number * between + middle for number in range(len(row_labels))]
    axes.set_yticks(heights, row_labels)
    axes.set_xticks([(n + 0.5) * across for n in range(len(column_labels))], column_labels)
    for index, label in enumerate(labels):
        x, y = index % columns * across + 3 * scale, index // columns * down + 3 * scale
        axes.text(x, y, label, color="gold", fontsize=10, weight="bold", va="top")
    return figure, heights


def plot_grid(images: torch.Tensor, columns: int, title: str = "", labels=(), row_labels=(),
              column_labels=(), scale: int = 2, group: int = 0) -> None:
    """Show images (N, 1, H, W) in [-1, 1] as a grid with this number of columns.

    The grid is enlarged `scale` times. `labels` stand in the corners of the images, `row_labels` on
    the left, `column_labels` above. `group`: this many rows belong together and share a row label.
    """
    _grid_figure(images, columns, title, labels, row_labels, column_labels, scale, group)
    show()


def plot_games(games: list[dict], columns: int, group: int) -> None:
    """Show what each game draws, in `group` rows, and beside it D's verdicts between 0 and 1.

    `games`: dicts with a `name`, images `drawn` (N, 1, H, W), and the means `D(x)` and `D(G(z))`.
    """
    shown = [game["drawn"][:columns * group] for game in games]
    names = [game["name"] for game in games]
    figure, heights = _grid_figure(torch.cat(shown), columns, row_labels=names, group=group,
                                   right=2.2)
    bottom, share = figure.get_figheight() * DPI, 2.2 / figure.get_figwidth()
    axes = figure.add_axes((1 - 0.92 * share, 0, 0.87 * share, 1))
    axes.hlines(heights, 0, 1, color="lightgray", linewidth=2, zorder=1)
    axes.vlines(0.5, 0, bottom, color="gray", linestyle=":", zorder=1)
    for name, label, colour, above in [("D(x)", "real", REAL, True), ("D(G(z))", "fake", G, False)]:
        verdicts = [game[name] for game in games]
        axes.scatter(verdicts, heights, s=60, color=colour, zorder=2)
        for verdict, height in zip(verdicts, heights):
            axes.text(min(max(verdict, 0.12), 0.88), height + (-9 if above else 9),
                      f"{label} {verdict:.2f}", color=colour, ha="center",
                      va="bottom" if above else "top", backgroundcolor="white", zorder=1.5)
    axes.set(xlim=(-0.08, 1.08), ylim=(bottom, 0), yticks=[], xticks=[0, 0.5, 1],
             title=SAYS)
    axes.set_frame_on(False)
    show()


def plot_curves(x, curves: dict, xlabel: str, ylabel: str, levels=()) -> None:
    """Show curves over x (name = heights) and, as broken lines, levels (name = height)."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.8), dpi=DPI, layout="constrained")
    for name, heights in curves.items():
        axes.plot(x, heights, label=name, marker="." if len(x) < 20 else "")
    for number, (name, height) in enumerate(dict(levels).items()):
        style = ["--", ":", "-."][number % 3]
        axes.axhline(height, color="gray", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    show()


def plot_paths(paths: dict, xlabel: str, ylabel: str) -> None:
    """Show paths in the plane (title = places (x, y)), side by side, coloured by time.

    A dot marks the start and a star the goal, (0, 0). Each frame is as large as its path needs.
    """
    figure, all_axes = plt.subplots(1, len(paths), figsize=(PAGE, 2.9), dpi=DPI,
                                    layout="constrained")
    for axes, (title, path) in zip(all_axes, paths.items()):
        x, y = zip(*path)
        reach = 1.15 * max(map(abs, x + y))
        turns = axes.scatter(x, y, c=range(len(path)), cmap="viridis_r", s=7, zorder=2)
        axes.plot(x, y, color="lightgray", linewidth=1, zorder=1)
        for at in (len(path) // 20, len(path) // 8):
            axes.annotate("", path[at + 3], path[at], arrowprops={"arrowstyle": "-|>"})
        axes.plot(*path[0], "o", color="black", zorder=3)
        axes.plot(0, 0, "*", color="red", markersize=11, zorder=0)
        axes.set(title=title, xlabel=xlabel, aspect="equal", xlim=(-reach, reach),
                 ylim=(-reach, reach))
    all_axes[0].set_ylabel(ylabel)
    figure.colorbar(turns, ax=all_axes, label="turn", pad=0.01)
    show()


def plot_changes(before: torch.Tensor, after: torch.Tensor, column_labels=()) -> None:
    """Show images (N, 1, H, W), below each what became of it, and below that the change."""
    pairs = torch.cat([check_images(before), check_images(after)]).detach().cpu().add(1).div(2)
    change = (after - before).detach().cpu()[:, 0] / 2
    tints = torch.from_numpy(plt.get_cmap("PRGn")(change.add(1).div(2).numpy())[..., :3]).float()
    rows = torch.cat([pairs.expand(-1, 3, -1, -1), tints.permute(0, 3, 1, 2)])
    grid = make_grid(rows, nrow=len(before), padding=GAP, pad_value=0.25).permute(1, 2, 0)
    height, width = grid.shape[0] / 3, grid.shape[1] / len(before)
    figure, axes = plt.subplots(figsize=(PAGE, PAGE * 3 / len(before)), dpi=DPI)
    axes.imshow(grid.numpy(), interpolation="nearest")
    axes.set_frame_on(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([height * (row + 0.5) for row in range(3)],
                    ["before", "after", "green: lighter\npurple: darker"])
    axes.set_xticks([width * (n + 0.5) for n in range(len(column_labels))], column_labels)
    show()


def plot_histograms(values: dict, xlabel: str) -> None:
    """Show two histograms (name = values (N,)), first of real images, then of drawings."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.4), dpi=DPI, layout="constrained")
    low, high = min(map(min, values.values())).item(), max(map(max, values.values())).item()
    bins = np.linspace(low, high, 50)
    for (name, each), colour in zip(values.items(), (REAL, G)):
        axes.hist(each.cpu().numpy(), bins, label=name, histtype="step", color=colour, linewidth=2)
    axes.set(xlabel=xlabel, ylabel="how many")
    axes.legend()
    show()


def plot_balls(panels: dict) -> None:
    """Show, in each panel, balls around the points of one side and the points of the other side.

    `panels`: title = (centres (N, 2), their radii (N,), their colour, points (M, 2), their colour).
    A point that lies in any ball is filled, the others are hollow.
    """
    figure, all_axes = plt.subplots(1, len(panels), figsize=(PAGE, 4.6), dpi=DPI,
                                    layout="constrained", sharex=True, sharey=True, squeeze=False)
    for axes, (title, (centres, radii, ours, points, theirs)) in zip(all_axes[0], panels.items()):
        inside = (torch.cdist(points, centres) <= radii).any(dim=1)
        for centre, radius in zip(centres.tolist(), radii.tolist()):
            axes.add_patch(plt.Circle(centre, radius, color=ours, alpha=0.12, linewidth=0))
        axes.scatter(*centres.T, s=14, color=ours, marker="x")
        axes.scatter(*points[inside].T, s=40, color=theirs, edgecolors=theirs)
        axes.scatter(*points[~inside].T, s=40, facecolors="none", edgecolors=theirs)
        axes.set(title=f"{title}: {inside.sum()} of {len(points)}", xticks=[], yticks=[],
                 aspect="equal", xlabel="cross: centre of a ball; filled dot: lies in a ball")
    show()


def plot_tradeoff(lines: dict, xlabel: str, ylabel: str) -> None:
    """Show points (x, y, label), name in the legend = one or more, which a line joins."""
    figure, axes = plt.subplots(figsize=(PAGE * 0.75, 4.6), dpi=DPI, layout="constrained")
    styles = [("*", REAL, 6), ("s", "C7", 6), ("o", "C0", 6), ("v", "C2", -14)]
    for (name, points), (marker, colour, above) in zip(lines.items(), styles):
        x, y, labels = zip(*points)
        axes.plot(x, y, marker=marker, markersize=9, color=colour, label=name)
        for place in zip(x, y, labels):
            axes.annotate(place[2], place[:2], (8, above), textcoords="offset points", color=colour)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(0.12)
    axes.grid(color="0.93")
    axes.legend()
    show()


TINTS = ("#CC6677", "#332288", "#B8A038", "#117733", "#4FA3D1", "#882255", "#44AA99", "#7F7F1F",
         "#AA4499", "#8C5A3C")  # after Paul Tol's "muted", for colour-blind readers, no orange


def plot_map(images: torch.Tensor, digits: torch.Tensor, certainty: torch.Tensor,
             columns: int) -> None:
    """Show images (N, 1, H, W) without gaps, each on a background in the colour of its digit.

    `digits` (N,) are integers. The colour fades to grey where the `certainty` (N,) is low; it is
    between 0 and 1.
    """
    tints = torch.tensor([to_rgb(tint) for tint in TINTS])[digits.cpu() % len(TINTS)]
    full = certainty.cpu().sub(0.3).div(0.7).clamp(0, 1)[:, None]  # below 0.3 all is grey
    tints = full * tints + (1 - full) * 0.62
    strokes = check_images(images).cpu().add(1).div(2)  # 0 is paper, 1 is a stroke
    coloured = tints[:, :, None, None] * (1 - strokes) + strokes
    grid = make_grid(coloured, nrow=columns, padding=0).permute(1, 2, 0)
    figure, axes = plt.subplots(figsize=(8.6, 9), dpi=DPI, layout="constrained")
    axes.imshow(grid.mul(12).round().div(12).numpy())  # few colours: a small file
    axes.axis("off")
    kinds = digits.unique().tolist()
    keys = [plt.Line2D([], [], marker="s", linestyle="", markersize=10, label=str(kind),
                       color=TINTS[kind % len(TINTS)]) for kind in kinds]
    keys.append(plt.Line2D([], [], marker="s", linestyle="", markersize=10, color="0.62",
                           label="unsure"))
    figure.legend(handles=keys, loc="outside upper center", ncols=11, frameon=False,
                  columnspacing=1, handletextpad=0.1)
    show()


PLANE = 3.0  # the square that is drawn reaches from -PLANE to PLANE
LINE = torch.linspace(-PLANE, PLANE, 61)
PLACES = torch.cartesian_prod(LINE, LINE).flip(1)  # (61 * 61, 2), row by row from the lower left
D_SAYS = LinearSegmentedColormap.from_list("D says", ["white", "#FFD9B0", "#FF7F0E"], 16)


def hits(points: torch.Tensor, rings: tuple) -> tuple[float, int]:
    """The share of points (N, 2) that lie in a ring, and how many rings hold at least 1 % of them.

    `rings`: the centres (K, 2) of all rings, and their radius.
    """
    distance, nearest = torch.cdist(points, rings[0]).min(dim=1)
    in_ring = nearest[distance < rings[1]]
    reached = (in_ring.bincount(minlength=len(rings[0])) >= 0.01 * len(points)).sum().item()
    return len(in_ring) / len(points), reached


def plane_panel(title: str, points: torch.Tensor, values: torch.Tensor, rings: tuple) -> dict:
    """Describe a map of the plane for `plot_plane` or `plane_film`. Its caption counts the hits."""
    share, reached = hits(points, rings)
    return {"title": title, "points": points, "values": values,
            "caption": f"{reached} rings, {share:.0%} of points"}


def _draw_plane(axes, panel, rings, limits):
    """Draw one map of the plane, as `plot_plane` describes it. Returns what a colour bar needs."""
    values = panel["values"].cpu().numpy().reshape(61, 61)
    points, centres = panel["points"][:700].cpu().numpy(), rings[0].cpu().numpy()
    shown = axes.imshow(values, vmin=limits[0], vmax=limits[1], cmap=D_SAYS, origin="lower",
                        extent=(-PLANE, PLANE, -PLANE, PLANE), interpolation="bilinear")
    low, high, half = values.min(), values.max(), sum(limits) / 2
    if low < half < high and high - low > 0.2 * (limits[1] - limits[0]):  # D is not nearly flat
        axes.contour(*PLACES.T.reshape(2, 61, 61).numpy(), values, [half],
                     colors="gray", linewidths=1)
    for colour, width in (("black", 2.2), ("white", 1)):
        axes.add_collection(EllipseCollection(
            2 * rings[1], 2 * rings[1], 0, units="xy", offsets=centres, facecolors="none",
            edgecolors=colour, linewidths=width, offset_transform=axes.transData))
    axes.scatter(*points.T, s=5, color=G, linewidths=0, zorder=2)
    if "mark" in panel:
        axes.plot(*panel["mark"], "o", color="none", markeredgecolor="black", markersize=16)
    axes.set(xticks=[], yticks=[], xlim=(-PLANE, PLANE), ylim=(-PLANE, PLANE),
             title=panel["title"], xlabel=panel["caption"])
    return shown


def plot_plane(panels: list[dict], rings: tuple, limits=(0, 1), label: str = SAYS) -> None:
    """Show maps of the plane side by side: what D says in orange, G's points in blue.

    `panels`: dicts with a `title`, a `caption`, `points` (N, 2), of which 700 are drawn, `values`
    (61 * 61,) at PLACES, and possibly a `mark`, the place (x, y) of a black circle. `rings`: the
    centres (K, 2) of all rings, and their radius. `limits`: the values that are shown white and in
    full orange; half-way between them there is a grey line.
    """
    size = (PAGE, 0.6 + 0.9 * PAGE / len(panels))
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, dpi=DPI, layout="constrained",
                                    squeeze=False)
    for axes, panel in zip(all_axes[0], panels):
        shown = _draw_plane(axes, panel, rings, limits)
    figure.colorbar(shown, ax=all_axes[0], shrink=0.9, pad=0.01, label=label)
    show()


def _film(figures, milliseconds, colours, *formats):
    """Make a looping film of figures, in one palette of so many colours: bytes in each format."""
    pixels = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)  # the figure's own may be a kind that has no pixels
        canvas.draw()
        pixels.append(np.asarray(canvas.buffer_rgba())[..., :3])
        plt.close(figure)
    palette = Image.fromarray(np.concatenate(pixels)).quantize(colours)
    first, *others = [Image.fromarray(frame).quantize(palette=palette, dither=0)
                      for frame in pixels]
    durations, films = [milliseconds] * len(others) + [2000], []
    for kind in formats:
        file = io.BytesIO()
        first.save(file, kind, save_all=True, append_images=others, duration=durations, loop=0)
        films.append(file.getvalue())
    return films


def film(epochs: dict[int, torch.Tensor], columns: int, *paths: Path | str) -> None:
    """Write a looping film to each of these paths: a grid of images (N, 1, H, W) for each epoch.

    The ending of a path names the format: .gif is good for sharing, .png is what Jupyter shows.
    """
    figures = (_grid_figure(images, columns, title=f"epoch {epoch}")[0]
               for epoch, images in epochs.items())
    films = _film(figures, 400, 16, *[Path(path).suffix[1:] for path in paths])
    for path, content in zip(paths, films):
        write_picture(path, content)


def plane_film(panels: list[dict], rings: tuple) -> bytes:
    """Make a looping film (an animated PNG) of maps of the plane, described as for `plot_plane`."""
    def figures():
        for panel in panels:
            figure, axes = plt.subplots(figsize=(4.5, 4.2), dpi=DPI, layout="constrained")
            shown = _draw_plane(axes, panel, rings, limits=(0, 1))
            figure.colorbar(shown, shrink=0.8, pad=0.02, label=SAYS)
            yield figure

    return _film(figures(), 300, 40, "png")[0]


# The judge ----------------------------------------------------------------------------------------

def judge_network(kinds: int) -> nn.Sequential:
    """A small convolutional classifier: images (N, 1, 28, 28) in [-1, 1] -> logits (N, kinds).

    Without its last layer it gives 64 features of an image. The scores compare these.
    """
    layers = []
    for inputs, outputs, stride in [(1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)]:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                   nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * 7 * 7, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, kinds))


def train_judge(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8) -> nn.Sequential:
    """Train a judge: AdamW with a one-cycle rate, batches of 128, images shifted by up to 2 pixels.

    `images` (N, 1, 28, 28) in [-1, 1] and `labels` (N,), beginning with 0, must be on the device to
    train on. The judge has random numbers of its own, so that those of the program go on as if
    nothing had been trained. Returns the judge, in eval mode, on that device.
    """
    device = check_images(images).device
    order = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # faster
    steps = epochs * math.ceil(len(images) / 128)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        judge = judge_network(int(labels.max()) + 1).to(device).to(memory_format=order)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(images), (128,))
            down, right = torch.randint(0, 5, (2,)).tolist()
            padded = functional.pad(images[batch], (2, 2, 2, 2), value=-1)
            shifted = padded[:, :, down:down + 28, right:right + 28]
            logits = judge(shifted.contiguous(memory_format=order))
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def load_judge(path: Path | str = JUDGE_FILE) -> nn.Sequential:
    """The judge with the weights stored at `path`, in eval mode, on the CPU.

    Raises ValueError if the file is missing or damaged; the message says how to get it back.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        *_, last_bias = weights.values()
        judge = judge_network(kinds=len(last_bias))
        judge.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"'{path}' is missing or damaged ({error}). git checkout -- data brings "
                         "it back, or data/README.md has the command that makes one") from error
    return judge.eval()


@torch.no_grad()
@exact_products()
def judge_images(judge: nn.Sequential,
                 images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Let the judge read images. Of those larger than 28 x 28 pixels it sees only the centre.

    Returns features (N, 64) and the probabilities of the digits (N, kinds), on the images' device.
    Raises ValueError if the images are smaller.
    """
    if min(check_images(images).shape[2:]) < 28:
        raise ValueError(
            f"the judge needs at least 28 x 28 pixels, not {tuple(images.shape[2:])}")
    chunks = center_crop(images, 28).split(500)
    features = torch.cat([judge[:-1](chunk) for chunk in chunks])
    return features, judge[-1](features).softmax(dim=1)


@torch.no_grad()
def generate(generator: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Run a generator on latents (N, latent size) in eval mode, without gradients, in chunks.

    Returns images (N, 1, H, W) on their device. The generator's mode is left as it was.
    """
    training = generator.training
    try:
        generator.eval()
        return torch.cat([generator(chunk) for chunk in latent.split(1000)])
    finally:
        generator.train(training)


# Files --------------------------------------------------------------------------------------------

def output_folder(quick: bool) -> Path:
    """Make the folder that runs write to: GAN_OUTPUT or `output`, and in quick mode `quick` in it.

    Raises OSError, with its name and that of the variable, if it cannot be made or written to.
    """
    folder = Path(os.environ.get("GAN_OUTPUT") or "output", "quick" if quick else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # try it: permission bits mean nothing to root
    except OSError as error:
        raise OSError(f"'{folder}' cannot be written: set GAN_OUTPUT to another folder") from error
    return folder


def write_whole(path: Path | str, content: bytes) -> None:
    """Write a file beside `path`, then rename it, so that `path` never holds half a file.

    Raises OSError if the folder is missing, full or read-only; what was at `path` stays there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"'{path}' cannot be written, and is as it was: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder does not exist
            beside.unlink(missing_ok=True)


def write_picture(path: Path | str, content: bytes) -> None:
    """Like `write_whole`, but print an error rather than raise it: no picture is worth a lost run.

    Windows, for one, does not let a file be replaced while a viewer shows it.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        print(f"{error}. The run goes on.")


def save_grid(images: torch.Tensor, path: Path | str, columns: int, scale: int = 2) -> None:
    """Save images (N, 1, H, W) in [-1, 1] as one greyscale PNG, a grid enlarged `scale` times."""
    file = io.BytesIO()
    Image.fromarray(_grid(images, columns, scale)).save(file, "PNG")
    write_picture(path, file.getvalue())


def checksum(images: torch.Tensor) -> int:
    """A number that changes if any pixel changes its grey (one of 256), or images change places.

    `images` (N, 1, H, W) in [-1, 1]. The number is the same on every device.
    """
    greys = check_images(images).add(1).mul(127.5).round().byte()
    return zlib.crc32(greys.flatten().cpu().numpy())


def fingerprint(images: torch.Tensor) -> dict:
    """A dict that tells these images from others: how many they are, and a checksum."""
    return {"images": len(images), "checksum of the images": checksum(images)}


def check_size(drawn: torch.Tensor, real: torch.Tensor) -> None:
    """Raise ValueError, which names both sizes, if drawings and real images differ in size."""
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(f"G draws images of {tuple(drawn.shape[1:])}, and the real ones are "
                         f"{tuple(real.shape[1:])}")


def _parts(game) -> dict:
    """What a checkpoint keeps of a game, without functions; `settings` and `data` as one dict."""
    parts = {name: part for name, part in vars(game).items()
             if hasattr(part, "state_dict") or not callable(part)}
    parts["settings"] = dataclasses.asdict(parts["settings"]) | parts.pop("data")
    return parts


def save_checkpoint(game, path: Path | str) -> None:
    """Write a game, and the state of the CPU's random numbers, so that it can go on bit for bit.

    A game is an object with these attributes: a dataclass `settings`, a dict `data` that identifies
    the images, a tensor `fixed_noise` on the training device, and besides these anything that has
    a `state_dict`, plain values, and functions, which are not saved.
    """
    saved = {name: part.state_dict() if hasattr(part, "state_dict") else part
             for name, part in _parts(game).items()}
    file = io.BytesIO()
    torch.save(saved | {"random": torch.get_rng_state()}, file)
    write_whole(path, file.getvalue())


def load_checkpoint(game, path: Path | str) -> None:
    """Bring a freshly made game, and the CPU's random numbers, to the state in a checkpoint.

    Raises ValueError, with the reason, if the file is damaged, or if it is of a game with other
    settings or other images. If it holds other networks, load_state_dict raises its own error.
    """
    def refuse(reason):
        raise ValueError(f"'{path}' {reason}. Rename it, or set RESUME = False to train afresh")

    try:
        saved = torch.load(path, map_location=game.fixed_noise.device, weights_only=True)
    except Exception as error:
        refuse(f"is no whole checkpoint ({error})")
    parts = _parts(game)
    same_parts = isinstance(saved, dict) and saved.keys() == parts.keys() | {"random"}
    settings = parts.pop("settings")
    if not same_parts or saved["settings"].keys() != settings.keys():
        refuse("is of another edition of this notebook")
    for name, now in settings.items():
        before = saved["settings"][name]
        if before != now:
            refuse(f"was made with {name} = {before!r}, which is now {now!r}")
    for name, part in parts.items():
        if hasattr(part, "load_state_dict"):
            part.load_state_dict(saved[name])
        else:
            setattr(game, name, saved[name])
    torch.set_rng_state(saved["random"].cpu())


def begin(game, checkpoint: Path, resume: bool):
    """Return a freshly made game, which with `resume` continues where its checkpoint stands.

    A printed line says what happens to the checkpoint of an earlier run. Raises what
    `load_checkpoint` raises.
    """
    if resume and checkpoint.exists():
        load_checkpoint(game, checkpoint)
        print(f"RESUME: {checkpoint.name} has {game.turn:,} turns; the game goes on from there.")
    elif resume:
        print(f"RESUME: there is no {checkpoint} to go on from, so this game begins afresh.")
    elif checkpoint.exists():
        print(f"A new game: {checkpoint.name} of an earlier one is replaced when the first epoch "
              "ends. RESUME = True goes on with it instead.")
    return game


def export_generator(generator: nn.Module, path: Path | str, *example: torch.Tensor) -> None:
    """Write a generator as a program for the CPU that runs without its class (`torch.export`).

    `example`: inputs of the generator, for a batch of two or more. The program takes a batch of any
    size and has no gradients. The generator itself stays as it is. Raises ValueError if it does not
    return images (N, 1, H, W) in [-1, 1] in eval mode, OSError if the file cannot be written, and
    AssertionError if the program does not draw what the generator draws.
    """
    generator = copy.deepcopy(generator).cpu().eval().requires_grad_(False)
    example = tuple(tensor.cpu() for tensor in example)
    drawn = check_images(generator(*example))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecations
        shapes = [{0: torch.export.Dim("batch", max=2**30)}] * len(example)  # torch 2.6 needs max
        program = torch.export.export(generator, example, dynamic_shapes=tuple(shapes),
                                      strict=False)
        torch.export.save(program, file)
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
        torch.testing.assert_close(loaded(*example), drawn, rtol=0, atol=1e-3)
    write_whole(path, file.getvalue())


# The writer's page --------------------------------------------------------------------------------

def _is_plain(layer: nn.ConvTranspose2d) -> bool:
    """Whether writer.html can do what this layer does: it knows square windows, and no extras."""
    square = all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    return (square and layer.groups == 1 and set(layer.dilation) == {1}
            and set(layer.output_padding) == {0})


def _drawing_layers(modules) -> list:
    """The transposed convolutions among these modules, BatchNorm worked into their weights.

    Each comes with the slope below zero of the LeakyReLU behind it, or None for a Hardtanh, or 1.0
    if nothing follows. Raises ValueError if there is a module that writer.html cannot draw with.
    """
    layers = []
    for module in modules:
        bare = len(layers) > 0 and layers[-1][1] == 1.0  # no activation behind the last one yet
        if isinstance(module, nn.ConvTranspose2d) and _is_plain(module):
            layers.append((module, 1.0))
        elif isinstance(module, nn.BatchNorm2d) and bare:
            layer, slope = layers.pop()
            layers.append((nn.utils.fuse_conv_bn_eval(layer, module, transpose=True), slope))
        elif isinstance(module, nn.LeakyReLU) and bare:
            layers.append((layers.pop()[0], module.negative_slope))
        elif isinstance(module, nn.Hardtanh) and bare:
            layers.append((layers.pop()[0], None))
        elif not isinstance(module, nn.Unflatten):
            raise ValueError(f"writer.html cannot draw with {module}: it takes Unflatten, then in "
                             "this order a plain ConvTranspose2d, BatchNorm2d, LeakyReLU or "
                             "Hardtanh, and so on")
    return layers


@torch.no_grad()
def writer_page(layers: nn.Sequential, hand: torch.Tensor, directions: torch.Tensor,
                name: str) -> str:
    """Put a generator into the page data/writer.html, which writes numbers in any browser.

    `layers` turn latents joined to one-hot labels, (N, D + kinds), into channels, and the mean of
    the channels is the digit. `hand` (D,): the latent of the first handwriting. `directions`
    (K, D): one for each slider. `name`: any text that says which training run this is. In the page
    each weight is an int8, to be multiplied by the scale of its output channel. Raises ValueError
    if there is a layer that the page does not know.
    """
    described = []
    for layer, slope in _drawing_layers(copy.deepcopy(layers).cpu().eval()):
        scales = layer.weight.abs().amax(dim=(0, 2, 3)).clamp_min(1e-30) / 127  # never 0
        weights = (layer.weight / scales[:, None, None]).round().to(torch.int8)
        bias = torch.zeros_like(scales) if layer.bias is None else layer.bias
        described.append({
            "kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0],
            "slope": slope, "bias": bias.tolist(), "scales": scales.tolist(),
            "weights": base64.b64encode(weights.numpy().tobytes()).decode()})
    network = {"name": name, "hand": hand.tolist(), "directions": directions.tolist(),
               "layers": described}
    text = json.dumps(network).replace("<", "\\u003c")  # so that a name cannot end the script
    template = (FOLDER / "data" / "writer.html").read_text(encoding="utf-8")
    return template.replace('"NETWORK"', text)
