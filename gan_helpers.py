"""Plumbing for HandwrittenNumberGAN.ipynb: what a reader of the story would skip.

Every function can be used alone in a fresh session; nothing here knows the notebook's classes.

Images are float tensors (N, 1, H, W) with pixels in [-1, 1] (-1 is black, 1 is white) unless a
docstring says otherwise. Pictures take tensors from any device.
"""

import base64
import contextlib
import copy
import dataclasses
import gzip
import io
import json
import math
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.transforms.functional import center_crop
from torchvision.utils import make_grid
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
ARCHIVES = FOLDER / "data" / "MNIST" / "raw"
JUDGE_FILE = FOLDER / "data" / "judge.pt"


# Device and data ----------------------------------------------------------------------------------

def choose_device() -> torch.device:
    """The device to train on: the variable GAN_DEVICE, else a GPU if there is one, else the CPU.

    Raises ValueError, which says what is there, if GAN_DEVICE names something else.
    """
    present = ["cpu"]
    if torch.accelerator.is_available():
        present.insert(0, torch.accelerator.current_accelerator().type)  # "cuda", "mps", ...
    name = os.environ.get("GAN_DEVICE", "").strip().lower() or present[0]
    if name.split(":")[0] not in present:
        raise ValueError(
            f"GAN_DEVICE = {name!r} is not in this machine, which has: {', '.join(present)}")
    return torch.device(name)


def load_mnist(train: bool, device: torch.device | str = "cpu",
               folder: Path | str = ARCHIVES) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST (LeCun, Cortes and Burges, 1998) as two tensors on `device`, read from its archives.

    Returns images, float32 (N, 1, 28, 28) in [-1, 1], and labels, int64 (N,) in 0..9: the 60,000
    training images or the 10,000 test images. Raises OSError if an archive is missing or damaged.
    """
    stem, arrays = "train" if train else "t10k", []
    for name, header in [("images-idx3-ubyte.gz", 16), ("labels-idx1-ubyte.gz", 8)]:
        path = Path(folder) / f"{stem}-{name}"
        try:
            with gzip.open(path) as file:  # its checksum finds damage
                array = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8, offset=header)
        except Exception as error:
            raise OSError(f"'{path}' is missing or damaged ({error}). `git checkout -- data` "
                          "brings it back, or torchvision.datasets.MNIST downloads it") from error
        arrays.append(array)
    images = arrays[0].view(-1, 1, 28, 28).to(device).float().div_(127.5).sub_(1)
    return images, arrays[1].to(device).long()


# Stop button and progress line --------------------------------------------------------------------

def _in_kernel() -> bool:
    """Whether this is a Jupyter or Colab kernel, and no plain script."""
    ipython = sys.modules.get("IPython")  # present only where a notebook or IPython is running
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextlib.contextmanager
def stop_button():
    """Jupyter's stop button (SIGINT) asks, the loop answers; a second press interrupts at once.

    Yields a function that says whether the button was pressed. In a plain script Ctrl-C ends the
    script, once the loop has answered.
    """
    presses = []

    def press(*_):
        presses.append("stop")
        signal.signal(signal.SIGINT, before)  # for the second press

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: len(presses) > 0
    finally:
        signal.signal(signal.SIGINT, before)
    if presses and not _in_kernel():
        raise KeyboardInterrupt


class _DisplayLine(tqdm):
    """tqdm drawn through an IPython display handle in place of a terminal's carriage returns."""

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
    """A tqdm bar over `total` steps, `done` of them earlier.

    In a Jupyter or Colab kernel it is one display updated in place, of which a saved notebook
    keeps a final line of text: no stderr, no carriage returns, no widget.
    """
    options = {"total": total, "initial": done, "unit": "step", "mininterval": 0.5}
    if _in_kernel():
        return _DisplayLine(**options, file=io.StringIO(), ncols=100, ascii=False)
    return tqdm(**options, file=sys.stdout, dynamic_ncols=True)


# Pictures -----------------------------------------------------------------------------------------

