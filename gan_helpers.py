"""Plumbing for HandwrittenNumberGAN.ipynb: what a reader of the story would skip.

Every function can be used alone in a fresh session; nothing here knows the notebook's classes.

Images are float32 tensors of shape (N, 1, H, W) with pixels in [-1, 1] (-1 is black, 1 is white) unless a docstring
says otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import gzip
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.nn import functional
from torchvision.datasets import MNIST
from torchvision.datasets.utils import download_url
from torchvision.transforms.functional import center_crop, to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
ARCHIVES = FOLDER / "data" / "MNIST" / "raw"
JUDGE_FILE = FOLDER / "data" / "judge.pt"


# Settings and device -------------------------------------------------------------------------------------------------

def check_settings(settings: Any, **ranges: tuple[float, float]) -> None:
    """Check numbers in a dataclass against the closed range that each may have, and its `name`.

    Args:
        settings: a dataclass instance. Its `name` begins file names, so it is one word of letters, digits and _.
        ranges: field name = (lowest, highest). Two integers admit only integers. A field whose default is a tuple
            takes a tuple: of any length if its annotation ends in `...`, else as long as the default.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    if not (isinstance(settings.name, str) and settings.name.isidentifier()):
        raise ValueError(f"name = {settings.name!r} cannot work: name takes one word of letters, digits and _")
    for field in dataclasses.fields(settings):
        if field.name in ranges:
            (low, high), value = ranges[field.name], getattr(settings, field.name)
            kinds, wanted = ((int,), "whole numbers") if isinstance(low, int) else ((int, float), "numbers")
            entries, length = (value,), 1
            if isinstance(field.default, tuple):
                entries = value if isinstance(value, tuple) else ()
                length = max(len(entries), 1) if ... in typing.get_args(field.type) else len(field.default)
                wanted = f"a tuple of {'' if ... in typing.get_args(field.type) else f'{length} '}{wanted}"
            if len(entries) != length or not all(type(entry) in kinds and low <= entry <= high for entry in entries):
                raise ValueError(f"{field.name} = {value!r} cannot work: {field.name} takes {wanted} from {low:,} to "
                                 f"{high:,}")


def choose_device(name: str | None = None) -> torch.device:
    """The device to train on: `name`, else the variable GAN_DEVICE, else a GPU (CUDA or MPS) if present, else the CPU.

    Raises:
        ValueError: the device named is unknown or not in this machine; the message lists what is there.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    name = (name or os.environ.get("GAN_DEVICE") or found.type).strip().lower()
    present = ["cpu", found.type, *(f"{found.type}:{index}" for index in range(torch.accelerator.device_count()))]
    if name not in present:
        raise ValueError(f"GAN_DEVICE = {name!r} is not in this machine, which has: {', '.join(sorted(set(present)))}")
    if ":" in name:
        torch.accelerator.set_device_index(int(name.split(":")[1]))  # which of several GPUs is meant
    return torch.device(name)


# Data ----------------------------------------------------------------------------------------------------------------

def load_mnist(train: bool, device: torch.device | str = "cpu",
               folder: Path | str = ARCHIVES) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST (LeCun, Cortes and Burges, 1998) as two tensors on `device`, read from its archives.

    An archive that is missing or damaged (by torchvision's MD5 sum) is downloaded from torchvision's mirrors.

    Returns images, float32 (N, 1, 28, 28) in [-1, 1], and labels, int64 (N,) in 0..9; N is 60,000 or 10,000.

    Raises:
        OSError: an archive is missing or damaged and could not be downloaded; the message says which and what to do.
    """
    arrays = []
    for archive, md5 in MNIST.resources[:2] if train else MNIST.resources[2:]:
        path, errors = Path(folder) / archive, []
        for mirror in MNIST.mirrors:
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    download_url(mirror + archive, str(folder), md5=md5)  # returns at once where the file is whole
                break
            except (OSError, RuntimeError) as error:
                errors.append(f"{mirror}: {error}")
        else:
            raise OSError(f"{path} is {'damaged' if path.exists() else 'missing'}, and cannot be downloaded. Put the "
                          f"archive there by hand (in a clone: git checkout -- data). {'; '.join(errors)}")
        arrays.append(torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())), dtype=torch.uint8))
    images, labels = arrays[0][16:].view(-1, 1, 28, 28), arrays[1][8:]  # what comes before is a header
    return images.to(device).float().div_(127.5).sub_(1), labels.to(device).long()


