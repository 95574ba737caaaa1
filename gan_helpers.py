"""Plumbing for HandwrittenNumberGAN.ipynb: what a reader of the story would skip.

Top to bottom: settings and device, data, progress, pictures, the judge, the scores, latent space, saving.
Every function can be used alone in a fresh session; nothing here knows the notebook's classes.

Images are float32 tensors of shape (N, 1, H, W) with pixels in [-1, 1] (-1 is black paper, 1 is white ink)
unless a docstring says otherwise.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator
from torch.nn import functional
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import center_crop, to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

DATA_FOLDER = Path(__file__).resolve().parent / "data"
SAMPLE_FILE = DATA_FOLDER.parent / ".github" / "sample_generated_digits.png"  # what an earlier full run drew


# ---------------------------------------------------------------------------------------------------------------------
# Settings, seeding and device


def check_settings(settings: object, **ranges: tuple[float, float]) -> None:
    """Check numbers in a dataclass against the closed range each may have, and its name.

    Args:
        settings: a dataclass instance whose fields are numbers, or tuples of numbers; and maybe a `name`, which begins
            file names and so is one word of letters, digits and underscores. Of `train_images`, where there are any,
            `batch_size` must not leave one over.
        ranges: field name = (lowest, highest); a tuple's entries must each lie in the range. A range of two
            integers admits only integers.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    name = getattr(settings, "name", "none")
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"name = {name!r} cannot work: name takes one word of letters, digits and _")
    for name, (low, high) in ranges.items():
        value, whole = getattr(settings, name), isinstance(low, int) and isinstance(high, int)
        entries = value if isinstance(value, (tuple, list)) else (value,)
        good = [type(entry) in ((int,) if whole else (int, float)) and low <= entry <= high for entry in entries]
        if not good or not all(good):
            kind = "whole numbers" if whole else "numbers"
            raise ValueError(f"{name} = {value!r} cannot work: {name} takes {kind} from {low:,} to {high:,}")
    batch_size, train_images = (getattr(settings, name, 0) for name in ("batch_size", "train_images"))
    if batch_size > 1 and train_images % batch_size == 1:
        raise ValueError(f"batch_size = {batch_size} cannot work: it leaves the last of train_images = {train_images:,}"
                         " alone in a batch, and BatchNorm needs two: make either of them one larger or smaller")


def seed_everything(seed: int) -> None:
    """Begin as a new process does: seed torch on every device, and put right what modes a stop has left on.

    torch is the one source of randomness in this project.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed!r} cannot work: seed takes whole numbers from 0 to 2**63 - 1")
    torch.manual_seed(seed)
    leave_modes()


def leave_modes() -> None:
    """Switch gradients on, autocast off, and forget the weights that it keeps at another precision.

    A stop that falls into the lines in which torch itself enters or leaves one of these modes leaves it for good, and
    all that is trained afterwards is wrong, or fails.
    """
    torch.set_grad_enabled(True)
    for kind in ("cpu", "cuda", "mps"):
        torch.set_autocast_enabled(kind, False)
    depth = torch.autocast_increment_nesting()
    while depth > 0:
        depth = torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def choose_device(name: str | None = None) -> torch.device:
    """The device to train on: `name`, else the variable GAN_DEVICE, else CUDA, Apple's MPS or the CPU, if present.

    Raises:
        ValueError: the device named is unknown or not in this machine; the message lists what is there.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present = [f"cuda:{index}" for index in range(torch.cuda.device_count())] + present
    elif torch.backends.mps.is_available():
        present = ["mps"] + present
    name = (name or os.environ.get("GAN_DEVICE") or present[0]).strip().lower()
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in present:
        raise ValueError(f"GAN_DEVICE = {name!r} is not in this machine, which has: {', '.join(present)}")
    return torch.device(full_name)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_precision(device: torch.device, name: str | None = None) -> torch.dtype:
    """The number format of the matrix products: `name`, else the variable GAN_PRECISION, else what suits the device.

    bfloat16 where a CPU has arithmetic units for it (elsewhere it is emulated, many times slower); float32 on every
    other device.

    Raises:
        ValueError: the name is neither 'float32' nor 'bfloat16'.
    """
    name = (name or os.environ.get("GAN_PRECISION") or "").strip().lower()
    if name and name not in PRECISIONS:
        raise ValueError(f"GAN_PRECISION = {name!r} is unknown; there are: {', '.join(PRECISIONS)}")
    if name:
        return PRECISIONS[name]
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


def tune_cpu() -> None:
    """Two settings that make training on a CPU faster, to be made before the first large tensor.

    Denormals, numbers so close to zero that a CPU handles them in slow motion, are rounded to zero. And on Linux with
    glibc the process keeps the memory that a tensor gives back, in huge pages, for the next one, instead of returning
    it to the system a hundred times a step: `python tests/benchmark.py` measures what that is worth.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch asks for it at its first large allocation
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
                libc.mallopt(parameter, 2**31 - 1)


def at_precision(network: torch.nn.Module, device: torch.device,
                 precision: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as the training loop calls it: its matrix products at `precision`, its weights still float32.

    In float32 that is the network itself; otherwise a function that runs its forward pass under `torch.autocast`.
    """
    return network if precision == torch.float32 else torch.autocast(device.type, precision)(network.__call__)


