"""What HandwrittenNumberGAN.ipynb uses and need not show: data, what surrounds a training loop,
pictures, the judge that scores drawings, and the page that writes numbers.

Images are float tensors (N, C, H, W), C = 1 or 3, with pixels from -1 (black) to 1 (white).
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
import sys
import time
import warnings
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

EDITION = 6  # the notebook's first cell compares it with its own
FOLDER = Path(__file__).resolve().parent
ARCHIVES = FOLDER / "data" / "MNIST" / "raw"
QUICK = os.environ.get("GAN_QUICK", "").strip() not in ("", "0")  # a small data set, for tests
warnings.filterwarnings("ignore", "Please use the new API|The given buffer")  # from torch 2.9


# Device, data, files ------------------------------------------------------------------------------

def choose_device() -> torch.device:
    """The device that GAN_DEVICE names, or else a GPU that works, or else the CPU.

    Says so if a GPU fails at its first operation. Raises torch's error if GAN_DEVICE's device does.
    """
    wish = os.environ.get("GAN_DEVICE", "").strip().lower()
    found = torch.accelerator.is_available() and torch.accelerator.current_accelerator().type
    name = wish or found or "cpu"
    try:
        torch.ones(2, device=name) + 1
    except Exception as error:  # PyTorch finds a GPU that is too old for it, which fails only here
        if wish:
            raise
        print(f"The device {name} fails ({error}), so the CPU does the work.")
        name = "cpu"
    return torch.device(name)


def load_mnist(train: bool, device="cpu", folder=ARCHIVES) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST (LeCun, Cortes and Burges, 1998), or other data in its format, from its archives.

    Returns images (N, 1, 28, 28) in [-1, 1] and labels (N,): 60,000 to train on or 10,000 to test
    with, or every 50th of these in quick mode. Raises OSError if an archive is missing or damaged.
    """
    def read(name, header, *shape):
        path = Path(folder) / f"{'train' if train else 't10k'}-{name}-ubyte.gz"
        try:
            with gzip.open(path) as file:  # gzip's own checksum finds damage
                content = bytearray(file.read())
            return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)
        except Exception as error:
            raise OSError(f"'{path}' is missing or damaged ({error}): `git checkout -- data` "
                          "brings it back") from error

    labels = read("labels-idx1", 8, -1)
    images = read("images-idx3", 16, len(labels), 1, 28, 28)
    if QUICK:
        images, labels = images[::50], labels[::50]
    return images.to(device).float().div_(127.5).sub_(1), labels.to(device).long()


def output_folder() -> Path:
    """Make the folder of the results: GAN_OUTPUT or `output`, and `quick` in it in quick mode."""
    folder = Path(os.environ.get("GAN_OUTPUT", "").strip() or "output").expanduser()
    folder = folder / "quick" if QUICK else folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path, content: bytes) -> None:
    """Write a file beside `path`, then rename it, so that a run that is killed leaves no half."""
    beside = Path(f"{path}.part")
    beside.write_bytes(content)
    os.replace(beside, path)


# Around a training loop ---------------------------------------------------------------------------

MEASURED = ("D's loss", "G's loss", "D(x)", "D(G(z))")  # what one turn measures
KEPT = ("turn", "history", "drawings")                  # what a game has beside its networks
IN_KERNEL = hasattr(get_ipython(), "kernel")            # in a notebook, not in a terminal


class ProgressLine(tqdm):
    """A tqdm bar which in a notebook is one display, so that a saved one keeps one line of text."""

    monitor_interval = 0  # no thread that watches it
    shown = None

    def display(self, msg=None, pos=None):
        if not IN_KERNEL:
            return super().display(msg, pos)
        line = {"text/plain": str(self) if msg is None else msg}
        if self.shown is None:
            self.shown = display(line, raw=True, display_id=True)
        elif line["text/plain"]:
            self.shown.update(line, raw=True)

    def refresh(self, nolock=False, lock_args=None):
        self.display()  # tqdm takes a lock here, which a stop in the middle would leave taken


ProgressLine.set_lock(contextlib.nullcontext())