# Stop button and progress line ---------------------------------------------------------------------------------------

def _in_kernel() -> bool:
    """Whether this is a Jupyter or Colab kernel, and no plain script."""
    ipython = sys.modules.get("IPython")  # present only where a notebook or IPython is already running
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextlib.contextmanager
def stop_button() -> Iterator[Callable[[], bool]]:
    """Jupyter's stop button (SIGINT) asks, the loop answers when its step is whole; a second press interrupts at once.

    Yields a function that says whether the button was pressed. Outside the main thread, where Python takes no handlers,
    it always says no. In a plain script Ctrl-C ends the script, after the step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    presses = []

    def press(*_: Any) -> None:
        presses.append(1)
        if len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)
    if presses and not _in_kernel():
        raise KeyboardInterrupt


class _DisplayLine(tqdm):
    """tqdm drawn through an IPython display handle in place of a terminal's carriage returns."""

    handle = None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        text = {"text/plain": (str(self) if msg is None else msg)}
        if self.handle is None:
            self.handle = sys.modules["IPython"].display.display(text, raw=True, display_id=True)
        elif text["text/plain"]:
            self.handle.update(text, raw=True)
        return True


def progress_line(total: int, done: int = 0) -> tqdm:
    """A tqdm bar over `total` steps, `done` of them earlier, of which a saved notebook keeps one final line of text.

    In a Jupyter or Colab kernel it is one display updated in place: no stderr, no carriage returns, no widget.
    """
    options = {"total": total, "initial": done, "unit": "step", "mininterval": 0.5}
    if _in_kernel():
        return _DisplayLine(**options, file=io.StringIO(), ncols=110, ascii=False)
    return tqdm(**options, file=sys.stdout, dynamic_ncols=True)


# Pictures ------------------------------------------------------------------------------------------------------------