def conv_memory_format(device: torch.device) -> torch.memory_format:
    """The order in memory for networks of convolutions: channels last on a CPU, where they are faster so.

    Elsewhere the usual order: on Apple's MPS the backward pass is many times slower with channels last (PyTorch's issue
    193349), and on CUDA nothing has been measured here.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def describe_device(device: torch.device, precision: torch.dtype) -> str:
    """One line on what will do the work, for example 'cpu, 2 threads, bfloat16, torch 2.9.0'."""
    what = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        what += f" ({torch.cuda.get_device_name(device)})"
    return f"{what}, {str(precision).removeprefix('torch.')}, torch {torch.__version__.split('+')[0]}"


# ---------------------------------------------------------------------------------------------------------------------
# Data

# MD5 sums of the unpacked files. torchvision knows those of the archives, and of unpacked files only asks whether
# they exist.
_UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_mnist(
    train: bool,
    device: torch.device | str = "cpu",
    data_folder: Path | str = DATA_FOLDER,
    fallback_folder: Path | str = "output/data",
) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST (LeCun, Cortes and Burges, 1998) as two tensors on `device`.

    Goes through `torchvision.datasets.MNIST(download=True)`, which unpacks the archives bundled in `data_folder` and
    downloads only those that are missing. Where `data_folder` cannot be written, the archives are unpacked in
    `fallback_folder`.

    Returns:
        images, float32 of shape (N, 1, 28, 28) in [-1, 1], and labels, int64 of shape (N,) in 0..9; N is 60,000 with
        `train`, else 10,000.

    Raises:
        ValueError: an archive or an unpacked file is damaged; the message names it.
        FileNotFoundError: a file is missing and could not be downloaded; the message says where to put it.
    """
    folder = Path(data_folder)
    _check_mnist_files(folder)
    unpacked = [folder / "MNIST" / "raw" / name for name in _UNPACKED_MD5]
    if not all(path.is_file() for path in unpacked) and not _is_writable(folder):
        folder = Path(fallback_folder)
        archives = folder / "MNIST" / "raw"
        archives.mkdir(parents=True, exist_ok=True)
        for archive, _ in MNIST.resources:
            source = unpacked[0].parent / archive
            if source.is_file() and not (archives / archive).exists():
                with write_beside(archives / archive) as beside:
                    shutil.copyfile(source, beside)
        _check_mnist_files(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision reports unpacking with absolute paths
            dataset = MNIST(str(folder), train=train, download=True)
    except RuntimeError as error:
        _check_mnist_files(folder)
        missing = [name for name, _ in MNIST.resources if not (folder / "MNIST" / "raw" / name).is_file()]
        raise FileNotFoundError(
            f"{' and '.join(missing) or 'A file of MNIST'} could not be downloaded from {' or '.join(MNIST.mirrors)}. "
            f"Put it by hand into {folder / 'MNIST' / 'raw'} (in a clone: git checkout -- data). "
            f"torchvision said: {error}"
        ) from error
    _check_mnist_files(folder)
    images = dataset.data.to(device).unsqueeze(1).float().div_(127.5).sub_(1)
    return images, dataset.targets.to(device)


def _check_mnist_files(folder: Path) -> None:
    """Compare the MNIST files that exist below `folder` with their MD5 sums; missing ones are left to torchvision."""
    raw = folder / "MNIST" / "raw"
    for path, md5 in [(raw / name, md5) for name, md5 in [*MNIST.resources, *_UNPACKED_MD5.items()]]:
        if path.exists() and not (path.is_file() and check_integrity(str(path), md5)):
            remedy = "restore it (in a clone: git checkout -- data)" if path.suffix == ".gz" else "delete it"
            size = f"{path.stat().st_size:,} bytes" if path.is_file() else "not a file"
            raise ValueError(
                f"{path} is damaged ({size}; its MD5 sum should be {md5}): {remedy}, "
                "and run this again, which unpacks or downloads what is missing"
            )


def _is_writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`, which is created if need be (permission bits do not tell root that)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def shuffled_batches(images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """One epoch: every image exactly once, in a fresh random order, in batches on the images' own device.

    Args:
        images: a tensor of shape (N, ...); the last batch is smaller where `batch_size` does not divide N.

    Raises:
        ValueError: batch_size is not a whole number from 1 to N.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= len(images):
        raise ValueError(f"batch_size = {batch_size!r} cannot work: batch_size takes whole numbers from 1 to "
                         f"{len(images):,}, the number of images")
    order = torch.randperm(len(images), device=images.device)
    return (images[indices] for indices in order.split(batch_size))


# ---------------------------------------------------------------------------------------------------------------------
# The run: its state, its epochs, its progress line


@dataclasses.dataclass
class TrainingState:
    """Everything that changes during training, and the settings it is made for: what a checkpoint holds.

    Attributes:
        settings: a dataclass of plain values, among them `epochs`.
        ema_generator: the average of the generator's weights.
        fixed_noise: latent vectors (N, latent size), from which every snapshot is drawn.
        epoch, step: how many have ended.
        history: a dict an epoch, of what was recorded; snapshots, scores: whatever `after_epoch` keeps there.
    """

    settings: Any
    generator: torch.nn.Module
    discriminator: torch.nn.Module
    ema_generator: torch.nn.Module
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    fixed_noise: torch.Tensor
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    snapshots: list[torch.Tensor] = dataclasses.field(default_factory=list)
    scores: list[dict[str, float]] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def stoppable(state: TrainingState) -> Iterator[None]:
    """Let KeyboardInterrupt, Jupyter's stop button, end the run within this block but not the notebook; say so."""
    try:
        yield
    except KeyboardInterrupt:
        leave_modes()
        print(f"Stopped. Finished epochs: {len(state.history)} of {state.settings.epochs}. What follows uses the "
              "networks as they are now")


def epochs(state: TrainingState, steps: int, after_epoch: Callable[[TrainingState], None],
           report_every: int = 50) -> Iterator[Callable[..., None]]:
    """Count through the epochs that a run has left, with a progress line and a history.

    Before the first epoch (where it may load a checkpoint into the state) and after each, `after_epoch(state)` is
    called. The loop's body plays one epoch, adds 1 to `state.step` for each step, and hands the step's numbers to what
    is yielded: `record(name=tensor, ...)`, scalars on any device. They are read from the device only every
    `report_every` steps, for the progress line, and at the epoch's end, when their means join `state.history`.

    Args:
        steps: of the whole run.

    Raises:
        FloatingPointError: a mean is NaN or infinite; the message names the steps since the last report.
    """
    after_epoch(state)
    with progress_line(steps, state.step) as progress:
        while state.epoch < state.settings.epochs:
            start, means = time.perf_counter(), _Means(state, progress, report_every)
            yield means.record
            values = means.report()
            state.epoch += 1
            state.history.append({"epoch": state.epoch, "seconds": time.perf_counter() - start, **values})
            after_epoch(state)


class _Means:
    """The means of one epoch's numbers, summed on their own device, and their report to the progress line."""

    def __init__(self, state: TrainingState, progress: tqdm, report_every: int) -> None:
        self.state, self.progress, self.report_every = state, progress, report_every
        self.first = state.step
        self.sums: dict[str, torch.Tensor] = {}

    def record(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()
        if (self.state.step - self.first) % self.report_every == 0:
            self.report()

    def report(self) -> dict[str, float]:
        count = self.state.step - self.first
        values = torch.stack(list(self.sums.values())).div(count).tolist() if self.sums else []
        means = dict(zip(self.sums, values))
        check_finite(values, f"steps {self.progress.n + 1} to {self.state.step}")
        losses = [f"{key[0].upper()}'s loss {means[key]:.3f}" for key in ("d_loss", "g_loss") if key in means]
        self.progress.set_postfix_str(", ".join(losses), refresh=False)
        self.progress.update(self.state.step - self.progress.n)
        return means


def progress_line(total: int, done: int = 0) -> tqdm:
    """A tqdm bar over `total` steps, `done` of them earlier, that fits a notebook: one line that moves in place.

    In a Jupyter or Colab kernel the line is one display updated in place, so that the saved file holds only its
    final text: no stderr, no carriage returns, no widget. Elsewhere it is an ordinary tqdm line on stdout.
    """
    ipython = sys.modules.get("IPython")  # present only where a notebook or IPython is already running
    shell = ipython.get_ipython() if ipython else None
    options = {"total": total, "initial": done, "unit": "step", "mininterval": 0.5}
    if getattr(shell, "kernel", None) is None:
        return tqdm(**options, file=sys.stdout, dynamic_ncols=True)
    return _DisplayLine(**options, file=io.StringIO(), ncols=110, ascii=False)


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


def check_finite(values: Sequence[float], what: str) -> None:
    """Stop with an error when a number that training produced is NaN or infinite.

    Raises:
        FloatingPointError: names `what`, which should say where in training the numbers come from.
    """
    if not all(math.isfinite(value) for value in values):
        raise FloatingPointError(
            f"training became unstable: a loss is NaN or infinite in {what}. The pictures and the checkpoint of the "
            "last finished epoch are intact. A lower learning rate or a larger r1_gamma usually cures it."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def check_images(images: torch.Tensor, name: str = "images") -> torch.Tensor:
    """The one check for images: float tensor (N, 1, H, W), N at least 1, pixels finite and in [-1, 1].

    Returns:
        the images, detached, float32, on the CPU.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: wrong shape, nothing in it, NaN, or a pixel outside [-1, 1].
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = str(images.dtype) if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"{name} must be a float tensor of shape (N, 1, H, W), not {kind}")
    if images.ndim != 4 or images.shape[1] != 1 or images.numel() == 0:
        raise ValueError(f"{name} must have the shape (N, 1, H, W) with N at least 1, not {tuple(images.shape)}")
    images = images.detach().cpu().float()
    low, high = images.aminmax()
    if not (low >= -1 and high <= 1):  # so put, it also catches NaN
        raise ValueError(f"{name} must have pixels in [-1, 1], not from {low:.4g} to {high:.4g}")
    return images


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W) in [-1, 1] as uint8 in 0..255, on the CPU: a quarter of the memory, for snapshots."""
    return check_images(images).add(1).mul(127.5).round().to(torch.uint8)


def from_uint8(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_uint8` (up to rounding by half a grey level): float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def _grid_image(images: torch.Tensor, columns: int, scale: int = 1):
    """Images (N, 1, H, W) in [-1, 1] as one greyscale PIL image, `columns` to a row, each pixel `scale` pixels wide."""
    pixels = make_grid(check_images(images).add(1).div(2), nrow=columns, padding=2, pad_value=0.25)[:1]
    grid = to_pil_image(pixels)
    return grid.resize((grid.width * scale, grid.height * scale), resample=0)  # 0: nearest pixel


def _few_greys(grid):
    """The PIL image in 12 greys: at the size of a digit it looks the same, and its file is half as large."""
    return grid.point([round(round(grey * 11 / 255) * 255 / 11) for grey in range(256)])


PAGE = 9.6  # inches, the width of a full picture; at 100 pixels an inch


def plot_grid(images: torch.Tensor, columns: int, title: str = "", labels: Sequence[object] = (),
              row_labels: Sequence[object] = (), column_labels: Sequence[object] = (), scale: int = 2) -> plt.Figure:
    """A grid of images under one title, in 12 greys.

    Args:
        images: (N, 1, H, W) in [-1, 1].
        columns: images to a row.
        labels: one an image, written in its corner; none where empty.
        row_labels, column_labels: one a row, written to its left, and one a column, written above it.
        scale: how many pixels of the picture a pixel of an image is wide and high; 1 makes a low grid, of which many
            can stand in a column.
    """
    grid = np.asarray(_few_greys(_grid_image(images, columns, scale)))
    margin = (20 if title else 0) + (16 if len(column_labels) else 0)
    figure = plt.figure(figsize=(grid.shape[1] / 100, (grid.shape[0] + margin) / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, grid.shape[0] / (grid.shape[0] + margin)))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.axis("off")
    axes.set_title(title, fontsize=8 if scale == 1 else 10, pad=margin - 16 if margin else 0)
    height, width = (images.shape[-2] + 2) * scale, (images.shape[-1] + 2) * scale
    for index, label in enumerate(labels):
        row, column = divmod(index, columns)
        axes.text(column * width + 3 * scale, row * height + 3 * scale, str(label), color="gold",
                  fontsize=6 + scale, va="top")
    for row, label in enumerate(row_labels):
        axes.text(-6, (row + 0.5) * height, str(label), ha="right", va="center", fontsize=9)
    for column, label in enumerate(column_labels):
        axes.text((column + 0.5) * width, -3, str(label), ha="center", va="bottom", fontsize=8)
    return figure


def plot_grids(named: dict[str, torch.Tensor], columns: int) -> plt.Figure:
    """Several grids of images side by side, each under its name, all on one scale of grey.

    Args:
        named: title = images (N, 1, H, W) in [-1, 1].
        columns: images to a row of each grid.
    """
    grids = {name: _few_greys(_grid_image(images, columns)) for name, images in named.items()}
    width = PAGE / len(grids)
    height = max(width * grid.height / grid.width for grid in grids.values())
    figure, all_axes = plt.subplots(1, len(grids), figsize=(PAGE, height + 0.3), layout="constrained", squeeze=False)
    for axes, (name, grid) in zip(all_axes[0], grids.items()):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    return figure


def plot_history(history: Sequence[dict], series: dict[str, str], ylabel: str, level: tuple[float, str]) -> plt.Figure:
    """Curves of some of the numbers that were recorded once an epoch.

    Args:
        history: one dict an epoch, each with an 'epoch' and the keys of `series`.
        series: key in `history` = name in the legend.
        level: a height and what it means, drawn as a dashed line.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("history is empty: there is nothing to plot before the first epoch has ended")
    figure, axes = plt.subplots(figsize=(PAGE, 2.8), layout="constrained")
    epochs = [record["epoch"] for record in history]
    for key, name in series.items():
        axes.plot(epochs, [record[key] for record in history], label=name, marker="." if len(epochs) < 20 else "")
    axes.axhline(level[0], color="gray", linestyle="--", linewidth=1, label=level[1])
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    return figure


def plot_filmstrip(snapshots: Sequence[torch.Tensor], epochs: Sequence[int], digits: int = 14) -> plt.Figure:
    """The same latent vectors at chosen epochs, one row an epoch.

    Args:
        snapshots: `snapshots[e]` holds the uint8 images (N, 1, H, W) after epoch e; 0 is before training.
        epochs: which of them to show, top to bottom.
        digits: how many images of each.

    Raises:
        ValueError: an epoch has no snapshot.
    """
    absent = [epoch for epoch in epochs if not 0 <= epoch < len(snapshots)]
    if absent or not epochs:
        raise ValueError(f"epochs = {list(epochs)} cannot be shown: there are snapshots of 0 to {len(snapshots) - 1} "
                         "(none at all before the first epoch has ended)")
    rows = from_uint8(torch.cat([snapshots[epoch][:digits] for epoch in epochs]))
    return plot_grid(rows, len(rows) // len(epochs), row_labels=[f"epoch {epoch}" for epoch in epochs])


def plot_pairs(tops: torch.Tensor, bottoms: torch.Tensor, names: tuple[str, str], captions: Sequence[str],
               signed: bool = False) -> plt.Figure:
    """Two rows of images, one above the other in pairs, with a caption under each pair.

    Args:
        tops, bottoms: (N, 1, H, W); the former in [-1, 1].
        names: of the two rows.
        signed: draw each lower image in blue (negative) over white (0) to red (positive), on a scale of its own.
    """
    figure, axes = plt.subplots(2, len(tops), figsize=(PAGE, 0.4 + 2 * PAGE / len(tops)), layout="constrained")
    for column, (top, bottom, caption) in enumerate(zip(tops.cpu(), bottoms.cpu(), captions)):
        most = bottom.abs().max().item() if signed else 1
        axes[0, column].imshow(top[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        axes[1, column].imshow(bottom[0].numpy(), cmap="bwr" if signed else "gray", vmin=-most, vmax=most)
        axes[1, column].set_xlabel(caption, fontsize=9)
    for row in range(2):
        axes[row, 0].set_ylabel(names[row])
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    return figure


def plot_game(real: torch.Tensor, fake: torch.Tensor) -> plt.Figure:
    """The diagram of the game, with one real and one forged image (1, H, W) in [-1, 1] in its boxes."""
    figure, axes = plt.subplots(figsize=(PAGE, 3.5), layout="constrained")
    axes.axis("off")
    boxes, centres = {}, {}
    for name, x, y, width, height, color, text in [
            ("z", 1.3, 1.5, 1.9, 1.3, "#eeeeee", "latent $z$:\nrandom\nnumbers"),
            ("G", 4.6, 1.5, 2.2, 1.3, "#cfe5ff", "generator\n$G$"),
            ("fake", 7.9, 1.5, 1.7, 1.7, "#eeeeee", ""), ("real", 7.9, 4.4, 1.7, 1.7, "#eeeeee", ""),
            ("D", 11.4, 2.95, 2.5, 1.3, "#ffe0c2", "discriminator\n$D$"),
            ("verdict", 15, 2.95, 2, 1.3, "#eeeeee", "verdict:\nreal or fake?")]:
        centres[name] = (x, y)
        boxes[name] = axes.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=color,
                                                   edgecolor="#555555", zorder=2))
        axes.text(x, y, text, ha="center", va="center", zorder=4)
    for name, image in [("fake", fake), ("real", real)]:
        x, y = centres[name]
        axes.imshow(image.cpu()[0].numpy(), cmap="gray", vmin=-1, vmax=1, zorder=3,
                    extent=(x - 0.75, x + 0.75, y - 0.75, y + 0.75))
    axes.set(xlim=(0, 16.4), ylim=(-0.6, 5.6))
    axes.text(6.9, 4.4, "real image $x$", ha="right", va="center")
    axes.text(7.9, 2.42, "fake image $G(z)$", ha="center", va="bottom")
    for start, end, bend, color, dashes in [
            ("z", "G", 0, "#333333", "-"), ("G", "fake", 0, "#333333", "-"), ("fake", "D", 0, "#333333", "-"),
            ("real", "D", 0, "#333333", "-"), ("D", "verdict", 0, "#333333", "-"),
            ("verdict", "D", 0.75, "#d9660a", "--"), ("verdict", "D", -0.75, "#1f6fc4", "--"),
            ("D", "fake", -0.45, "#1f6fc4", "--"), ("fake", "G", -0.9, "#1f6fc4", "--")]:
        style = {"arrowstyle": "-|>", "color": color, "linestyle": dashes, "connectionstyle": f"arc3,rad={bend}",
                 "patchA": boxes[start], "patchB": boxes[end], "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", centres[end], centres[start], zorder=1.5, arrowprops=style)
    axes.text(13.2, 4.75, "$D$'s gradient: tell them apart", color="#d9660a", ha="center")
    axes.text(12.2, 0.35, "$G$'s gradient, through $D$:\nbe taken for real", color="#1f6fc4", va="center")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The plane


@dataclasses.dataclass(frozen=True)
class PlaneFrame:
    """One moment of a game in the plane: D's probability of 'real' on a square, (S, S), and G's points, (N, 2)."""

    step: int
    probability: torch.Tensor
    points: torch.Tensor


PLANE = 3.0  # the square that is drawn reaches from -PLANE to PLANE


def plane_places(size: int = 61) -> torch.Tensor:
    """The places at which the square is looked at: (size * size, 2), row by row from the lower left corner."""
    line = torch.linspace(-PLANE, PLANE, size)
    return torch.cartesian_prod(line, line).flip(1)


def plane_frame(step: int, verdict: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor) -> PlaneFrame:
    """Look at a game in the plane: `verdict` gives D's logits (N,) for places (N, 2)."""
    with torch.no_grad():
        probability = verdict(plane_places().to(points.device)).sigmoid().cpu()
    size = math.isqrt(len(probability))
    return PlaneFrame(step, probability.view(size, size), points.detach().cpu())


def _draw_plane(axes: plt.Axes, values: torch.Tensor, points: torch.Tensor | None = None,
                centres: torch.Tensor | None = None) -> Any:
    axes.set(xticks=[], yticks=[], xlim=(-PLANE, PLANE), ylim=(-PLANE, PLANE))
    if points is not None:
        axes.scatter(points[:700, 0].numpy(), points[:700, 1].numpy(), s=3, color="black", linewidths=0)
    if centres is not None:
        axes.scatter(centres[:, 0].numpy(), centres[:, 1].numpy(), s=60, facecolors="none", edgecolors="limegreen",
                     linewidths=1)
    return axes.imshow(values.numpy(), origin="lower", extent=(-PLANE, PLANE, -PLANE, PLANE), interpolation="nearest",
                       cmap=plt.get_cmap("coolwarm", 20), vmin=0, vmax=1)  # few colours: a small file


def plot_plane(frames: Sequence[PlaneFrame], centres: torch.Tensor,
               score: Callable[[torch.Tensor], tuple[int, float]]) -> plt.Figure:
    """Moments of a game in the plane side by side; of more than five, five, the early ones closer together.

    D's probability of 'real' in colours, 700 of G's points in black, the centres (N, 2) of the real clusters as rings.

    Args:
        score: of points (N, 2): how many clusters they reach, and the share that is on one; written under each picture.
    """
    if len(frames) > 5:
        frames = [frames[round(share * (len(frames) - 1))] for share in (0, 0.1, 0.25, 0.5, 1)]
    size = (PAGE, 0.6 + 0.92 * PAGE / len(frames))
    figure, all_axes = plt.subplots(1, len(frames), figsize=size, layout="constrained", squeeze=False)
    for axes, frame in zip(all_axes[0], frames):
        reached, on = score(frame.points)
        shown = _draw_plane(axes, frame.probability, frame.points, centres)
        axes.set_title(f"step {frame.step:,}", fontsize=10)
        axes.set_xlabel(f"{reached} of {len(centres)}, {on:.0%} on", fontsize=9)
    figure.colorbar(shown, ax=all_axes[0], shrink=0.9, pad=0.01, label="$D$: 'real'")
    return figure


def plot_plane_maps(named: dict[str, torch.Tensor]) -> plt.Figure:
    """Maps of the plane, each (S, S) with values in [0, 1], side by side under their names."""
    size = (PAGE, 0.3 + 0.9 * PAGE / len(named))
    figure, all_axes = plt.subplots(1, len(named), figsize=size, layout="constrained", squeeze=False)
    for axes, (name, values) in zip(all_axes[0], named.items()):
        shown = _draw_plane(axes, values)
        axes.set_title(name, fontsize=10)
    figure.colorbar(shown, ax=all_axes[0], shrink=0.9)
    return figure


def plane_film(frames: Sequence[PlaneFrame], centres: torch.Tensor, max_frames: int = 24) -> bytes:
    """The film of a game in the plane as an animated PNG: at most so many frames, the last one held for 2 s.

    Drawn as by `plot_plane`.
    """
    pictures = []
    for index in _evenly(len(frames), max_frames):
        figure = plt.figure(figsize=(3.2, 3.4), dpi=100)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.92))
        _draw_plane(axes, frames[index].probability, frames[index].points, centres)
        axes.set_title(f"step {frames[index].step:,}", fontsize=9, pad=3)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(to_pil_image(np.asarray(canvas.buffer_rgba())).convert("RGB"))
        plt.close(figure)
    palette = pictures[-1].quantize(64)  # one for all frames: the last one has every colour
    return _film([picture.quantize(palette=palette, dither=0) for picture in pictures], 6.0)