PAGE = 9.6  # inches, the width of a full picture
DPI = 100   # pixels an inch
GAP = 2     # pixels between the images of a grid
LETTER = 7  # pixels that a letter of a row's label takes, and most take less


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Return images as they are; ValueError at another shape, none, NaN, or pixels outside [-1, 1].
    """
    if not (images.ndim == 4 and images.shape[1] == 1 and len(images) > 0):
        raise ValueError(
            f"images must have the shape (N, 1, H, W), N at least 1, not {tuple(images.shape)}")
    low, high = images.detach().aminmax()
    if not (low >= -1 and high <= 1):  # so put, it also catches NaN
        raise ValueError(f"images must have pixels in [-1, 1], not from {low:.4g} to {high:.4g}")
    return images


def _grid(images: torch.Tensor, columns: int, scale: int, greys: int = 256) -> np.ndarray:
    """Images as one array (height, width) of uint8, row by row, each pixel `scale` pixels wide.

    In 12 greys the file of a picture is half as large.
    """
    levels = check_images(images).detach().cpu().add(1).div(2).mul(greys - 1).round()
    height, width = images.shape[2] + GAP, images.shape[3] + GAP
    rows = math.ceil(len(images) / columns)
    canvas = torch.full((rows * height + GAP, columns * width + GAP), 0.25)
    for index, image in enumerate(levels.div(greys - 1)):
        row, column = divmod(index, columns)
        place = canvas[row * height:(row + 1) * height, column * width:(column + 1) * width]
        place[GAP:, GAP:] = image
    return np.kron(canvas.mul(255).round().byte().numpy(), np.ones((scale, scale), np.uint8))


def plot_grid(images: torch.Tensor, columns: int, title: str = "", labels=(), row_labels=(),
              column_labels=(), scale: int = 2) -> plt.Figure:
    """A grid of images (N, 1, H, W) in [-1, 1], so many `columns` to a row.

    Each pixel is `scale` pixels wide. `labels`: one for each image, in its corner; `row_labels` to
    the left, `column_labels` above.
    """
    grid = _grid(images, columns, scale, greys=12)
    height, width = grid.shape
    lines = [line for label in row_labels for line in str(label).split("\n")]
    left = 12 + LETTER * max(map(len, lines)) if lines else 0
    top = (20 if title else 0) + (16 if column_labels else 0)
    size = left + width, top + height
    figure = plt.figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    axes = figure.add_axes((left / size[0], 0, width / size[0], height / size[1]))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.axis("off")
    axes.set_title(title, fontsize=10, pad=18 if column_labels else 4)
    down, right = (images.shape[2] + GAP) * scale, (images.shape[3] + GAP) * scale
    for index, label in enumerate(labels):
        x, y = index % columns * right + 3 * scale, index // columns * down + 3 * scale
        axes.text(x, y, label, color="gold", fontsize=6 + scale, va="top")
    for row, label in enumerate(row_labels):
        axes.text(-8, (row + 0.5) * down, str(label), ha="right", va="center", fontsize=9)
    for column, label in enumerate(column_labels):
        axes.text((column + 0.5) * right, -3, str(label), ha="center", va="bottom", fontsize=8)
    return figure


def plot_curves(x, curves: dict, xlabel: str, ylabel: str, levels: dict) -> plt.Figure:
    """Curves over x, name in the legend = heights, and broken lines, name = height."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.8), dpi=DPI, layout="constrained")
    for name, heights in curves.items():
        axes.plot(x, heights, label=name, marker="." if len(x) < 20 else "")
    for number, (name, height) in enumerate(levels.items()):
        style = ["--", ":", "-."][number % 3]
        axes.axhline(height, color="gray", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=8)
    return figure


TINTS = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933",
         "#AA4499", "#777777")  # Paul Tol's "muted": colour-blind readers tell them apart


def plot_map(images: torch.Tensor, digits: torch.Tensor, columns: int) -> plt.Figure:
    """Images (N, 1, H, W) without gaps, their ground in the colour of their `digits` (N,)."""
    tints = torch.tensor([to_rgb(tint) for tint in TINTS])
    strokes = check_images(images).cpu().add(1).div(2)  # 0 is paper, 1 is a stroke
    coloured = tints[digits.cpu()][:, :, None, None] * (1 - strokes) + strokes
    grid = make_grid(coloured, nrow=columns, padding=0).permute(1, 2, 0)
    figure, axes = plt.subplots(figsize=(8.6, 8.6), dpi=DPI, layout="constrained")
    axes.imshow(grid.mul(12).round().div(12))  # few colours: a small file
    axes.axis("off")
    return figure


PLANE = 3.0  # the square that is drawn reaches from -PLANE to PLANE


def plane_grid(size: int = 61) -> torch.Tensor:
    """Where maps of the plane are taken: (size * size, 2), row by row from the lower left."""
    line = torch.linspace(-PLANE, PLANE, size)
    return torch.cartesian_prod(line, line).flip(1)