def _described(value: Any) -> str:
    """What an error says of a value that is not the tensor it should be."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def check_images(images: torch.Tensor, name: str = "images") -> torch.Tensor:
    """The one check for images: float tensor (N, 1, H, W), N at least 1, pixels in [-1, 1]; returns it as float32.

    Raises ValueError on anything else: another type or shape, nothing in it, NaN, or a pixel outside [-1, 1].
    """
    if not re.fullmatch(r"torch.\w*float\d+ \([1-9]\d*, 1, [1-9]\d*, [1-9]\d*\)", _described(images)):
        raise ValueError(f"{name} must be a float tensor of shape (N, 1, H, W), N at least 1, not {_described(images)}")
    low, high = images.aminmax()
    if not (low >= -1 and high <= 1):  # so put, it also catches NaN
        raise ValueError(f"{name} must have pixels in [-1, 1], not from {low:.4g} to {high:.4g}")
    return images.detach().float()


def _grid_image(images: torch.Tensor, columns: int, scale: int, greys: int = 256):
    """Images in [-1, 1] as one PIL picture, a pixel `scale` pixels wide. In 12 greys its file is half as large."""
    pixels = make_grid(check_images(images).cpu().add(1).div(2), nrow=columns, padding=2, pad_value=0.25)[:1]
    grid = to_pil_image(pixels.mul(greys - 1).round().div(greys - 1))
    return grid.resize((grid.width * scale, grid.height * scale), resample=0)  # 0: nearest pixel


PAGE = 9.6  # inches, the width of a full picture; at 100 pixels an inch


def plot_grid(images: torch.Tensor, columns: int, title: str = "", labels: Sequence[object] = (),
              row_labels: Sequence[object] = (), column_labels: Sequence[object] = (), scale: int = 2,
              framed: Sequence[bool] = ()) -> plt.Figure:
    """A grid of images (N, 1, H, W) in [-1, 1], so many `columns` to a row, each pixel `scale` pixels wide.

    `labels`: one for each image, written in its corner; `row_labels` to the left, `column_labels` above; `framed`: for
    each image, whether to draw a frame around it.
    """
    grid = np.asarray(_grid_image(images, columns, scale, greys=12))
    margin = (20 if title else 0) + (16 if len(column_labels) else 0)
    figure = plt.figure(figsize=(grid.shape[1] / 100, (grid.shape[0] + margin) / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, grid.shape[0] / (grid.shape[0] + margin)))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.axis("off")
    axes.set_title(title, fontsize=8 if scale == 1 else 10, pad=margin - 16 if margin else 0)
    height, width = (images.shape[-2] + 2) * scale, (images.shape[-1] + 2) * scale
    for index, label in enumerate(labels):
        row, column = divmod(index, columns)
        corner = (column * width + 3 * scale, row * height + 3 * scale)
        axes.text(*corner, str(label), color="gold", fontsize=6 + scale, va="top")
    for row, column in (divmod(index, columns) for index, frame in enumerate(framed) if frame):
        corner = (column * width + scale / 2, row * height + scale / 2)
        axes.add_patch(plt.Rectangle(corner, width - scale, height - scale, fill=False, edgecolor="orange", lw=3))
    for row, label in enumerate(row_labels):
        axes.text(-6, (row + 0.5) * height, str(label), ha="right", va="center", fontsize=9)
    for column, label in enumerate(column_labels):
        axes.text((column + 0.5) * width, -3, str(label), ha="center", va="bottom", fontsize=8)
    return figure


def plot_grids(named: dict[str, torch.Tensor], columns: int) -> plt.Figure:
    """Several grids of images side by side, each under its name: title = images (N, 1, H, W), `columns` to a row."""
    grids = [_grid_image(images, columns, 2, greys=12) for images in named.values()]
    height = 0.3 + PAGE / len(grids) * max(grid.height / grid.width for grid in grids)
    figure, all_axes = plt.subplots(1, len(grids), figsize=(PAGE, height), layout="constrained", squeeze=False)
    for axes, name, grid in zip(all_axes[0], named, grids):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
    return figure


def plot_curves(x: Sequence[float], curves: dict[str, Sequence[float]], xlabel: str, ylabel: str,
                levels: dict[str, float]) -> plt.Figure:
    """Curves over x, name in the legend = heights, and broken lines at the `levels`, name = height."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.8), layout="constrained")
    for name, heights in curves.items():
        axes.plot(x, heights, label=name, marker="." if len(x) < 20 else "")
    for (name, height), style in zip(levels.items(), ("--", ":")):
        axes.axhline(height, color="gray", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=8)
    return figure


PLANE = 3.0  # the square that is drawn reaches from -PLANE to PLANE


def plane_grid(size: int = 61) -> torch.Tensor:
    """Where maps of the plane are taken: points (size * size, 2), row by row from the lower left corner."""
    line = torch.linspace(-PLANE, PLANE, size)
    return torch.cartesian_prod(line, line).flip(1)