def save_grid(images: torch.Tensor, path: Path | str, columns: int, scale: int = 2) -> None:
    """Save images (N, 1, H, W) in [-1, 1] as one greyscale PNG, each pixel `scale` pixels wide."""
    grid = _grid_image(images, columns, scale)
    with write_beside(path) as beside:
        grid.save(beside)


def load_grid(path: Path | str, size: int, scale: int = 2) -> torch.Tensor:
    """The images of a PNG that `save_grid` wrote, (N, 1, size, size) in [-1, 1] up to half a grey level.

    Raises:
        ValueError: the picture's sides do not fit such a grid.
    """
    grey = torch.from_numpy(plt.imread(path)).mul(255).round().to(torch.uint8)[::scale, ::scale]
    cell = size + 2
    if any(side < cell + 2 or (side - 2) % cell for side in grey.shape):
        raise ValueError(f"'{path}' is no grid of images of {size} x {size} at scale {scale}: "
                         f"it has {grey.shape[0]} x {grey.shape[1]} pixels of such a size")
    cells = grey[2:, 2:].unfold(0, cell, cell).unfold(1, cell, cell)[:, :, :size, :size]
    return from_uint8(cells.reshape(-1, 1, size, size))


def save_animation(snapshots: Sequence[torch.Tensor], path: Path | str, digits: int = 24, columns: int = 8,
                   max_frames: int = 30, seconds: float = 6.0) -> bytes:
    """Save the film of the snapshots, one frame an epoch, the last one held; looping.

    Args:
        snapshots: uint8 images (N, 1, H, W), one tensor a frame; where there are more than `max_frames`, evenly
            spaced ones are taken, the first and the last among them.
        digits: how many images of each snapshot to show, `columns` to a row.
        path: ends in .gif or .png (an animated PNG).
        seconds: how long the film runs before it holds its last frame for 2 s.

    Returns:
        the bytes of the same film as an animated PNG, which every notebook viewer shows as `image/png`.

    Raises:
        ValueError: there are no snapshots, or the ending is another one.
    """
    path = Path(path)
    if not len(snapshots):
        raise ValueError("snapshots is empty: there is nothing to animate before the first epoch has ended")
    if path.suffix not in (".gif", ".png"):
        raise ValueError(f"path = '{path}' must end in .gif or .png")
    frames = [_few_greys(_grid_image(from_uint8(snapshots[index][:digits]), columns))
              for index in _evenly(len(snapshots), max_frames)]
    with write_beside(path) as beside:  # the ending tells the format
        _save_film(frames, seconds, beside)
    return _film(frames, seconds)


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices 0 to count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def _save_film(frames: Sequence[Any], seconds: float, file: Any, **options: str) -> None:
    """Save PIL images as a looping film that runs so long, then holds its last frame for 2 s."""
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)