def plot_plane(panels: list[dict], centres: torch.Tensor | None = None) -> plt.Figure:
    """Maps of the plane side by side, on one scale of colours from 0 (blue) to 1 (red).

    `panels`: dicts with `title`, `values` (S * S,) in [0, 1] at `plane_grid(S)`, and maybe a
    `caption` and `points` (N, 2), of which 700 are drawn. `centres` (K, 2): drawn as rings.
    """
    size = (PAGE, 0.55 + 0.9 * PAGE / len(panels))
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, dpi=DPI, layout="constrained",
                                    squeeze=False)
    for axes, panel in zip(all_axes[0], panels, strict=True):
        axes.set(xticks=[], yticks=[], xlim=(-PLANE, PLANE), ylim=(-PLANE, PLANE),
                 title=panel["title"], xlabel=panel.get("caption", ""))
        if centres is not None:
            axes.scatter(*centres.cpu().T, s=45, facecolors="none", edgecolors="gold", linewidths=1)
        if "points" in panel:
            axes.scatter(*panel["points"][:700].cpu().T, s=2, color="black", linewidths=0)
        side = math.isqrt(len(panel["values"]))
        values = panel["values"].cpu().view(side, side)
        shown = axes.imshow(values, vmin=0, vmax=1, origin="lower",
                            extent=(-PLANE, PLANE, -PLANE, PLANE), interpolation="nearest",
                            cmap=plt.get_cmap("coolwarm", 20))  # few colours: a small file
    figure.colorbar(shown, ax=all_axes[0], shrink=0.9, pad=0.01, label="$D$: 'real'")
    return figure


def film(figures, path: Path | str) -> bytes:
    """Figures of one size, in greys, as a looping GIF at `path`; returns an animated PNG of it.

    Closes each figure. None at all is a ValueError.
    """
    frames = []
    for figure in figures:
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("L"))
        plt.close(figure)
    if not frames:
        raise ValueError("a film needs at least one figure")
    durations = [400] * (len(frames) - 1) + [2000]  # milliseconds
    gif, png = io.BytesIO(), io.BytesIO()
    for kind, file in [("GIF", gif), ("PNG", png)]:
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=durations,
                       loop=0)
    write_whole(path, gif.getvalue())
    return png.getvalue()


# The judge ----------------------------------------------------------------------------------------

class Judge(nn.Module):
    """A small convolutional classifier of MNIST digits; its 64 features measure likeness.

    Images (N, 1, 28, 28) in [-1, 1] -> logits (N, 10); `features` gives the layer before, (N, 64).
    """

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs, stride in [(1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)]:
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                       nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(64 * 7 * 7, 64, bias=False), nn.BatchNorm1d(64)]
        self.features = nn.Sequential(*layers, nn.ReLU())
        self.digits = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.digits(self.features(images))


def train_judge(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8,
                seed: int = 0) -> Judge:
    """Train a judge: AdamW with a one-cycle rate, batches of 128, images shifted by up to 2 pixels.

    `images` (N, 1, 28, 28) in [-1, 1], N at least 2, and `labels` (N,) in 0..9 are on the device
    to train on. `seed` is of this training alone: the random numbers of the rest of the program go
    on as if it had not been. Returns the judge, in eval mode, on that device.
    """
    device = check_images(images).device
    order = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # the faster
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # all that is random here is drawn on the CPU
        judge = Judge().to(device).to(memory_format=order)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
        steps = epochs * math.ceil((len(images) - 1) / 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).to(device).split(128):
                if len(batch) == 1:
                    continue  # BatchNorm takes at least two
                down, right = torch.randint(0, 5, (2,)).tolist()
                padded = functional.pad(images[batch], (2, 2, 2, 2), value=-1)
                shifted = padded[:, :, down:down + 28, right:right + 28]
                logits = judge(shifted.contiguous(memory_format=order))
                optimizer.zero_grad()
                functional.cross_entropy(logits, labels[batch]).backward()
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
        raise ValueError(f"'{path}' is missing or damaged ({error}). git checkout -- data brings "
                         "it back, or data/README.md has the command that makes one") from error
    return judge.eval()