def plot_plane(panels: Sequence[dict[str, Any]], centres: torch.Tensor | None = None, label: str = "",
               width: float = PAGE) -> plt.Figure:
    """Maps of the plane side by side, on one scale of colours from 0 (blue) to 1 (red).

    Args:
        panels: dicts with `title`, `values` (S * S,) in [0, 1] at `plane_grid(S)`, and maybe a `caption`, `points`
            (N, 2), of which 700 are dots, and `slopes` (N, 2) there, of which 25 are arrows of one length.
        centres: (K, 2), drawn as rings.
        label, width: of the scale; of the figure, in inches.
    """
    size = (width, 0.55 + 0.9 * width / len(panels))
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, panel in zip(all_axes[0], panels):
        axes.set(xticks=[], yticks=[], xlim=(-PLANE, PLANE), ylim=(-PLANE, PLANE), title=panel["title"])
        axes.set_xlabel(panel.get("caption", ""), fontsize=8)
        if centres is not None:
            axes.scatter(*centres.T.numpy(), s=45, facecolors="none", edgecolors="gold", linewidths=1)
        if "points" in panel:
            axes.scatter(*panel["points"][:700].T.numpy(), s=2, color="black", linewidths=0)
            starts, ways = panel["points"][:25].T.numpy(), functional.normalize(panel["slopes"][:25], dim=1).T.numpy()
            axes.quiver(*starts, *ways, angles="xy", scale_units="xy", scale=2.5, width=0.006, headwidth=4)
        side = math.isqrt(len(panel["values"]))
        shown = axes.imshow(panel["values"].detach().view(side, side).numpy(), vmin=0, vmax=1, origin="lower",
                            extent=(-PLANE, PLANE, -PLANE, PLANE), interpolation="nearest",
                            cmap=plt.get_cmap("coolwarm", 20))  # few colours: a small file
    figure.colorbar(shown, ax=all_axes[0], shrink=0.9, pad=0.01, label=label)
    return figure