def _film(frames: Sequence[Any], seconds: float) -> bytes:
    """The bytes of such a film as an animated PNG."""
    film = io.BytesIO()
    _save_film(frames, seconds, film, format="PNG")
    return film.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The judge

JUDGE_FILE = DATA_FOLDER / "judge.pt"
JUDGE_COMMAND = ('python -c "from gan_helpers import *; '
                 'save_judge(train_judge(*load_mnist(train=True)), JUDGE_FILE)"')


class Judge(torch.nn.Module):
    """A small convolutional classifier of MNIST digits, whose 64 penultimate features measure likeness.

    Images (N, 1, 28, 28) in [-1, 1] -> logits (N, 10). `features` gives the penultimate layer, (N, 64).
    """

    FEATURES = 64

    def __init__(self):
        super().__init__()

        def block(inputs, outputs, stride):
            convolution = torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return [convolution, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]

        self.features = torch.nn.Sequential(
            *block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 1), *block(32, 64, 2), torch.nn.Flatten(),
            torch.nn.Linear(64 * 7 * 7, self.FEATURES, bias=False), torch.nn.BatchNorm1d(self.FEATURES),
            torch.nn.ReLU())
        self.digits = torch.nn.Linear(self.FEATURES, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.digits(self.features(images))


def train_judge(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8, seed: int = 0) -> Judge:
    """Train a judge: AdamW with a one-cycle rate, batches of 128, images shifted by up to 2 pixels.

    Args:
        images: (N, 1, 28, 28) in [-1, 1], on the device to train on; labels: (N,) in 0..9.

    Returns:
        the judge, in eval mode, on that device.
    """
    check_images(images)
    seed_everything(seed)
    torch.set_flush_denormal(True)
    order = conv_memory_format(images.device)
    judge = Judge().to(images.device).to(memory_format=order)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * math.ceil(len(images) / 128))
    precision = choose_precision(images.device)
    for _ in range(epochs):
        for indices in shuffled_batches(torch.arange(len(images), device=images.device), 128):
            down, right = torch.randint(0, 5, (2,)).tolist()
            padded = functional.pad(images[indices], (2, 2, 2, 2), value=-1)
            shifted = padded[:, :, down:down + 28, right:right + 28].contiguous(memory_format=order)
            with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
                logits = judge(shifted)
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), labels[indices]).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def save_judge(judge: Judge, path: Path | str) -> None:
    """Save a judge's weights: tensors only, so that `weights_only=True` loads them."""
    with write_beside(path) as beside:
        torch.save({name: value.cpu().contiguous() for name, value in judge.state_dict().items()}, beside)