class Training:
    """What surrounds a training loop: a line of progress, the stop button, pictures, a checkpoint.

        with Training(game, folder) as training:
            for turn in training:          # 1, 2, ... or from the checkpoint on
                ...                        # the moves of this turn
                training.note(measured)    # a tensor (4,): this turn's MEASURED

    A game has `settings` (a dataclass with name, epochs and turns_per_epoch), a `turn`, a list
    `history`, a dict `drawings`, the `average` of its generator, and parts with a `state_dict`.
    After each epoch its means join the history, the average draws from the latents `look_from`, and
    everything is saved in `folder`; where that fails, a printed line says so and the game goes on.
    A KeyboardInterrupt ends the loop, and the program goes on behind it. With `resume` the game
    goes on from its checkpoint, on a CPU bit for bit as if it had never stopped.
    Raises ValueError if the checkpoint has other settings (more or fewer epochs are allowed), and
    FloatingPointError if a mean or a weight is not finite.
    """

    def __init__(self, game, folder, look_from=None, resume=False):
        self.game, self.settings, self.look_from = game, game.settings, look_from
        self.turns = self.settings.epochs * self.settings.turns_per_epoch
        self.stem = Path(folder) / self.settings.name
        self.checkpoint = Path(f"{self.stem}_checkpoint.pt")
        if resume and self.checkpoint.exists():
            self.load()
        elif resume:
            print(f"There is no {self.checkpoint} to go on from: the game begins afresh.")
        elif self.checkpoint.exists() and game.turn == 0:
            print(f"{self.checkpoint.name} of an earlier game is replaced when the first epoch "
                  "ends. resume=True goes on with that game instead.")

    def __enter__(self):
        file = io.StringIO() if IN_KERNEL else sys.stdout  # tqdm ends with an empty line there
        self.line = ProgressLine(total=self.turns, initial=self.game.turn, unit="turn", ncols=116,
                                 mininterval=0.5, file=file, ascii=False)
        return self

    def __exit__(self, kind, error, trace):
        torch.set_float32_matmul_precision("highest")
        self.line.close()
        if kind is KeyboardInterrupt:
            print(f"Stopped after {self.game.turn:,} of {self.turns:,} turns. Cells that wait in "
                  "the queue run now, with what there is; to end them, too, restart the kernel.")
        return kind is KeyboardInterrupt  # True: the program goes on behind the `with`

    def __iter__(self):
        torch.set_float32_matmul_precision("medium")  # faster; a score needs the "highest"
        game, per_epoch = self.game, self.settings.turns_per_epoch
        if game.turn == 0:
            self.draw(epoch=0)
        self.sum, first, start = 0, game.turn, time.perf_counter()  # of this epoch
        while game.turn < self.turns:
            yield game.turn + 1
            game.turn += 1
            if game.turn % 50 == 0 or game.turn % per_epoch == 0:
                means = self.sum / (game.turn - first)
                self.report(dict(zip(MEASURED, means.tolist())))  # only here we wait for a GPU
            if game.turn % per_epoch == 0:
                self.end_epoch(time.perf_counter() - start)
                self.sum, first, start = 0, game.turn, time.perf_counter()

    def note(self, measured: torch.Tensor) -> None:
        self.sum = self.sum + measured

    def report(self, means):
        self.means, self.said = means, ", ".join(f"{name} {means[name]:.2f}" for name in MEASURED)
        finite = all(map(math.isfinite, means.values())) and all(
            weight.isfinite().all() for weight in self.game.average.parameters())  # after the move
        if not finite:
            raise FloatingPointError(
                f"training broke down before turn {self.game.turn:,} ({means}). Begin again with a "
                "lower learning_rate or a higher r1_weight; the last checkpoint is intact.")
        self.line.set_postfix_str(self.said, refresh=False)
        self.line.update(self.game.turn - self.line.n)

    def draw(self, epoch):
        if self.look_from is not None:
            self.game.drawings[epoch] = generate(self.game.average, self.look_from).cpu()

    def end_epoch(self, seconds):
        epoch = self.game.turn // self.settings.turns_per_epoch
        self.game.history.append({"epoch": epoch, **self.means, "seconds": seconds})
        self.draw(epoch)
        if self.look_from is not None and (epoch in (1, 2, 4, 8) or epoch == self.settings.epochs):
            plot_grid(self.game.drawings[epoch], columns=len(self.look_from) // 2,
                      title=f"epoch {epoch} ({seconds:.0f} s):   {self.said}")
        try:
            self.save()
            if self.look_from is not None:
                save_image(self.game.drawings[epoch], f"{self.stem}_epoch_{epoch:02}.png",
                           nrow=len(self.look_from) // 2, normalize=True, value_range=(-1, 1))
        except OSError as error:  # a full disk, or another program that holds the file
            print(f"Epoch {epoch} is not saved ({error}). The game goes on, and the next epoch "
                  "tries again.")

    def parts(self):
        return {name: part for name, part in vars(self.game).items() if hasattr(part, "state_dict")}

    def save(self):
        saved = {name: part.state_dict() for name, part in self.parts().items()}
        saved |= {name: getattr(self.game, name) for name in KEPT}
        saved["settings"] = json.dumps(dataclasses.asdict(self.settings), default=float)
        file = io.BytesIO()
        torch.save(saved | {"random": torch.get_rng_state()}, file)
        write_whole(self.checkpoint, file.getvalue())

    def load(self):
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        before = json.loads(saved["settings"])
        for name, now in dataclasses.asdict(self.settings).items():
            if name != "epochs" and before.get(name) != now:
                raise ValueError(f"{self.checkpoint} was made with {name} = {before.get(name)!r}, "
                                 f"which is now {now!r}: set it back, or leave resume=True out")
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])
        for name in KEPT:
            setattr(self.game, name, saved[name])
        torch.set_rng_state(saved["random"])


