"""The public helpers, each against something independent of it. Bad input: test_bad_input.py."""

import gzip
import inspect
import io
import os
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import differences, files, flat, python, some_images
from PIL import Image, ImageSequence

import gan_helpers as helpers


def test_what_is_public_has_a_docstring():
    public = [thing for name, thing in vars(helpers).items()
              if inspect.getmodule(thing) is helpers and not name.startswith("_")]
    assert len(public) > 15 and [thing.__name__ for thing in public if not thing.__doc__] == []


@pytest.mark.parametrize("wish, expected", [("", "cuda"), (" CPU ", "cpu"), ("cuda:1", "cuda:1")])
def test_choose_device_prefers_an_accelerator_and_obeys_the_variable(monkeypatch, wish, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("GAN_DEVICE", wish)
    assert str(helpers.choose_device()) == expected


def test_choose_device_names_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("GAN_DEVICE", "cuda")
    with pytest.raises(ValueError, match="GAN_DEVICE = 'cuda' .* which has: cpu$"):
        helpers.choose_device()


def greys(images):
    return (images[:, 0].numpy() + 1) * 127.5


@pytest.mark.parametrize("train, stem", [(True, "train"), (False, "t10k")])
def test_load_mnist_against_a_parser_of_the_archives(train, stem):
    images, labels = helpers.load_mnist(train)
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    magic, count, height, width = np.frombuffer(raw, ">i4", 4)
    assert magic == 2051 and images.shape == (count, 1, height, width)
    assert np.abs(greys(images).ravel() - np.frombuffer(raw, np.uint8, offset=16)).max() < 1e-4
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    assert labels.dtype == torch.int64 and labels.tolist() == list(raw[8:])


@pytest.mark.parametrize("count", [6, 1])
def test_save_grid_puts_each_pixel_where_it_belongs_of_a_single_image_too(tmp_path, count):
    helpers.save_grid(some_images(count, size=5), tmp_path / "grid.png", columns=3, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).astype(float)[::2, ::2]
    assert picture.mode == "L" and pixels.shape == (2 + 7 * -(-count // 3), 2 + 7 * 3)
    for index, expected in enumerate(greys(some_images(count, size=5))):
        down, right = 2 + 7 * (index // 3), 2 + 7 * (index % 3)
        assert np.abs(pixels[down:down + 5, right:right + 5] - expected).max() <= 1


@pytest.mark.parametrize("count", [6, 1])
def test_label_and_frame_sit_at_their_own_image_at_a_single_one_too(count):
    images = torch.full((count, 1, 28, 28), -1.0)
    images[-1] = 1  # the only white one, and the only one with a frame
    framed = [index == count - 1 for index in range(count)]
    axes, = helpers.plot_grid(images, columns=3, labels=range(count), framed=framed).axes
    white = axes.images[0].get_array() == 255
    frame, = axes.patches
    left, top, right, bottom = frame.get_bbox().extents.round().astype(int)
    assert white[top:bottom, left:right].sum() == white.sum() == 56 * 56
    x, y = axes.texts[-1].get_position()
    assert white[int(y), int(x)]


def test_plot_grid_draws_pixel_for_pixel_in_the_nearest_of_twelve_greys():
    figure = helpers.plot_grid(some_images(1), columns=1, title="t", row_labels=["row"], scale=1)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[-30:-2, -30:-2, 0].astype(float)
    assert len(np.unique(drawn)) == 12
    assert np.abs(drawn - greys(some_images(1))[0]).max() <= 255 / 11 / 2 + 1


def test_labels_and_title_lie_inside_the_saved_figure():
    figure = helpers.plot_grid(some_images(6), columns=2, title="Title", column_labels=[-4, 100],
                               row_labels=["direction 1", "epoch 16", "generated"])
    figure.savefig(io.BytesIO())
    for text in [*figure.axes[0].texts, figure.axes[0].title]:
        left, lower, right, upper = text.get_window_extent().extents
        assert 0 <= left < right <= figure.bbox.width, text
        assert 0 <= lower < upper <= figure.bbox.height, text


def test_plot_curves_draws_all_of_four_levels():
    levels = {"one": 1, "two": 2, "three": 3, "four": 4}
    axes, = helpers.plot_curves([1, 2], {"curve": [0, 0]}, "step", "loss", levels).axes
    drawn = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert drawn == {"curve": 0, **levels}


def test_a_film_has_every_figure_in_order_with_a_gif_beside_it_and_leaves_none_open(tmp_path):
    def figures():
        for grey in range(0, 250, 10):
            assert plt.get_fignums() == []  # the one before is closed
            yield plt.figure(figsize=(0.4, 0.3), facecolor=str(grey / 255))

    plt.close("all")
    film = helpers.film(figures(), tmp_path / "film.gif")
    for source in (io.BytesIO(film), tmp_path / "film.gif"):
        with Image.open(source) as image:
            frames = ImageSequence.Iterator(image)
            found = [frame.convert("L").getpixel((10, 10)) for frame in frames]
        assert image.info["loop"] == 0 and found == pytest.approx(range(0, 250, 10), abs=2)
    assert plt.get_fignums() == []
    with pytest.raises(ValueError, match="at least one figure"):
        helpers.film([], tmp_path / "none.gif")


def test_train_judge_takes_a_last_batch_of_one_repeats_and_leaves_random_numbers_alone():
    judges = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        judges.append(helpers.train_judge(some_images(129), torch.arange(129) % 10, epochs=1))
        assert torch.equal(torch.get_rng_state(), before)
    assert differences(*judges) == [] and not judges[0].training


def test_the_stored_judge_reads_the_test_set():
    images, labels = helpers.load_mnist(train=False)
    probabilities = helpers.judge_images(helpers.load_judge(), images)[1]
    assert (probabilities.argmax(dim=1) == labels).float().mean() >= 0.99


class Drawing(torch.nn.Module):
    """Latents (N, 3) and, where it is asked for some, digits (N,) -> images (N, 1, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 16)
        self.norm(1 + 2 * torch.randn(64, 3))  # its statistics move away from their start

    def forward(self, latent, digits=None):
        moved = self.norm(latent) if digits is None else self.norm(latent) + digits[:, None]
        return self.linear(moved).tanh().view(-1, 1, 4, 4)


def test_generate_is_in_eval_mode_in_chunks_and_leaves_no_trace():
    generator, latent, sizes = Drawing(), torch.randn(2100, 3), []
    generator.norm.register_forward_hook(lambda norm, inputs, moved: sizes.append(len(moved)))
    before = flat(generator)
    images = helpers.generate(generator, latent)
    assert sum(sizes) == 2100 and max(sizes) <= 1000 and not images.requires_grad
    with pytest.raises(RuntimeError):
        helpers.generate(generator, torch.zeros(2, 5))
    assert generator.norm.training  # after an error, too
    assert differences(before, flat(generator)) == []
    torch.testing.assert_close(images, generator.eval()(latent).detach())


@pytest.mark.parametrize("inputs", [1, 2], ids=["latents", "latents and digits"])
def test_an_export_draws_the_same_for_any_batch_without_its_class(tmp_path, inputs):
    generator = Drawing().eval()
    batches = [(torch.randn(n, 3), torch.arange(n) % 10)[:inputs] for n in (1, 2, 7, 1000)]
    helpers.export_generator(generator, tmp_path / "program.pt2", *batches[1])
    torch.save(batches, tmp_path / "batches.pt")
    run = python("-I", "-c", """if True:
        import torch
        program = torch.export.load("program.pt2").module()
        images = [program(*batch) for batch in torch.load("batches.pt")]
        torch.save(images, "images.pt")""", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for batch, images in zip(batches, torch.load(tmp_path / "images.pt")):
        torch.testing.assert_close(images, generator(*batch))


def test_output_folder_is_made_where_the_variable_says_or_the_variable_is_named(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAN_OUTPUT", raising=False)
    assert helpers.output_folder(quick=False) == Path("output")
    monkeypatch.setenv("GAN_OUTPUT", "else where/ö")
    assert helpers.output_folder(quick=True).samefile(tmp_path / "else where" / "ö" / "quick")
    Path("file").touch()
    monkeypatch.setenv("GAN_OUTPUT", "file")
    with pytest.raises(OSError, match="file' cannot be written: set GAN_OUTPUT"):
        helpers.output_folder(quick=False)


def test_write_whole_replaces_a_file_and_a_stop_leaves_the_old_one(tmp_path, monkeypatch):
    for content in (b"old", b"new"):
        helpers.write_whole(tmp_path / "kept", content)
        assert files(tmp_path) == {"kept": content}
    monkeypatch.setattr(os, "replace", lambda *paths: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        helpers.write_whole(tmp_path / "kept", b"newest")
    assert files(tmp_path) == {"kept": b"new"}


def test_a_kill_while_it_writes_leaves_a_whole_file(tmp_path):
    python("-c", """if True:
        import os, signal, threading, gan_helpers
        gan_helpers.write_whole("kept", b"a" * 30_000_000)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            gan_helpers.write_whole("kept", b"b" * 30_000_000)""", cwd=tmp_path)
    assert (tmp_path / "kept").read_bytes() in (b"a" * 30_000_000, b"b" * 30_000_000)


def test_ctrl_c_in_a_plain_script_ends_it_after_its_step():
    run = python("-c", """if True:
        import signal, gan_helpers
        with gan_helpers.stop_button() as stop:
            while not stop():
                signal.raise_signal(signal.SIGINT)
                print("the end of the step")
        print("the next section")""")
    assert run.stdout == "the end of the step\n"
    assert run.returncode != 0 and run.stderr.rstrip().endswith("KeyboardInterrupt")