def load_judge(path: Path | str = JUDGE_FILE) -> Judge:
    """The judge with the weights stored at `path`, in eval mode, on the CPU.

    Raises:
        ValueError: the file is missing or damaged; the message gives the command that recreates it.
    """
    judge = Judge()
    try:
        judge.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"'{path}' is missing or damaged ({error}). This recreates it: {JUDGE_COMMAND}") from error
    return judge.eval()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a judge sees in N images: features, float64 (N, 64), and probabilities of the ten digits, (N, 10)."""

    features: torch.Tensor
    probabilities: torch.Tensor

    @property
    def histogram(self) -> torch.Tensor:
        """How many images read as each digit, int64 (10,)."""
        return self.probabilities.argmax(dim=1).bincount(minlength=10)


def judge_images(judge: Judge, images: torch.Tensor) -> Reading:
    """Let the judge read images in [-1, 1], in chunks, on the CPU.

    Args:
        images: (N, 1, 28, 28), or larger, of which the judge sees the central 28 x 28.
    """
    images = check_images(images)
    if min(images.shape[2:]) < 28:
        raise ValueError(f"images must have at least 28 x 28 pixels for the judge, not {tuple(images.shape[2:])}")
    with torch.no_grad():
        features = torch.cat([judge.features(chunk.contiguous(memory_format=torch.channels_last))
                              for chunk in center_crop(images, 28).split(500)])
        return Reading(features.double(), judge.digits(features).softmax(dim=1))


# ---------------------------------------------------------------------------------------------------------------------
# The scores


def _check_features(least: int, **named: torch.Tensor) -> None:
    for name, features in named.items():
        if features.ndim != 2 or len(features) < least:
            raise ValueError(f"{name} has the shape {tuple(features.shape)}: this score needs a table of at least "
                             f"{least} samples")
        if not features.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (Heusel et al., 2017).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is taken as that of the symmetric
    (C1^(1/2) C2 C1^(1/2))^(1/2), which has the same eigenvalues and no complex part.

    Args:
        real, fake: (N, F) and (M, F), N and M greater than F.

    Raises:
        ValueError: fewer samples than that, or NaN.
    """
    _check_features(real.shape[-1] + 1, real=real, fake=fake)
    real, fake = real.cpu().double(), fake.cpu().double()  # not every device has eigh, or float64
    covariance_real, covariance_fake = real.T.cov(), fake.T.cov()
    values, vectors = torch.linalg.eigh(covariance_real)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ covariance_fake @ root).clamp(min=0).sqrt()
    distance = (real.mean(dim=0) - fake.mean(dim=0)).square().sum() + covariance_real.trace() \
        + covariance_fake.trace() - 2 * roots.sum()
    return max(distance.item(), 0.0)