def film(figures: Iterable[plt.Figure], path: Path | str | None = None) -> bytes:
    """Figures of one size as a looping animated PNG of 8 s, and a GIF of it at `path`. Closes each figure.

    Of more than 30 figures 30 are taken evenly, the first and the last among them. None at all is a ValueError.
    """
    frames = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[:, :, :3])
        plt.close(figure)
    if not frames:
        raise ValueError("there is nothing to film before the first epoch has ended")
    chosen = np.linspace(0, len(frames) - 1, min(30, len(frames))).round().astype(int)
    palette = to_pil_image(np.concatenate(frames)).quantize(64)  # one for all, with the colours of every frame
    first, *others = (to_pil_image(frames[index]).quantize(palette=palette, dither=0) for index in chosen)
    durations, files = [6000 // len(chosen)] * len(others) + [2000], {"PNG": io.BytesIO(), "GIF": io.BytesIO()}
    for kind, file in files.items():
        first.save(file, kind, save_all=True, append_images=others, duration=durations, loop=0)
    if path is not None:
        write_whole(path, files["GIF"].getvalue())
    return files["PNG"].getvalue()


# The judge -----------------------------------------------------------------------------------------------------------

class Judge(torch.nn.Module):
    """A small convolutional classifier of MNIST digits, whose 64 penultimate features measure likeness.

    Images (N, 1, 28, 28) in [-1, 1] -> logits (N, 10). `features` gives the penultimate layer, (N, 64).
    """

    def __init__(self):
        super().__init__()
        block = lambda inputs, outputs, stride: [torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                                                 torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
        self.features = torch.nn.Sequential(
            *block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 1), *block(32, 64, 2), torch.nn.Flatten(),
            torch.nn.Linear(64 * 7 * 7, 64, bias=False), torch.nn.BatchNorm1d(64), torch.nn.ReLU())
        self.digits = torch.nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.digits(self.features(images))


def train_judge(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8, seed: int = 0) -> Judge:
    """Train a judge: AdamW with a one-cycle rate, batches of 128, images shifted by up to 2 pixels.

    Args:
        images: (N, 1, 28, 28) in [-1, 1], on the device to train on; labels: (N,) in 0..9.
        seed: of this training alone; the random numbers of the rest of the program go on as if it had not been.

    Returns the judge, in eval mode, on that device.
    """
    check_images(images)
    order = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format  # the faster one
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: all that is random here is drawn there
        judge = Judge().to(images.device).to(memory_format=order)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
        steps = epochs * math.ceil(len(images) / 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for indices in torch.randperm(len(images)).to(images.device).split(128):
                down, right = torch.randint(0, 5, (2,)).tolist()
                padded = functional.pad(images[indices], (2, 2, 2, 2), value=-1)
                shifted = padded[:, :, down:down + 28, right:right + 28].contiguous(memory_format=order)
                optimizer.zero_grad()
                functional.cross_entropy(judge(shifted), labels[indices]).backward()
                optimizer.step()
                schedule.step()
    return judge.eval()


def load_judge(path: Path | str = JUDGE_FILE) -> Judge:
    """The judge with the weights stored at `path`, in eval mode, on the CPU.

    Raises ValueError if the file is missing or damaged; the message says how to get it back.
    """
    judge = Judge()
    try:
        judge.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"'{path}' is missing or damaged ({error}). git checkout -- data brings it back, or "
                         "data/README.md has the command that makes a new one") from error
    return judge.eval()


def judge_images(judge: Judge, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Let the judge read images in [-1, 1], in chunks, on its own device.

    Of images larger than 28 x 28 it sees the centre. Returns features (N, 64) and probabilities of the digits (N, 10).
    """
    images, device = check_images(images), judge.digits.weight.device
    if min(images.shape[2:]) < 28:
        raise ValueError(f"images must have at least 28 x 28 pixels for the judge, not {tuple(images.shape[2:])}")
    with torch.no_grad():
        features = torch.cat([judge.features(chunk.to(device)) for chunk in center_crop(images, 28).split(500)])
        return features, judge.digits(features).softmax(dim=1)


# The scores ----------------------------------------------------------------------------------------------------------

def neighbour_radii(features: torch.Tensor, k: int = 5) -> torch.Tensor:
    """Distance of each sample to its k-th nearest other sample: (N, F) -> (N,)."""
    return torch.cat([torch.cdist(chunk, features).topk(k + 1, largest=False).values[:, -1]
                      for chunk in features.split(1000)])


class Evaluator:
    """The judge, and the real side of every score, computed once on the device of its images (N, 1, 28, 28).

    `frechet_distance` is a function of two tables of features, (N, 64) and (M, 64); `precision_recall_coverage` one of
    two such tables and the `neighbour_radii` of the first. Without `judge`, the stored one reads.
    """

    def __init__(self, images: torch.Tensor, frechet_distance: Callable, precision_recall_coverage: Callable,
                 judge: Judge | None = None):
        self.frechet_distance, self.precision_recall_coverage = frechet_distance, precision_recall_coverage
        self.judge = (judge or load_judge()).to(images.device)
        self.features, probabilities = judge_images(self.judge, images)
        self.shares = probabilities.argmax(dim=1).bincount(minlength=10) / len(images)
        self.radii = neighbour_radii(self.features)

    def distance(self, images: torch.Tensor) -> float:
        """The Fréchet distance of any number of images; with fewer of them it is larger."""
        return self.frechet_distance(self.features, judge_images(self.judge, images)[0])

    def scores(self, images: torch.Tensor) -> dict[str, Any]:
        """frechet (0 is best), precision, recall, coverage, confident (shares in 0..1), kl (nats), histogram, samples.

        `confident` is the share read with a probability over 0.95; `kl` is KL(drawn || real) of the digits.

        Raises:
            ValueError: there are not as many images as real ones: that alone would move coverage and distance.
        """
        if len(images) != len(self.features):
            raise ValueError(f"{len(images):,} images cannot be scored against {len(self.features):,}: take as many")
        features, probabilities = judge_images(self.judge, images)
        precision, recall, coverage = self.precision_recall_coverage(self.features, features, self.radii)
        histogram = probabilities.argmax(dim=1).bincount(minlength=10)
        shares = histogram / len(images)
        return {"frechet": self.frechet_distance(self.features, features), "precision": precision, "recall": recall,
                "coverage": coverage, "confident": (probabilities.amax(dim=1) > 0.95).float().mean().item(),
                "kl": torch.xlogy(shares, shares / self.shares).sum().item(), "histogram": histogram.tolist(),
                "samples": len(images)}


def format_scoreboard(rows: dict[str, dict[str, Any]]) -> str:
    """The scores of several rows (name = result of `Evaluator.scores`) as a table of text."""
    titles = {"frechet": "Fréchet", "precision": "precision", "recall": "recall", "coverage": "coverage",
              "confident": "confident", "kl": "KL (nats)"}
    width = max(map(len, rows)) + 1
    lines = [f"{name:{width}}" + "".join(f"{row[key]:11.3f}" for key in titles) for name, row in rows.items()]
    return "\n".join([" " * width + "".join(f"{title:>11}" for title in titles.values()), *lines])


def generate(generator: torch.nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Run a generator on latents (N, latent size) on its device, in eval mode, without gradients, in chunks.

    Returns images (N, 1, H, W), float32, on the CPU. The generator's train/eval mode is left as it was.
    """
    training = generator.training
    try:
        generator.eval()
        with torch.no_grad():
            return torch.cat([generator(chunk).cpu() for chunk in latent.split(1000)])
    finally:
        generator.train(training)


# Files ---------------------------------------------------------------------------------------------------------------

def output_folder(quick: bool) -> Path:
    """Make the folder that runs write to: the variable GAN_OUTPUT, or `output`; in quick mode `quick` below it.

    Raises OSError, with its name and that of the variable, if it cannot be made or written.
    """
    folder = Path(os.environ.get("GAN_OUTPUT") or "output") / ("quick" if quick else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # permission bits do not tell root what is read-only
    except OSError as error:
        raise OSError(f"output = '{folder}' cannot be written: set GAN_OUTPUT to a folder that can") from error
    return folder


def write_whole(path: Path | str, content: bytes) -> None:
    """Write a file beside `path` and rename it, so that there is never a half-written file under the final name.

    Raises OSError if the folder is missing, full or read-only, or `path` is a folder. What was at `path` stays.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on disk before it takes the name, should the machine lose power
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"'{path}' cannot be written, and is as it was: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder does not exist
            beside.unlink(missing_ok=True)


def save_grid(images: torch.Tensor, path: Path | str, columns: int, scale: int = 2) -> None:
    """Save images (N, 1, H, W) in [-1, 1] as one greyscale PNG, each pixel `scale` pixels wide."""
    file = io.BytesIO()
    _grid_image(images, columns, scale).save(file, "PNG")
    write_whole(path, file.getvalue())


def save_checkpoint(state: Any, path: Path | str) -> None:
    """Write a training state and torch's random states, so that `load_checkpoint` can go on from it bit for bit.

    Attributes of the state: a dataclass `settings`, a tensor `fixed_noise` on the training device, things with a
    `state_dict`, and plain values.
    """
    parts = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in vars(state).items()}
    device, random = state.fixed_noise.device, {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        random[device.type] = getattr(torch, device.type).get_rng_state()
    file = io.BytesIO()
    torch.save({**parts, "settings": dataclasses.asdict(state.settings), "random": random}, file)
    write_whole(path, file.getvalue())


def load_checkpoint(state: Any, path: Path | str) -> None:
    """Put a freshly made training state, and torch's random states, to where `save_checkpoint` wrote them.

    Raises ValueError, with the reason, if the file is damaged or of other settings, networks, device or edition.
    """
    advice = "or set RESUME = False, which trains afresh and keeps the file under another name"
    now, kind = dataclasses.asdict(state.settings), state.fixed_noise.device.type
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, random = saved["settings"], saved.pop("random")
    except Exception as error:
        raise ValueError(f"'{path}' is no whole checkpoint ({error}): rename it, {advice}") from error
    for key in sorted(now.keys() | before.keys()):
        old, new = before.get(key), now.get(key)
        if old != new:
            raise ValueError(f"'{path}' was made with {key} = {old!r}, and {key} is now {new!r}: set it back, {advice}")
    if saved.keys() != vars(state).keys() or {"cpu", kind} != set(random):
        other = f"another edition of this notebook or another device ({', '.join(random)})"
        raise ValueError(f"'{path}' is of {other}: set GAN_DEVICE, {advice}")
    try:
        for name, part in vars(state).items():
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(saved[name])
            elif name != "settings":
                setattr(state, name, saved[name].to(part.device) if isinstance(part, torch.Tensor) else saved[name])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"'{path}' holds other networks: rename it, {advice}. {error}") from error
    torch.set_rng_state(random["cpu"])
    if kind != "cpu":
        getattr(torch, kind).set_rng_state(random[kind])


def resume(state: Any, path: Path, wanted: bool) -> bool:
    """At the start of a run: go on from the checkpoint at `path` if `wanted`; say so, and return whether that was done.

    One that is not wanted is renamed to end in .previous.pt, in place of an earlier one. Raises as `load_checkpoint`.
    """
    found = path.exists()
    if found and wanted:
        load_checkpoint(state, path)
        print(f"RESUME: {path.name} goes on after epoch {state.epoch} of {state.settings.epochs}")
    elif found:
        kept = path.replace(path.with_suffix(".previous.pt"))
        print(f"A fresh run. The last checkpoint is now {kept.name}; rename it to {path.name} to go on from it")
    elif wanted:
        print(f"RESUME: there is no {path.name}, so this is a fresh run")
    return found and wanted


def export_generator(generator: torch.nn.Module, path: Path | str, latent_dim: int, asks: bool = False) -> None:
    """Write a copy of a generator, in eval mode, as a program for the CPU that runs without its class (`torch.export`).

    The generator takes float32 (N, latent_dim), and digits, int64 (N,), if it `asks` for them; it returns images
    (N, 1, H, W) in [-1, 1].

    Raises ValueError if it returns anything else, OSError if the file cannot be written.
    """
    program_source = copy.deepcopy(generator).cpu().float().eval()
    example = (torch.zeros(2, latent_dim), torch.tensor([0, 9]))[:1 + asks]  # a batch of 1 would count as a constant
    with torch.no_grad():
        images = check_images(program_source(*example), "the generator's output")
    torch.compiler.reset()  # torch 2.6 refuses after a few exports in one session
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations are not the reader's concern
        shapes = ({0: torch.export.Dim("batch", max=2**30)},) * len(example)  # torch 2.6 wants a largest one
        program = torch.export.export(program_source, example, dynamic_shapes=shapes)
        about = json.dumps({"latent_dim": latent_dim, "image_size": images.shape[-1], "asks": asks})
        torch.export.save(program, file, extra_files={"generator.json": about})
    write_whole(path, file.getvalue())


@dataclasses.dataclass(frozen=True)
class LoadedGenerator:
    """A generator read from a .pt2 file. Call it with float32 (N, latent_dim) for images (N, 1, H, W) in [-1, 1].

    If it `asks` for digits, they are its second argument: int64 (N,), each from 0 to 9.
    """

    program: torch.nn.Module = dataclasses.field(repr=False)
    latent_dim: int
    image_size: int
    asks: bool = False  # files of earlier editions do not say

    def __call__(self, latent: torch.Tensor, digits: torch.Tensor | None = None) -> torch.Tensor:
        if not re.fullmatch(rf"torch.float32 \([1-9]\d*, {self.latent_dim}\)", _described(latent)):
            raise ValueError(f"latent must be float32 (N, {self.latent_dim}), N at least 1, not {_described(latent)}")
        per_latent = f"torch.int64 ({len(latent)},)"
        if self.asks and (_described(digits) != per_latent or not 0 <= digits.min() <= digits.max() <= 9):
            raise ValueError(f"digits must be int64 of shape ({len(latent)},), each from 0 to 9, not {digits!r}")
        if not self.asks and digits is not None:
            raise ValueError("digits cannot be chosen here: this generator takes latents only; writer.pt2 takes digits")
        with torch.no_grad():
            return self.program(latent, digits) if self.asks else self.program(latent)


def load_generator(path: Path | str) -> LoadedGenerator:
    """Read a generator written by `export_generator`. The file is program code: load only those you trust.

    Raises FileNotFoundError if there is no such file, ValueError if `export_generator` has not written it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no generator at '{path}'; export_generator writes one")
    about = {"generator.json": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions wonder at bytes that cannot be written to
            program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=about)  # keeps no file open
        return LoadedGenerator(program.module(), **json.loads(about["generator.json"]))
    except Exception as error:
        raise ValueError(f"'{path}' is not a whole file written by export_generator: {error}") from error


PAGE_LAYERS = (  # what writer_page knows, as torch prints it
    r"Unflatten\(.*?, 1, 1\)\)(, ConvTranspose2d\(\d+, \d+, kernel_size=\((?P<k>\d+), (?P=k)\), "
    r"stride=\((?P<s>\d+), (?P=s)\)(, padding=\((?P<p>\d+), (?P=p)\))?(, bias=False)?\)"
    r"(, BatchNorm2d\([^()]*stats=True\))?(, (Leaky)?ReLU\([^()]*\))?)+, Tanh\(\)")


def _as_int8(layer: torch.nn.ConvTranspose2d, slope: float | None) -> dict[str, Any]:
    """A layer for `writer_page`: int8 weights, each to be multiplied by the scale of its output channel."""
    scales = layer.weight.abs().amax(dim=(0, 2, 3)).clamp_min(1e-30) / 127  # a channel may be all zeros
    codes = (layer.weight / scales[:, None, None]).round().to("cpu", torch.int8).numpy().tobytes()
    bias = torch.zeros_like(scales) if layer.bias is None else layer.bias
    return {"kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0], "slope": slope,
            "bias": bias.tolist(), "scales": scales.tolist(), "weights": base64.b64encode(codes).decode()}


def writer_page(generator: torch.nn.Module, directions: torch.Tensor, name: str) -> str:
    """The page data/writer.html with this generator in it, weights as int8: it writes numbers in any browser.

    Args:
        generator: its `layers` make images (N, 1, H, W) in [-1, 1] of (N, D + 10), latents joined to one-hot labels.
        directions: (K, D), one for each slider. name: of the training run, any text.

    Raises:
        ValueError: the page does not know such layers; the message names them.
    """
    nn, modules, layers = torch.nn, copy.deepcopy(list(getattr(generator, "layers", [generator]))), []
    if not re.fullmatch(PAGE_LAYERS, ", ".join(map(str, modules))):
        kinds = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(f"writer.html cannot draw with {kinds}: it takes Unflatten, then plain square ConvTranspose2d "
                         "with BatchNorm2d, ReLU or LeakyReLU, and Tanh at the end")
    for module in modules[1:]:
        if isinstance(module, nn.ConvTranspose2d):
            layers.append([module.eval(), 1])
        elif isinstance(module, nn.BatchNorm2d):
            layers[-1][0] = nn.utils.fuse_conv_bn_eval(layers[-1][0], module.eval(), transpose=True)
        else:
            layers[-1][1] = None if isinstance(module, nn.Tanh) else getattr(module, "negative_slope", 0)
    about = {"name": name, "directions": directions.tolist(), "layers": [_as_int8(*layer) for layer in layers]}
    text = json.dumps(about, separators=(",", ":")).replace("<", "\\u003c")  # so that no name ends the script
    return (FOLDER / "data" / "writer.html").read_text(encoding="utf-8").replace('"NETWORK"', text)
