"""The public helpers, each against something independent of it; then bad input and bad places."""

import gzip
import io
import runpy
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import differences, flat, write_archives
from notebook_code import some_images, tiny_generator
from PIL import Image
from pretended_device import pretended_device

import gan_helpers as helpers

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


# Device, data, files ------------------------------------------------------------------------------

def test_a_gpu_that_works_is_preferred_and_the_variable_obeyed(monkeypatch, capsys):
    with pretended_device():
        for wish, chosen in [("", "cuda"), (" CPU ", "cpu"), ("cuda:0", "cuda:0")]:
            monkeypatch.setenv("GAN_DEVICE", wish)
            assert str(helpers.choose_device()) == chosen
    monkeypatch.setenv("GAN_DEVICE", "gpu")
    with pytest.raises(RuntimeError, match="cpu, cuda.*: gpu"):
        helpers.choose_device()
    monkeypatch.delenv("GAN_DEVICE")
    found = {"is_available": lambda: True, "current_accelerator": lambda: torch.device("xpu")}
    with mock.patch.multiple(torch.accelerator, create=True, **found):
        assert helpers.choose_device() == torch.device("cpu")
    assert "The device xpu fails (" in capsys.readouterr().out


@pytest.mark.parametrize("train, stem, step", [(True, "train", 50), (False, "t10k", 1)])
def test_load_mnist_against_a_parser_of_the_archives(monkeypatch, train, stem, step):
    monkeypatch.setattr(helpers, "QUICK", step > 1)
    images, labels = helpers.load_mnist(train)
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    magic, *shape = np.frombuffer(raw, ">i4", 4)
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(shape)[::step]
    assert magic == 2051 and images.shape == (len(pixels), 1, *shape[1:])
    assert np.abs((images[:, 0].numpy() + 1) * 127.5 - pixels).max() < 1e-4
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    assert labels.dtype == torch.int64 and labels.tolist() == list(raw[8::step])


@pytest.mark.parametrize("name, change", [
    (LABELS, lambda whole: None), (LABELS, lambda whole: b""), (LABELS, lambda whole: whole[:-9]),
    (IMAGES, lambda whole: gzip.compress(gzip.decompress(whole)[:-784]))],
    ids=["missing", "empty", "cut", "one image too few"])