def neighbour_radii(features: torch.Tensor, k: int = 5) -> torch.Tensor:
    """Distance of each sample to its k-th nearest other sample: (N, F) -> (N,)."""
    _check_features(k + 1, features=features)
    return torch.cat([torch.cdist(chunk, features).topk(k + 1, largest=False).values[:, -1]
                      for chunk in features.split(1000)])


def precision_recall_coverage(real: torch.Tensor, fake: torch.Tensor, k: int = 5,
                              real_radii: torch.Tensor | None = None) -> tuple[float, float, float]:
    """How many fakes are like real samples, how much of the real variety is reached, and how much of it closely.

    Precision: share of fakes within the k-th neighbour distance of some real sample. Recall: the same with the roles
    exchanged (Kynkäänniemi et al., 2019). Coverage: share of real samples with a fake within their own k-th neighbour
    distance (Naeem et al., 2020), which a few outliers among the fakes cannot raise.

    Args:
        real, fake: features (N, F) and (M, F).
        real_radii: `neighbour_radii(real, k)`, where it is known already.
    """
    _check_features(k + 1, real=real, fake=fake)
    real_radii = neighbour_radii(real, k) if real_radii is None else real_radii
    fake_radii = neighbour_radii(fake, k)
    fake_is_near, real_is_near, real_is_covered = [], torch.zeros_like(real_radii, dtype=torch.bool), real_radii < 0
    for chunk, radii in zip(fake.split(1000), fake_radii.split(1000)):
        distances = torch.cdist(chunk, real)
        inside = distances <= real_radii
        fake_is_near.append(inside.any(dim=1))
        real_is_covered |= inside.any(dim=0)
        real_is_near |= (distances <= radii[:, None]).any(dim=0)
    precision, recall, coverage = (share.cpu().double().mean().item()
                                   for share in (torch.cat(fake_is_near), real_is_near, real_is_covered))
    return precision, recall, coverage


def kl_divergence(counts: torch.Tensor, real_counts: torch.Tensor) -> float:
    """Kullback-Leibler divergence of one histogram from the real one, in nats; 0 where their shares are equal."""
    counts, real_counts = counts.cpu().double(), real_counts.cpu().double()  # not every device has float64
    share, real_share = counts / counts.sum(), real_counts / real_counts.sum()
    drawn = share > 0  # a digit that is never drawn adds nothing, be it absent from the real ones or not
    return (share[drawn] * (share[drawn] / real_share[drawn]).log()).sum().item()


@dataclasses.dataclass(frozen=True)
class Reference:
    """The real side of every score, computed once."""

    judge: Judge
    reading: Reading
    radii: torch.Tensor


def make_reference(images: torch.Tensor, judge: Judge | None = None) -> Reference:
    """The real side of every score, from images (N, 1, 28, 28): the test set, or as many of it as are to be used."""
    judge = judge or load_judge()
    reading = judge_images(judge, images)
    return Reference(judge, reading, neighbour_radii(reading.features))


def frechet_of_images(reference: Reference, images: torch.Tensor) -> float:
    """The Fréchet distance alone, cheap enough to be taken during training. Fewer images give a larger distance."""
    return frechet_distance(reference.reading.features, judge_images(reference.judge, images).features)


def score_images(reference: Reference, images: torch.Tensor) -> dict:
    """All scores of images in [-1, 1], read as by `judge_images`, against the real ones of `reference`.

    Returns:
        frechet (0 is best), precision, recall, coverage, confident (shares in 0..1), kl (nats), histogram (10 counts),
        samples (N). `confident` is the share that the judge reads with a probability over 0.95.
    """
    reading, real = judge_images(reference.judge, images), reference.reading
    frechet = frechet_distance(real.features, reading.features)
    precision, recall, coverage = precision_recall_coverage(real.features, reading.features, real_radii=reference.radii)
    confident = (reading.probabilities.amax(dim=1) > 0.95).double().mean().item()
    return {"frechet": frechet, "precision": precision, "recall": recall, "coverage": coverage, "confident": confident,
            "kl": kl_divergence(reading.histogram, real.histogram), "histogram": reading.histogram.tolist(),
            "samples": len(images)}


