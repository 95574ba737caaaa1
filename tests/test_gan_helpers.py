"""The public helpers, each against something independent of it; then bad input and bad places."""

import gzip
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import differences, files, flat, python, some_images
from PIL import Image

import gan_helpers as helpers

LABELS = "t10k-labels-idx1-ubyte.gz"
SHAPE = (2, 1, 28, 28)


@pytest.mark.parametrize("present, wish, chosen", [
    (True, "", "cuda"), (True, " CPU ", "cpu"), (True, "cuda:1", "cuda:1"), (False, "", "cpu")])
def test_an_accelerator_is_preferred_and_the_variable_obeyed(monkeypatch, present, wish, chosen):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: present)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("GAN_DEVICE", wish)
    assert str(helpers.choose_device()) == chosen
    monkeypatch.setenv("GAN_DEVICE", "mps")
    with pytest.raises(ValueError, match="GAN_DEVICE = 'mps' .* which has: .*cpu$"):
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


@pytest.mark.parametrize("count, rows", [(6, 2), (1, 1)])
def test_save_grid_puts_each_pixel_where_it_belongs(tmp_path, count, rows):
    helpers.save_grid(some_images(count, size=5), tmp_path / "grid.png", columns=3, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).astype(float)[::2, ::2]
    assert pixels.shape == (2 + 7 * rows, 2 + 7 * 3)
    for index, expected in enumerate(greys(some_images(count, size=5))):
        down, right = 2 + 7 * (index // 3), 2 + 7 * (index % 3)
        assert np.abs(pixels[down:down + 5, right:right + 5] - expected).max() <= 1


@pytest.mark.parametrize("count", [6, 1])
def test_a_label_sits_in_its_own_image_in_a_single_one_too(count):
    images = torch.full((count, 1, 28, 28), -1.0)
    images[-1] = 1  # the only white one
    axes, = helpers.plot_grid(images, columns=3, labels=range(count)).axes
    white = axes.images[0].get_array() == 255
    x, y = axes.texts[-1].get_position()
    assert white[int(y), int(x)] and white.sum() == 56 * 56


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


def test_train_judge_takes_a_last_batch_of_one_and_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    judge = helpers.train_judge(some_images(129), torch.arange(129) % 10, epochs=1)
    assert torch.equal(torch.get_rng_state(), before) and not judge.training


def test_generate_is_in_eval_mode_and_leaves_no_trace(story):
    generator, latent = story.Generator(3, (16,)), torch.randn(2100, 3)
    before = flat(generator)
    images = helpers.generate(generator, latent)
    assert generator.training and differences(before, flat(generator)) == []
    torch.testing.assert_close(images, generator.eval()(latent).detach())


def test_output_folder_is_made_where_the_variable_says_or_the_variable_is_named(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAN_OUTPUT", "else where/ö")
    assert helpers.output_folder(quick=True).samefile(tmp_path / "else where" / "ö" / "quick")
    Path("file").touch()
    monkeypatch.setenv("GAN_OUTPUT", "file")
    with pytest.raises(OSError, match="file' cannot be written: set GAN_OUTPUT"):
        helpers.output_folder(quick=False)


def test_a_first_ctrl_c_ends_a_script_after_its_step_and_a_second_at_once():
    run = python("-c", """if True:
        import signal, gan_helpers
        for presses in (1, 2):
            try:
                with gan_helpers.stop_button() as stop:
                    while not stop():
                        for _ in range(presses):
                            signal.raise_signal(signal.SIGINT)
                        print("the end of the step")
                print("the next section")
            except KeyboardInterrupt:
                print("interrupted")""")
    assert run.stdout == "the end of the step\ninterrupted\ninterrupted\n", run.stderr


@pytest.mark.parametrize("length", [None, 0, 2000], ids=["missing", "empty", "cut"])
def test_a_bad_archive_is_named_with_how_to_get_it_back(tmp_path, length):
    shutil.copy(helpers.ARCHIVES / "t10k-images-idx3-ubyte.gz", tmp_path)
    if length is not None:
        (tmp_path / LABELS).write_bytes((helpers.ARCHIVES / LABELS).read_bytes()[:length])
    with pytest.raises(OSError, match="git checkout -- data") as raised:
        helpers.load_mnist(False, folder=tmp_path)
    assert str(tmp_path / LABELS) in str(raised.value)


def test_a_damaged_judge_is_named_with_how_to_get_it_back(tmp_path):
    (tmp_path / "judge.pt").write_bytes(helpers.JUDGE_FILE.read_bytes()[:-200])
    with pytest.raises(ValueError, match="judge.pt' is missing or damaged .*git checkout -- data"):
        helpers.load_judge(tmp_path / "judge.pt")


@pytest.mark.parametrize("images, part", [
    (torch.full(SHAPE, torch.nan), "nan"), (torch.full(SHAPE, 1.01), "1.01"),
    (torch.zeros(28, 28), r"\(28, 28\)"), (torch.zeros(0, 1, 28, 28), "at least 1")])
def test_nan_too_bright_another_shape_or_no_images_are_refused_and_not_written(
        tmp_path, images, part):
    with pytest.raises(ValueError, match=part):
        helpers.save_grid(images, tmp_path / "grid.png", columns=2)
    assert files(tmp_path) == {}


def test_a_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows sets no limit to a file's size")
    (tmp_path / "grid").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # bytes that a file can have
    try:
        with pytest.raises(OSError, match="grid' cannot be written, and is as it was"):
            helpers.save_grid(some_images(9), tmp_path / "grid", columns=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == {"grid": b"old"}