# Pictures -----------------------------------------------------------------------------------------

def check_images(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, C, H, W), N > 0, C = 1 or 3, unchanged; ValueError if not in [-1, 1]."""
    if not (images.ndim == 4 and images.shape[1] in (1, 3) and len(images)
            and images.abs().max() <= 1):  # NaN is refused, too
        largest = f"{images.abs().max():.4g}" if images.numel() else "nothing"
        raise ValueError("images must be (N, 1 or 3, H, W) with pixels in [-1, 1], not "
                         f"{tuple(images.shape)} up to {largest}")
    return images


def check_data(images: torch.Tensor) -> None:
    """Raise ValueError for images that training takes without an error, but learns nothing from."""
    flat = (check_images(images) == images[:, :, :1, :1]).flatten(1).all(dim=1).sum()
    if images.min() >= 0 or flat:
        raise ValueError(f"black must be -1, and here the darkest pixel is {images.min():.4g}; "
                         f"and {flat} of {len(images)} images are all of one colour")


def plot_grid(images: torch.Tensor, columns: int, title="", labels=(), row_labels=(),
              column_labels=(), scale=None, group=1) -> None:
    """Show images (N, C, H, W) in [-1, 1] as a grid, enlarged `scale` times (small ones: 2).

    `labels` stand in the corners of the images, `row_labels` on the left, one for each `group` of
    rows, and `column_labels` above.
    """
    grid = make_grid(check_images(images).detach().cpu() / 2 + 0.5, columns, 2, pad_value=0.25)
    down, across = images.shape[2] + 2, images.shape[3] + 2
    scale = scale or max(1, 64 // images.shape[3])
    figure = plt.figure(figsize=(grid.shape[2] * scale / 100, grid.shape[1] * scale / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)
    if images.shape[1] == 1:
        grid = grid.mul(11).round().div(11)  # twelve greys, for a small file
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="none", origin="upper")
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([(n + 0.5) * group * down for n in range(len(row_labels))], row_labels)
    axes.set_xticks([(n + 0.5) * across for n in range(len(column_labels))], column_labels)
    if group > 1:
        for n in range(1, len(row_labels)):
            axes.axhline(n * group * down + 0.5, color="white", linewidth=4)
    for n, label in enumerate(labels):
        axes.text(n % columns * across + 3, n // columns * down + 3, label, color="gold", va="top",
                  weight="bold")
    plt.show()
    plt.close()


def save_film(path, draw, frames, size, colours=40) -> None:
    """Save a looping film (.gif, or .png for Jupyter): `draw(axes, frame)` for each of the frames.

    The last frame comes first, too, since the first is what paper shows. `size`: inches, at 100
    pixels each. All frames share so many `colours`, for a small file.
    """
    figure, axes = plt.subplots(figsize=size, dpi=100, layout="constrained")
    pictures = []
    for frame in [frames[-1], *frames]:
        axes.clear()
        draw(axes, frame)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        pictures.append(Image.open(file).convert("RGB"))
    plt.close(figure)
    everything = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
    palette = everything.quantize(colours)
    first, *others = [picture.quantize(palette=palette, dither=0) for picture in pictures]
    first.save(path, save_all=True, append_images=others, loop=0,
               duration=[300] * len(others) + [2000])  # milliseconds


LINE = torch.linspace(-3, 3, 61)
PLACES = torch.cartesian_prod(LINE, LINE).flip(1)  # a net of points over the plane, row by row
ORANGE = LinearSegmentedColormap.from_list("orange", ["white", "#FFD9B0", "#FF7F0E"], 16)


def hits(points: torch.Tensor, centres: torch.Tensor, radius: float) -> tuple[float, int]:
    """The share of points (N, 2) that lie in a ring, and the number of rings that hold 1 %."""
    distance, nearest = torch.cdist(points, centres).min(dim=1)
    held = nearest[distance < radius].bincount(minlength=len(centres))
    return held.sum().item() / len(points), (held >= 0.01 * len(points)).sum().item()


def draw_plane(axes, title: str, points: torch.Tensor, values: torch.Tensor, centres: torch.Tensor,
               radius: float, limits=(0, 1)):
    """Draw points (N, 2) in blue, and behind them in orange the values (61 * 61,) at PLACES.

    `limits`: the values that are white and full orange; a grey line marks the middle. The rings
    around `centres` (K, 2) are drawn, and below stands what `hits` says of them. Returns what a
    colour bar needs.
    """
    share, reached = hits(points, centres, radius)
    values = values.view(61, 61).cpu().numpy()
    background = axes.imshow(values, cmap=ORANGE, vmin=limits[0], vmax=limits[1], origin="lower",
                             extent=(-3, 3, -3, 3), interpolation="bilinear")
    if values.min() < sum(limits) / 2 < values.max():
        axes.contour(LINE, LINE, values, [sum(limits) / 2], colors="gray", linewidths=1)
    for centre in centres.tolist():
        axes.add_patch(plt.Circle(centre, radius, fill=False, linewidth=1))
    axes.scatter(*points[:700].T.cpu(), s=5, linewidths=0, zorder=2)
    axes.set(title=title, xlabel=f"{reached} rings, {share:.0%} of points", xticks=[], yticks=[])
    return background


# The judge ----------------------------------------------------------------------------------------

def judge_network(kinds: int, channels: int = 1) -> nn.Sequential:
    """A small convolutional classifier: images (N, channels, H, W) in [-1, 1] -> logits (N, kinds).
    Without its last layer it gives 64 features of an image. The scores compare these.
    """
    layers = []
    for inputs, outputs, stride in [(channels, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)]:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                   nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten()),
               nn.Linear(64 * 7 * 7, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, kinds))


def train_judge(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8) -> nn.Sequential:
    """Train a judge: AdamW with a one-cycle rate, batches of 128, images shifted by up to 2 pixels.

    `images` (N, C, H, W) in [-1, 1], `labels` (N,), beginning with 0. Returns the judge in eval
    mode, on the images' device. It leaves the random numbers of the program as they were.
    """
    channels, height, width = images.shape[1:]
    steps = epochs * math.ceil(len(images) / 128)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        judge = judge_network(int(labels.max()) + 1, channels)
        judge.to(images.device, memory_format=torch.channels_last)  # faster
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(images), (128,))
            down, right = torch.randint(0, 5, (2,)).tolist()
            padded = functional.pad(images[batch], (2, 2, 2, 2), value=-1)
            logits = judge(padded[:, :, down:down + height, right:right + width])
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def load_judge(path=FOLDER / "data" / "judge.pt") -> nn.Sequential:
    """The judge with the weights stored at `path`, in eval mode, on the CPU."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    first_weight, *_, last_bias = weights.values()
    judge = judge_network(len(last_bias), first_weight.shape[1])
    judge.load_state_dict(weights)
    return judge.eval()