def nearest_images(images: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image the nearest of `others`: L2 distances over the pixels, float32 (N,), and indices, int64 (N,)."""
    images, others = check_images(images).flatten(1), check_images(others, "others").flatten(1)
    squares = others.square().sum(dim=1)  # |a - b|^2 is smallest where |b|^2 - 2 a.b is
    indices = torch.cat([torch.addmm(squares, chunk, others.T, alpha=-2).argmin(dim=1) for chunk in images.split(500)])
    return (images - others[indices]).norm(dim=1), indices


SCORES = {"frechet": "Fréchet", "precision": "precision", "recall": "recall", "coverage": "coverage",
          "confident": "confident", "kl": "KL (nats)"}


def format_scoreboard(rows: dict[str, dict]) -> str:
    """The scores of several rows (name = result of `score_images`) as a table of text."""
    width = max(map(len, rows)) + 1
    lines = [f"{name:{width}}" + "".join(f"{row[key]:11.3f}" for key in SCORES) for name, row in rows.items()]
    return "\n".join([" " * width + "".join(f"{title:>11}" for title in SCORES.values()), *lines])


def plot_scoreboard(rows: dict[str, dict]) -> plt.Figure:
    """The same rows as pictures: Fréchet distance as a dot (logarithmic), and each row's histogram of digits."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.8 + 0.36 * len(rows)), layout="constrained")
    distances = [row["frechet"] for row in rows.values()]
    left.plot(distances, range(len(rows)), "o", color="#1f6fc4")
    for height, distance in enumerate(distances):
        left.annotate(f"{distance:.2f}", (distance, height), (6, 0), textcoords="offset points", va="center",
                      fontsize=8)
    left.set(xscale="log", xlabel="Fréchet distance (lower is better)", ylim=(len(rows) - 0.5, -0.5))
    left.set_yticks(range(len(rows)), rows)
    left.margins(x=0.2)
    left.grid(axis="x", alpha=0.3)
    shares = [[count / sum(row["histogram"]) for count in row["histogram"]] for row in rows.values()]
    shown = right.imshow(shares, cmap="Blues", vmin=0, vmax=0.2, aspect="auto")
    right.set(xticks=range(10), yticks=[], xlabel="share of each digit, as the judge reads it")
    figure.colorbar(shown, ax=right, extend="max", format=lambda share, _: f"{share:.0%}")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Latent space


def slerp(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation (Shoemake, 1985): turn from one vector to another at an even pace.

    The direction moves along the great circle between the two, the length linearly from one length to the other, so
    that between vectors of equal length the length is kept. Equal directions give linear interpolation; between
    opposite ones, which many great circles join, one fixed circle is taken.

    Args:
        start, end: (..., latent size), of the same shape, none of them all zeros.
        share: 0 is `start`, 1 is `end`; a number, or a tensor that broadcasts against (..., 1).

    Returns:
        the vector or vectors in between.

    Raises:
        ValueError: the shapes differ, or a vector has the length zero and so no direction.
    """
    if start.shape != end.shape or start.ndim == 0:
        raise ValueError(f"start and end must have one shape, not {tuple(start.shape)} and {tuple(end.shape)}")
    start_norm, end_norm = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    if not (start_norm.all() and end_norm.all()):
        raise ValueError("start and end must not be zero: a vector of length 0 has no direction")
    a, b = start / start_norm, end / end_norm
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    turn = b - (a * b).sum(dim=-1, keepdim=True) * a  # at right angles to a, towards b
    axis = functional.one_hot(a.abs().argmin(dim=-1), a.shape[-1]).to(a)  # any other way, where b gives none
    turn = torch.where(turn.norm(dim=-1, keepdim=True) > 1e-6, turn, axis - (a * axis).sum(dim=-1, keepdim=True) * a)
    direction = torch.cos(share * angle) * a + torch.sin(share * angle) * functional.normalize(turn, dim=-1)
    return (start_norm + share * (end_norm - start_norm)) * direction


def generate(generator: Callable[[torch.Tensor], torch.Tensor], latent: torch.Tensor,
             batch_size: int = 1000) -> torch.Tensor:
    """Run a generator on many latent vectors, in eval mode and without gradients.

    Args:
        generator: a module or any callable from (N, latent size) to images (N, 1, H, W); a module's train/eval mode
            is left as it was.
        latent: float tensor (N, latent size), on the generator's device.

    Returns:
        images (N, 1, H, W), float32, on the CPU.

    Raises:
        ValueError: the latent is not a non-empty table of finite numbers.
    """
    if latent.ndim != 2 or latent.numel() == 0 or not latent.isfinite().all():
        raise ValueError(f"latent must be finite and of shape (N, latent size), N at least 1, not "
                         f"{tuple(latent.shape)}" + (" with NaN or infinity" if latent.numel() else ""))
    modules = generator.modules() if isinstance(generator, torch.nn.Module) else []
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            return torch.cat([generator(chunk).float().cpu() for chunk in latent.split(batch_size)])
    finally:
        for module, training in modes:
            module.training = training


def steepness(generator: Callable[[torch.Tensor], torch.Tensor], latent: torch.Tensor, directions: int = 8,
              step: float = 0.05) -> torch.Tensor:
    """How fast the images change with the latent: an estimate of the norm of the generator's Jacobian, float32 (N,).

    The root mean square, over random directions of length 1, of the change of the image over the step; finite
    differences (Tanielian, Issenhuth, Dohmatob and Mary, 2020, who take the same norm for the same purpose).

    Args:
        latent: (N, latent size), on the generator's device.
    """
    here, squares = generate(generator, latent), torch.zeros(len(latent))
    for _ in range(directions):
        direction = functional.normalize(torch.randn_like(latent), dim=1)
        there = generate(generator, latent + step * direction)
        squares = squares + ((there - here) / step).square().flatten(1).sum(dim=1)
    return (squares / directions).sqrt()


# ---------------------------------------------------------------------------------------------------------------------
# Saving and exporting


def output_folder(quick: bool) -> Path:
    """Make the folder that runs write to: the variable GAN_OUTPUT, or `output`; in quick mode `quick` below it.

    Raises:
        OSError: the folder cannot be made or written; the message names it and the variable.
    """
    folder = Path(os.environ.get("GAN_OUTPUT") or "output") / ("quick" if quick else "")
    if not _is_writable(folder):
        raise OSError(f"output = '{folder}' cannot be written: set the variable GAN_OUTPUT to a folder that can")
    return folder


@contextlib.contextmanager
def write_beside(path: Path | str) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, to be written; rename it to `path` when the block ends well.

    At no moment is there a half-written file under the final name, and on an error an older file stays as it was.

    Raises:
        OSError: the folder does not exist, cannot be written or is full, or `path` is a folder; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; give the name of a file")
    folder = ""
    try:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
        beside = Path(folder) / path.name
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())  # on disk before it takes the name, should the machine lose power
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) \
                and "inline_container" not in str(error):  # what torch raises when it cannot write
            raise
        raise OSError(f"'{path}' cannot be written, and is as it was: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_json(values: object, path: Path | str) -> None:
    """Write plain values as JSON."""
    with write_beside(path) as beside:
        beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_checkpoint(state: Any, path: Path | str) -> None:
    """Write a training state, and torch's random states, so that `load_checkpoint` can go on from it bit for bit.

    Args:
        state: a `TrainingState`, or any object whose attributes are a dataclass `settings`, things with a
            `state_dict`, tensors, and plain values. The random states are those of the CPU and of its tensors' device.
    """
    parts = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in vars(state).items()}
    device = _device_of(state)
    random_states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        random_states[device.type] = _device_random(device, "get_rng_state")()
    with write_beside(path) as beside:
        torch.save({**parts, "settings": dataclasses.asdict(state.settings), "random": random_states}, beside)


def load_checkpoint(state: Any, path: Path | str) -> None:
    """Put a freshly made training state, and torch's random states, to where `save_checkpoint` wrote them.

    Everything is checked before anything is changed.

    Raises:
        ValueError: the file is damaged or holds more than tensors and plain values, or it is of other settings,
            another architecture, another kind of device or another edition of the notebook; the message names the
            difference, and the state is as it was.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, modules = saved["settings"], {n: p for n, p in vars(state).items() if isinstance(p, torch.nn.Module)}
        random_states = saved.pop("random")
    except Exception as error:
        raise ValueError(f"'{path}' is no whole checkpoint ({error}): delete or rename it, and train afresh") from error
    advice = "rename the file, or train afresh with RESUME = False, which keeps it under another name"
    if saved.keys() != vars(state).keys() or not isinstance(random_states, dict):
        odd = ", ".join(sorted(saved.keys() ^ vars(state).keys())) or "random"
        raise ValueError(f"'{path}' was written by another edition of this notebook (the difference: {odd}), "
                         f"from which this one cannot go on: {advice}")
    now = dataclasses.asdict(state.settings)
    for name in sorted(now.keys() | settings.keys()):
        if now.get(name) != settings.get(name):
            raise ValueError(f"'{path}' was made with {name} = {settings.get(name)!r}, and {name} is now "
                             f"{now.get(name)!r}: set it back, or {advice}")
    for name, module in modules.items():
        shapes = lambda values: {key: value.shape for key, value in values.items()}
        if shapes(saved[name]) != shapes(module.state_dict()):
            raise ValueError(f"'{path}' holds another architecture: the weights of its {name} have other names or "
                             f"shapes than the ones here: {advice}")
    optimizers = {n: p for n, p in vars(state).items() if isinstance(p, torch.optim.Optimizer)}
    for name, optimizer in optimizers.items():
        there, here = ([len(group["params"]) for group in groups]
                       for groups in (saved[name]["param_groups"], optimizer.param_groups))
        if there != here:
            raise ValueError(f"'{path}' holds another {name}: it trains {sum(there)} tensors, and the one here "
                             f"{sum(here)}: {advice}")
    device = _device_of(state)
    if set(random_states) != {"cpu", device.type}:
        other = ", ".join(sorted(set(random_states) - {"cpu"})) or "cpu"
        raise ValueError(f"'{path}' was made on another kind of device, {other}, whose random numbers "
                         f"{device.type} cannot continue: set GAN_DEVICE to {other}, or {advice}")
    for name, part in vars(state).items():
        if hasattr(part, "load_state_dict"):
            part.load_state_dict(saved[name])
        elif name != "settings":
            setattr(state, name, saved[name].to(part.device) if isinstance(part, torch.Tensor) else saved[name])
    torch.set_rng_state(random_states["cpu"])
    if device.type != "cpu":
        _device_random(device, "set_rng_state")(random_states[device.type])


def _device_of(state: Any) -> torch.device:
    """The device of the first tensor among a state's attributes; the CPU where there is none."""
    return next((part.device for part in vars(state).values() if isinstance(part, torch.Tensor)), torch.device("cpu"))


def _device_random(device: torch.device, name: str) -> Callable[..., Any]:
    """torch.cuda's or torch.mps's function of that name; the former's for this one of several GPUs."""
    function = getattr(getattr(torch, device.type), name)
    return functools.partial(function, device=device) if device.type == "cuda" else function


def resume(state: Any, path: Path | str, wanted: bool) -> bool:
    """At the start of a run: go on from the checkpoint at `path` if `wanted`, else move it out of the way; say which.

    Returns:
        whether the state has been loaded. A checkpoint that is not wanted is renamed to end in .previous.pt, in place
        of an earlier one of the same settings that had got no further; one that had got further stays. One of other
        settings stays too: the new name is then .previous-2.pt, and so on.

    Raises:
        ValueError: as `load_checkpoint`.
    """
    path = Path(path)
    found = path.exists()
    if wanted and found:
        load_checkpoint(state, path)
        ended = ": training had ended, so nothing is trained now" if state.epoch == state.settings.epochs else ""
        print(f"RESUME: {path.name} goes on after epoch {state.epoch} of {state.settings.epochs}{ended}")
    elif found:
        epoch, settings = _run_in(path)
        for number in itertools.count(1):
            previous = path.with_suffix(f".previous-{number}.pt" if number > 1 else ".previous.pt")
            if not previous.exists():
                kept = None
                break
            kept, its_settings = _run_in(previous)
            if settings and its_settings == settings:
                break
        rename = f"rename it to {path.name} to go on from it"
        if kept is not None and kept > epoch:
            print(f"A fresh run. The last run got to epoch {epoch} only, so its checkpoint is dropped, and the one "
                  f"before, of epoch {kept}, stays as {previous.name} ({rename})")
        else:
            path.replace(previous)
            which = "which cannot be read" if epoch is None else f"of epoch {epoch}"
            print(f"A fresh run. The last run's checkpoint, {which}, is kept as {previous.name} ({rename})")
    elif wanted:
        print(f"RESUME: there is no {path.name}, so this is a fresh run")
    return wanted and found


def _run_in(path: Path) -> tuple[int | None, dict[str, Any] | None]:
    """How far the run had got that wrote this checkpoint, and its settings; None for both where that cannot be read."""
    with contextlib.suppress(Exception):  # whatever a damaged file makes torch.load raise
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return int(saved["epoch"]), dict(saved["settings"])
    return None, None


def export_generator(generator: torch.nn.Module, path: Path | str, latent_dim: int) -> None:
    """Write a generator as one file that runs without its class: a `torch.export` program, for any batch size.

    The program is traced from a copy on the CPU in eval mode; the generator itself is left as it was.

    Args:
        generator: takes float32 (N, latent_dim), returns images (N, 1, H, W) in [-1, 1].
        path: ends in .pt2.

    Raises:
        ValueError: the path ends otherwise, or the generator does not return images of that kind.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"path = '{path}' must end in .pt2")
    program_source = copy.deepcopy(generator).cpu().float().eval()
    example = torch.zeros(2, latent_dim)  # a batch of 1 would be taken for a constant
    images = check_images(generate(program_source, example), "the generator's output")
    if len(images) != 2:
        raise ValueError(f"the generator made {len(images)} images of 2 latent vectors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations are not the reader's concern
        program = torch.export.export(program_source, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        about = json.dumps({"latent_dim": latent_dim, "image_size": images.shape[-1]})
        with write_beside(path) as beside:
            torch.export.save(program, beside, extra_files={"generator.json": about})


@dataclasses.dataclass(frozen=True)
class LoadedGenerator:
    """A generator read from a .pt2 file. Call it with float32 (N, latent_dim) for images (N, 1, H, W) in [-1, 1]."""

    program: Callable[[torch.Tensor], torch.Tensor] = dataclasses.field(repr=False)
    latent_dim: int
    image_size: int

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        if not isinstance(latent, torch.Tensor) or latent.dtype != torch.float32 or latent.ndim != 2 \
                or latent.shape[1] != self.latent_dim or len(latent) == 0:
            kind = f"{latent.dtype} {tuple(latent.shape)}" if isinstance(latent, torch.Tensor) else type(latent)
            raise ValueError(f"latent must be float32 of shape (N, {self.latent_dim}), N at least 1, not {kind}")
        with torch.no_grad():
            return self.program(latent)


def load_generator(path: Path | str) -> LoadedGenerator:
    """Read a generator written by `export_generator`.

    A .pt2 file is program code: loading one can run what its author put there. Load only files you trust.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file that `export_generator` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no generator at '{path}'; export_generator writes one")
    about = {"generator.json": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions wonder at bytes that cannot be written to
            program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=about)  # keeps no file open
        sizes = json.loads(about["generator.json"])
        return LoadedGenerator(program.module(), sizes["latent_dim"], sizes["image_size"])
    except Exception as error:
        raise ValueError(f"'{path}' is not a whole file written by export_generator: {error}") from error