def test_a_bad_archive_is_named_with_how_to_get_it_back(tmp_path, name, change):
    write_archives(tmp_path, kinds=3, training=1, test=20)
    content = change((tmp_path / name).read_bytes())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match="is missing or damaged .*git checkout -- data") as raised:
        helpers.load_mnist(False, folder=tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_output_folder_is_made_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("GAN_OUTPUT", " ~/else where/ö ")
    for quick, below in [(True, "quick"), (False, ".")]:
        monkeypatch.setattr(helpers, "QUICK", quick)
        assert helpers.output_folder() == tmp_path.resolve() / "else where" / "ö" / below


@pytest.mark.parametrize("value, quick", [
    ("1 ", True), ("true", True), ("yes", True), ("", False), ("0", False), (" 0 ", False)])
def test_anything_but_nothing_and_0_is_quick(monkeypatch, value, quick):
    monkeypatch.setenv("GAN_QUICK", value)
    assert runpy.run_path(helpers.__file__)["QUICK"] == quick


# Pictures -----------------------------------------------------------------------------------------

@pytest.fixture
def shown(monkeypatch):
    """The figures that were shown, in a list that grows."""
    figures = []

    def show():
        figures.append(plt.gcf())

    monkeypatch.setattr(plt, "show", show)
    return figures


@pytest.mark.parametrize("count, channels", [(6, 1), (5, 3), (1, 1)])
def test_each_pixel_is_where_it_belongs_and_each_label_in_its_own_image(shown, count, channels):
    images = some_images(count * channels).view(count, channels, 28, 28)
    helpers.plot_grid(images, columns=3, labels=range(count))
    axes, = shown[0].axes
    drawn = np.asarray(axes.images[0].get_array()) * 2 - 1
    edge = 2 if count > 1 else 0  # a picture of its own has none
    near = 1 / 11 if channels == 1 else 0  # twelve greys, but all colours
    for n, (image, text) in enumerate(zip(images.movedim(1, 3).numpy(), axes.texts, strict=True)):
        down, right = edge + 30 * (n // 3), edge + 30 * (n % 3)
        assert np.abs(drawn[down:down + 28, right:right + 28] - image).max() < near + 1e-5
        x, y = text.get_position()
        assert 0 <= x - right < 14 and 0 <= y - down < 14 and text.get_text() == str(n)
    assert plt.get_fignums() == []  # shown, and closed


def test_all_labels_lie_in_the_picture_and_groups_beside_theirs_though_the_last_is_short(shown):
    labels = {"column_labels": [-4, 100], "row_labels": ["direction 1", "told MLP,\nstretched"]}
    helpers.plot_grid(some_images(6), columns=2, title="Title", group=2, **labels)  # 2 rows and 1
    file = io.BytesIO()
    shown[0].savefig(file, bbox_inches="tight")  # as Jupyter does
    cut = shown[0].get_tightbbox()
    axes, = shown[0].axes
    texts = [axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()]
    assert [text.get_text() for text in texts[1:]] == [
        str(label) for row in labels.values() for label in row]
    for text in texts:
        box = text.get_window_extent().transformed(shown[0].dpi_scale_trans.inverted())
        assert cut.x0 <= box.x0 < box.x1 <= cut.x1 and cut.y0 <= box.y0 < box.y1 <= cut.y1
    between, = [line.get_ydata()[0] for line in axes.lines]
    assert between == pytest.approx(61, abs=1)
    first, second = axes.get_yticks()
    assert first == pytest.approx(31, abs=1) and between < second < 92


@pytest.mark.parametrize("images, part", [
    (torch.full((2, 1, 8, 8), torch.nan), "nan"), (torch.full((2, 1, 8, 8), 1.01), "1.01"),
    (torch.zeros(28, 28), r"\(28, 28\)"), (torch.zeros(0, 1, 28, 28), "nothing")])
def test_nan_too_bright_another_shape_or_no_images_are_refused(images, part):
    with pytest.raises(ValueError, match=part):
        helpers.plot_grid(images, columns=2)


@pytest.mark.parametrize("name, backend", [("film.gif", "agg"), ("film.png", "svg")])
def test_a_film_shows_every_frame_whatever_matplotlib_draws_on(tmp_path, name, backend):
    def draw(axes, grey):
        axes.imshow(np.full((9, 9), grey), cmap="gray", vmin=0, vmax=2)

    plt.switch_backend(backend)
    try:
        helpers.save_film(tmp_path / name, draw, [0, 1, 2], size=(2, 2))
    finally:
        plt.switch_backend("agg")
    seen = []
    with Image.open(tmp_path / name) as film:
        assert film.n_frames == 4 and film.info["loop"] == 0 and film.size == (200, 200)
        for frame in range(4):
            film.seek(frame)
            seen.append(film.convert("L").getpixel((100, 100)))
    assert seen == pytest.approx([255, 0, 128, 255], abs=12)  # paper shows the first: the end
    assert plt.get_fignums() == []


def test_the_plane_shows_values_points_and_rings_where_they_are_and_counts_hits():
    centres = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [2.0, -2.0]])
    points = torch.cat([centres[:1].expand(880, 2) + 0.2, centres[1:2].expand(8, 2),
                        torch.full((112, 2), 2.9)])
    figure, axes = plt.subplots()
    background = helpers.draw_plane(axes, "turn 1", points, (helpers.PLACES[:, 0] > 1).float(),
                                    centres, radius=0.3)
    assert background.origin == "lower" and background.get_extent() == [-3, 3, -3, 3]
    values = background.get_array()
    assert values[50, 30] == 0 and values[10, 50] == 1  # x decides, and it runs across
    contour, scattered = axes.collections
    assert np.allclose(contour.get_paths()[0].vertices[:, 0], 1.0, atol=0.06)
    assert np.allclose(scattered.get_offsets(), [1.2, 2.2]) and len(scattered.get_offsets()) == 700
    assert [list(patch.center) for patch in axes.patches] == centres.tolist()
    assert axes.get_title() == "turn 1"
    assert axes.get_xlabel() == "1 rings, 89% of points"  # since eight points are not 1 %
    assert helpers.hits(points, centres, 0.3) == (0.888, 1)
    plt.close(figure)


# The judge ----------------------------------------------------------------------------------------

def test_train_judge_learns_and_leaves_random_numbers_alone():
    kinds = torch.arange(257) % 3
    images = some_images(257) / 4 - 0.5 + kinds[:, None, None, None] / 2
    before = torch.get_rng_state()
    judge = helpers.train_judge(images, kinds, epochs=10)
    assert torch.equal(torch.get_rng_state(), before) and not judge.training
    unseen = some_images(257, seed=2) / 4 - 0.5 + kinds[:, None, None, None] / 2
    read = helpers.judge_images(judge, unseen)[1]
    assert read.shape == (257, 3) and (read.argmax(dim=1) == kinds).float().mean() > 0.9


def test_generate_is_in_eval_mode_and_leaves_no_trace():
    generator, latent = tiny_generator(3), torch.randn(2100, 3)
    before = flat(generator)
    images = helpers.generate(generator, latent)
    assert generator.training and differences(before, flat(generator)) == []
    torch.testing.assert_close(images, generator.eval()(latent).detach())