@torch.no_grad()
def judge_images(judge: Judge, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Let the judge read images, of at least 28 x 28 pixels; of larger ones it sees the centre.

    Returns features (N, 64) and probabilities of the digits (N, 10), on the judge's device.
    """
    if min(check_images(images).shape[2:]) < 28:
        raise ValueError(
            f"the judge needs at least 28 x 28 pixels, not {tuple(images.shape[2:])}")
    device = judge.digits.weight.device
    chunks = center_crop(images, 28).split(500)
    features = torch.cat([judge.features(chunk.to(device)) for chunk in chunks])
    return features, judge.digits(features).softmax(dim=1)


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


def stroke_measures(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Slant, thickness, width and size of each drawing (N, 1, H, W), from moments of its ink: (N,).

    Slant is in pixels to the right per pixel up; the others are in pixels. Width is that of the
    drawing set upright, size the geometric mean of width and height.
    """
    ink = check_images(images)[:, 0].add(1).div(2)
    total = ink.sum(dim=(1, 2)).clamp(min=1e-6)
    rows, columns = (torch.arange(float(side), device=ink.device) for side in ink.shape[1:])
    y = rows[:, None] - (ink.sum(dim=2) @ rows / total)[:, None, None]
    x = columns - (ink.sum(dim=1) @ columns / total)[:, None, None]
    high, wide, both = ((ink * part).sum(dim=(1, 2)) / total for part in (y * y, x * x, x * y))
    outline = ink.diff(dim=1).abs().sum(dim=(1, 2)) + ink.diff(dim=2).abs().sum(dim=(1, 2))
    width, height = (wide - both**2 / high).clamp(min=0).sqrt(), high.sqrt()
    return {"slant": -both / high, "thickness": 4 * total / outline, "width": width,
            "size": (width * height).sqrt()}


# Files --------------------------------------------------------------------------------------------

def output_folder(quick: bool) -> Path:
    """Make the folder that runs write to: GAN_OUTPUT or `output`; in quick mode `quick` below it.

    Raises OSError, with its name and that of the variable, if it cannot be made or written.
    """
    folder = Path(os.environ.get("GAN_OUTPUT") or "output", "quick" if quick else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # permission bits do not tell root the truth
    except OSError as error:
        raise OSError(f"'{folder}' cannot be written: set GAN_OUTPUT to another folder") from error
    return folder


def write_whole(path: Path | str, content: bytes) -> None:
    """Write a file beside `path` and rename it: there is never half a file under the final name.

    Raises OSError if the folder is missing, full or read-only; what was at `path` stays.
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


def save_grid(images: torch.Tensor, path: Path | str, columns: int, scale: int = 2) -> None:
    """Save images (N, 1, H, W) in [-1, 1] as one greyscale PNG, each pixel `scale` pixels wide."""
    file = io.BytesIO()
    Image.fromarray(_grid(images, columns, scale)).save(file, "PNG")
    write_whole(path, file.getvalue())


TRAINS_NOTHING = ("epochs", "score_samples")  # settings that a resumed run may change


def save_checkpoint(state, path: Path | str) -> None:
    """Write a training state and torch's random states, so that a run can go on bit for bit.

    Attributes of the state: a dataclass `settings`, a tensor `fixed_noise` on the training device,
    the number `epoch`, things with a `state_dict`, and plain values.
    """
    parts = {name: part.state_dict() if hasattr(part, "state_dict") else part
             for name, part in vars(state).items()}
    device = state.fixed_noise.device.type
    random = {"cpu": torch.get_rng_state()}
    if device != "cpu":
        random[device] = getattr(torch, device).get_rng_state()
    file = io.BytesIO()
    torch.save(parts | {"settings": dataclasses.asdict(state.settings), "random": random}, file)
    write_whole(path, file.getvalue())


def load_checkpoint(state, path: Path | str) -> None:
    """Put a freshly made training state, and torch's random states, to where a checkpoint stands.

    The settings must be those it was made with, but for TRAINS_NOTHING. With more epochs the
    learning rate falls later; of a run that had ended it begins again where it was before it fell.
    Raises ValueError, with the reason, if the file is damaged or of another run.
    """
    def refuse(reason):
        raise ValueError(f"'{path}' {reason}. Rename it, or set RESUME = False to train afresh")

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        random, before = saved.pop("random"), saved["settings"]
    except Exception as error:
        refuse(f"is no whole checkpoint ({error})")
    now, device = dataclasses.asdict(state.settings), state.fixed_noise.device
    for name in sorted(now.keys() | before.keys()):
        if name not in TRAINS_NOTHING and now.get(name) != before.get(name):
            refuse(f"was made with {name} = {before.get(name)!r}, which is now {now.get(name)!r}")
    if saved.keys() != vars(state).keys():
        refuse("is of another edition of this notebook")
    if saved["epoch"] > state.settings.epochs:
        refuse(f"has {saved['epoch']} epochs, more than epochs = {state.settings.epochs}")
    for name, part in vars(state).items():
        if hasattr(part, "load_state_dict"):
            try:
                part.load_state_dict(saved[name])
            except (RuntimeError, ValueError) as error:
                refuse(f"holds other networks ({error})")
        elif isinstance(part, torch.Tensor):
            setattr(state, name, saved[name].to(device))
        elif name != "settings":
            setattr(state, name, saved[name])
    torch.set_rng_state(random["cpu"])
    if device.type in random and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(random[device.type])


def export_generator(generator: nn.Module, path: Path | str, *example: torch.Tensor) -> None:
    """Write a generator as a program for the CPU that runs without its class (`torch.export`).

    It is on the CPU, in eval mode, and returns images (N, 1, H, W) in [-1, 1]. `example`: its
    inputs for a batch of two or more; the program takes any number. Raises ValueError if it
    returns anything else, OSError if the file cannot be written.
    """
    with torch.no_grad():
        check_images(generator(*example))
    torch.compiler.reset()  # torch 2.6 refuses after a few exports in one session
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations are no concern of ours
        shapes = [{0: torch.export.Dim("batch", max=2**30)}] * len(example)  # torch 2.6 needs max
        program = torch.export.export(generator, example, dynamic_shapes=tuple(shapes))
        torch.export.save(program, file)
    write_whole(path, file.getvalue())


# The writer's page --------------------------------------------------------------------------------

def _is_plain(module: nn.Module) -> bool:
    """Whether it is a transposed convolution, the same in both directions, without extras."""
    if not isinstance(module, nn.ConvTranspose2d):
        return False
    pairs = module.kernel_size, module.stride, module.padding
    extras = module.dilation, module.groups, module.output_padding
    return all(down == right for down, right in pairs) and extras == ((1, 1), 1, (0, 0))


def _folded(modules) -> list[tuple[nn.ConvTranspose2d, float | None]]:
    """Transposed convolutions with BatchNorm folded in, and what follows: the slope below zero, or
    None for clipping to [-1, 1]. Raises ValueError, with its name, at a layer that the page lacks.
    """
    layers = []
    for module in modules:
        if _is_plain(module):
            layers.append((module, 1.0))
        elif isinstance(module, nn.BatchNorm2d) and layers[-1][1] == 1.0:
            convolution = nn.utils.fuse_conv_bn_eval(layers[-1][0], module, transpose=True)
            layers[-1] = (convolution, 1.0)
        elif isinstance(module, nn.LeakyReLU):
            layers[-1] = (layers[-1][0], module.negative_slope)
        elif isinstance(module, nn.Hardtanh):
            layers[-1] = (layers[-1][0], None)
        elif not isinstance(module, nn.Unflatten):
            raise ValueError(
                f"writer.html cannot draw with {module} there: it takes Unflatten, then plain "
                "ConvTranspose2d with BatchNorm2d and LeakyReLU, and Hardtanh at the end")
    return layers


@torch.no_grad()
def writer_page(layers: nn.Sequential, hand: torch.Tensor, directions: dict[str, torch.Tensor],
                name: str) -> str:
    """The page data/writer.html with a generator in it: it writes numbers in any browser.

    The mean over the channels that `layers` make of (N, D + 10), latents joined to one-hot labels,
    is the digits. Each weight becomes an int8, to be multiplied by the scale of its output channel.
    `hand` (D,): the latent of the first handwriting. `directions`: a slider's name = (D,).
    `name`: of the training run, any text. Raises ValueError at a layer that the page lacks.
    """
    described = []
    for layer, slope in _folded(copy.deepcopy(layers).cpu().eval()):
        scales = layer.weight.abs().amax(dim=(0, 2, 3)).clamp_min(1e-30) / 127  # all may be zero
        weights = (layer.weight / scales[:, None, None]).round().to(torch.int8)
        bias = torch.zeros_like(scales) if layer.bias is None else layer.bias
        described.append({
            "kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0],
            "slope": slope, "bias": bias.tolist(), "scales": scales.tolist(),
            "weights": base64.b64encode(weights.numpy().tobytes()).decode()})
    sliders = {title: direction.tolist() for title, direction in directions.items()}
    network = {"name": name, "hand": hand.tolist(), "directions": sliders, "layers": described}
    text = json.dumps(network).replace("<", "\\u003c")  # so that no name ends the script
    template = (FOLDER / "data" / "writer.html").read_text(encoding="utf-8")
    return template.replace('"NETWORK"', text)