@torch.no_grad()
def judge_images(judge: nn.Sequential, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Let the judge read images (N, C, H, W): features (N, 64) and probabilities (N, kinds)."""
    features = torch.cat([judge[:-1](chunk) for chunk in check_images(images).split(500)])
    return features, judge[-1](features).softmax(dim=1)


@torch.no_grad()
def generate(generator: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Draw images (N, C, H, W) from latents in eval mode, in chunks; the mode is then as it was."""
    training = generator.training
    images = torch.cat([generator.eval()(chunk) for chunk in latent.split(1000)])
    generator.train(training)
    return images


# The page that writes numbers ---------------------------------------------------------------------

@torch.no_grad()
def writer_page(layers: nn.Sequential, hand: torch.Tensor, directions: torch.Tensor,
                name: str) -> str:
    """Put a generator into the page data/writer.html, which writes numbers in any browser.

    `layers`: transposed convolutions, with BatchNorm and LeakyReLU behind all but the last, and
    Tanh at the end; they turn latents joined to one-hot labels, (N, D + kinds), into images. `hand`
    (D,): the first handwriting. `directions` (K, D): one for each slider. `name`: of this run. In
    the page each weight is an int8, to be multiplied by the scale of its output channel.
    """
    layers = copy.deepcopy(layers).cpu().eval()
    convolutions, norms, activations = (
        [layer for layer in layers if isinstance(layer, kind)]
        for kind in (nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU))
    described = []
    for layer, norm, activation in zip_longest(convolutions, norms, activations):
        if norm is not None:
            layer = nn.utils.fuse_conv_bn_eval(layer, norm, transpose=True)
        scales = layer.weight.abs().amax(dim=(0, 2, 3)) / 127
        weights = (layer.weight / scales[:, None, None]).round().to(torch.int8).contiguous()
        described.append({
            "kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0],
            "slope": activation and activation.negative_slope, "bias": layer.bias.tolist(),
            "scales": scales.tolist(),
            "weights": base64.b64encode(weights.numpy().tobytes()).decode()})
    network = {"name": name, "hand": hand.tolist(), "directions": directions.tolist(),
               "layers": described}
    template = (FOLDER / "data" / "writer.html").read_text(encoding="utf-8")
    text = json.dumps(network).replace("<", "\\u003c")  # so that a name cannot end the script
    return template.replace('"NETWORK"', text)
