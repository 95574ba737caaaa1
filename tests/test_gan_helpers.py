"""The public helpers, each against something independent of it; then bad input and bad places."""

import gzip
import io
import os
import shutil
import types
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import differences, files, flat, write_archives
from notebook_code import some_images, tiny_generator
from PIL import Image
from pretended_device import pretended_device

import gan_helpers as helpers

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
SHAPE = (2, 1, 28, 28)


# Device and data ----------------------------------------------------------------------------------

def test_a_gpu_is_preferred_the_variable_obeyed_and_what_is_not_there_refused(monkeypatch):
    with pretended_device():
        for wish, chosen in [("", "cuda"), (" CPU ", "cpu"), ("cuda:0", "cuda:0")]:
            monkeypatch.setenv("GAN_DEVICE", wish)
            assert str(helpers.choose_device()) == chosen
        for wish in ("cuda:7", "mps"):
            monkeypatch.setenv("GAN_DEVICE", wish)
            with pytest.raises(ValueError, match=f"'{wish}' .* which has: cuda, cuda:0, cpu$"):
                helpers.choose_device()


def test_a_gpu_that_fails_at_its_first_operation_leaves_the_work_to_the_cpu(monkeypatch, capsys):
    monkeypatch.delenv("GAN_DEVICE", raising=False)
    accelerator = {"is_available": lambda: True, "device_count": lambda: 1,
                   "current_accelerator": lambda: torch.device("xpu")}
    with mock.patch.multiple(torch.accelerator, create=True, **accelerator):
        assert helpers.choose_device() == torch.device("cpu")
    assert "The device xpu fails (" in capsys.readouterr().out


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


@pytest.mark.parametrize("length", [None, 0, 2000], ids=["missing", "empty", "cut"])
def test_a_bad_archive_is_named_with_how_to_get_it_back(tmp_path, length):
    shutil.copy(helpers.ARCHIVES / IMAGES, tmp_path)
    if length is not None:
        (tmp_path / LABELS).write_bytes((helpers.ARCHIVES / LABELS).read_bytes()[:length])
    with pytest.raises(OSError, match="git checkout -- data") as raised:
        helpers.load_mnist(False, folder=tmp_path)
    assert str(tmp_path / LABELS) in str(raised.value)


def test_swapped_archives_and_pictures_of_another_size_are_refused(tmp_path):
    write_archives(tmp_path, kinds=3, training=9, test=20, size=32)
    with pytest.raises(OSError, match=r"20 images of \(32, 32\) pixels, .* 20 labels: there must"):
        helpers.load_mnist(False, folder=tmp_path)
    (tmp_path / IMAGES).write_bytes((tmp_path / LABELS).read_bytes())
    with pytest.raises(OSError, match=f"{IMAGES}' is missing or damaged .another kind of file"):
        helpers.load_mnist(False, folder=tmp_path)


# Pictures -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("count, columns", [(6, 3), (2, 2)])
def test_save_grid_puts_each_pixel_where_it_belongs(tmp_path, count, columns):
    helpers.save_grid(some_images(count, size=5), tmp_path / "grid.png", columns, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).astype(float)[::2, ::2]
    assert pixels.shape == (2 + 7 * (count // columns), 2 + 7 * columns)
    for index, expected in enumerate(greys(some_images(count, size=5))):
        down, right = 2 + 7 * (index // columns), 2 + 7 * (index % columns)
        assert np.abs(pixels[down:down + 5, right:right + 5] - expected).max() <= 1


@pytest.mark.parametrize("count", [6, 1])
def test_a_label_sits_in_its_own_image_in_a_single_one_too(shown, count):
    images = torch.full((count, 1, 28, 28), -1.0)
    images[-1] = 1  # the only white one
    helpers.plot_grid(images, columns=3, labels=range(count))
    axes, = shown[0].axes
    white = axes.images[0].get_array() == 255
    x, y = axes.texts[-1].get_position()
    assert white[int(y), int(x)] and white.sum() == 56 * 56


def test_labels_and_title_lie_in_the_picture_that_jupyter_cuts_out(shown):
    labels = {"column_labels": [-4, 100], "row_labels": ["direction 1", "epoch 16", "generated"]}
    helpers.plot_grid(some_images(6), columns=2, title="Title", **labels)
    file = io.BytesIO()
    shown[0].savefig(file, bbox_inches="tight")  # as the inline backend does
    cut = shown[0].get_tightbbox()
    axes, = shown[0].axes
    texts = [axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()]
    assert [text.get_text() for text in texts[1:]] == [
        str(label) for row in labels.values() for label in row]
    for text in texts:
        box = text.get_window_extent().transformed(shown[0].dpi_scale_trans.inverted())
        assert cut.x0 <= box.x0 < box.x1 <= cut.x1 and cut.y0 <= box.y0 < box.y1 <= cut.y1
    assert plt.get_fignums() == []  # shown, and closed


def test_plot_curves_draws_all_of_four_levels(shown):
    levels = {"one": 1, "two": 2, "three": 3, "four": 4}
    helpers.plot_curves([1, 2], {"curve": [0, 0]}, "step", "loss", levels)
    drawn = {line.get_label(): line.get_ydata()[0] for line in shown[0].axes[0].lines}
    assert drawn == {"curve": 0, **levels}


def test_plot_plane_draws_values_points_and_rings_where_they_are(shown):
    places = helpers.PLACES
    panel = {"title": "turn 1", "caption": "here", "values": (places[:, 0] > 1).float(),
             "points": torch.tensor([[0.5, -2.0]]).expand(900, 2)}
    centres = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    other = {**panel, "values": (places[:, 1] > 1).float(), "mark": [2.0, -2.5]}
    helpers.plot_plane([panel, other], (centres, 0.3))
    left, right, _ = shown[0].axes
    for axes, expected in [(left, 0.0), (right, 1.0)]:  # above 1 at the place (0, 2) of the plane
        image = axes.images[0]
        assert image.origin == "lower" and image.get_extent() == [-3, 3, -3, 3]
        assert image.get_array()[50, 30] == expected
    contour, edge, rings, points = left.collections
    assert np.allclose(contour.get_paths()[0].vertices[:, 0], 1.0, atol=0.06)  # half of it
    assert np.array_equal(rings.get_offsets(), centres) and len(points.get_offsets()) == 700
    assert rings.get_widths() == edge.get_widths() == pytest.approx(0.6)
    assert np.allclose(points.get_offsets(), [0.5, -2.0]) and left.get_title() == "turn 1"
    assert right.lines[0].get_xydata().tolist() == [[2.0, -2.5]]


def test_plot_map_puts_strokes_on_the_tint_of_their_digit_which_fades_to_grey(shown):
    images = torch.full((4, 1, 2, 2), -1.0)
    images[2, 0, 1, 1] = 1  # the only stroke
    helpers.plot_map(images, torch.tensor([0, 9, 10, 0]), torch.tensor([1, 1, 1, 0.3]), columns=4)
    drawn = shown[0].axes[0].images[0].get_array()
    red, brown, white = (0xCC, 0x66, 0x77), (0x8C, 0x5A, 0x3C), (255, 255, 255)
    for column, colour in [(0, red), (2, brown), (4, red), (5, white), (6, (158, 158, 158))]:
        assert np.abs(255 * drawn[1, column] - colour).max() <= 255 / 24 + 1e-3  # few colours
    keys = [text.get_text() for text in shown[0].legends[0].get_texts()]
    assert keys == ["0", "9", "10", "unsure"]


def test_groups_of_rows_have_a_wide_white_gap_and_one_label(shown):
    helpers.plot_grid(torch.zeros(8, 1, 28, 28), columns=2, group=2, row_labels=["one", "two"])
    axes, = shown[0].axes
    rows = axes.images[0].get_array()[:, 10]  # through the first column of images
    white = np.flatnonzero(rows == 255)
    assert (white[0], white[-1]) == (2 * 62, 2 * 62 + 7) and len(white) == 8
    middles = [white[0] / 2, (white[-1] + len(rows)) / 2]
    assert axes.get_yticks() == pytest.approx(middles, abs=3)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]


def test_plot_games_puts_both_verdicts_beside_their_own_group(shown):
    games = [{"name": name, "drawn": some_images(9), "D(x)": real, "D(G(z))": fake}
             for name, real, fake in [("first", 0.9, 0.1), ("second", 0.4, 0.6)]]
    helpers.plot_games(games, columns=4, group=2)
    grid, verdicts = shown[0].axes
    for number, column in [(-2, "D(x)"), (-1, "D(G(z))")]:
        x, y = zip(*verdicts.collections[number].get_offsets().tolist())
        assert x == pytest.approx([game[column] for game in games])
        assert y == pytest.approx(grid.get_yticks())
    assert [text.get_text() for text in verdicts.texts] == [
        "real 0.90", "real 0.40", "fake 0.10", "fake 0.60"]
    assert grid.bbox.y0 == verdicts.bbox.y0 and grid.get_ylim()[0] == pytest.approx(
        verdicts.get_ylim()[0], abs=1)  # so the same height is the same place


def test_plot_balls_fills_and_counts_the_points_in_a_ball(shown):
    centres, points = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 0.9], [4.0, 0.6]])
    helpers.plot_balls({"recall": (centres, torch.tensor([1.0, 0.5]), "C0", points, "black")})
    axes, = shown[0].axes
    assert axes.get_title() == "recall: 1 of 2" and len(axes.patches) == 2
    _, inside, outside = axes.collections
    assert np.allclose(inside.get_offsets(), [[0, 0.9]])
    assert np.allclose(outside.get_offsets(), [[4, 0.6]]) and len(outside.get_facecolors()) == 0


def test_plot_changes_shows_lighter_in_green_and_darker_in_purple(shown):
    before, after = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    after[0], after[1] = 1, -1
    helpers.plot_changes(before, after, ["one", "two"])
    drawn = shown[0].axes[0].images[0].get_array()
    lighter, darker = drawn[-4, 4], drawn[-4, 10]
    assert lighter[1] > max(lighter[0], lighter[2]) and darker[1] < min(darker[0], darker[2])
    assert np.allclose(drawn[4, 4], 0.5) and np.allclose(drawn[10, 4], 1)  # before, after


def test_plot_tradeoff_joins_the_points_of_a_line_and_labels_each(shown):
    line = [(0.1, 0.2, "x 1"), (0.3, 0.4, "x 2")]
    helpers.plot_tradeoff({"real": [(0.9, 0.8, "")], "line": line}, "precision", "recall")
    axes, = shown[0].axes
    assert np.allclose(axes.lines[1].get_xydata(), [[0.1, 0.2], [0.3, 0.4]])
    assert {text.get_text(): text.xy for text in axes.texts} == {
        "": (0.9, 0.8), "x 1": (0.1, 0.2), "x 2": (0.3, 0.4)}


def test_plot_histograms_counts_all_of_both(shown):
    helpers.plot_histograms({"one": torch.arange(10.0), "other": torch.arange(5.0)}, "distance")
    one, other = (patch.get_xy() for patch in shown[0].axes[0].patches)
    assert other[:, 0].max() == one[:, 0].max() == 9  # on the same axis
    assert [text.get_text() for text in shown[0].axes[0].get_legend().get_texts()] == [
        "one", "other"]


def test_plot_paths_frames_each_path_in_full(shown):
    helpers.plot_paths({"far": [(1, 0), (-9, 4)] * 20, "near": [(1, 0), (0, -1)] * 20}, "x", "y")
    far, near, _ = shown[0].axes
    assert far.get_xlim()[1] > 9 and 1 < near.get_xlim()[1] < 2


def test_a_film_of_the_plane_has_a_frame_for_each_panel_and_opens_no_figures(recwarn):
    panel = {"title": "turn 1", "caption": "here", "values": helpers.PLACES[:, 0] / 6 + 0.5,
             "points": torch.tensor([[0.5, -2.0]])}
    before = plt.get_fignums()
    content = helpers.plane_film([panel] * 22 + [{**panel, "title": "turn 2"}],
                                 (torch.tensor([[1.0, 2.0]]), 0.3))
    with Image.open(io.BytesIO(content)) as film:
        assert film.format == "PNG" and film.n_frames == 2  # frames that are alike become one
        orange, = {film.convert("RGB").getpixel((355, 200))}
    assert orange == pytest.approx((0xFF, 0x7F, 0x0E), abs=40)
    assert plt.get_fignums() == before  # more than 20 at once would be warned of
    assert [warning for warning in recwarn if "figures" in str(warning.message)] == []


@pytest.mark.parametrize("backend", ["agg", "svg"])
def test_a_film_has_a_frame_for_each_epoch_whatever_matplotlib_draws_on(tmp_path, backend):
    paths = tmp_path / "film.gif", tmp_path / "film.png"
    before = plt.get_backend()
    plt.switch_backend(backend)
    try:
        helpers.film({epoch: torch.full(SHAPE, epoch - 1.0) for epoch in range(3)}, 2, *paths)
    finally:
        plt.switch_backend(before)
    for path in paths:
        with Image.open(path) as film:
            assert film.n_frames == 3 and film.info["loop"] == 0
            seen = []
            for frame in range(3):
                film.seek(frame)
                seen.append((film.convert("L").getpixel((40, 60)), film.info["duration"]))
        assert [duration for _, duration in seen] == [400, 400, 2000]
        assert [grey for grey, _ in seen] == pytest.approx([0, 128, 255], abs=12)


def test_a_missing_picture_is_a_sentence(monkeypatch, tmp_path):
    assert helpers.picture("can_you_tell.png", width=500).width == 500
    monkeypatch.setattr(helpers, "FOLDER", tmp_path)
    assert helpers.picture("can_you_tell.png", width=500).startswith("can_you_tell.png is missing")


@pytest.mark.parametrize("images, part", [
    (torch.full(SHAPE, torch.nan), "nan"), (torch.full(SHAPE, 1.01), "1.01"),
    (torch.zeros(28, 28), r"\(28, 28\)"), (torch.zeros(0, 1, 28, 28), "at least 1")])
def test_nan_too_bright_another_shape_or_no_images_are_refused_and_not_written(
        tmp_path, images, part):
    with pytest.raises(ValueError, match=part):
        helpers.save_grid(images, tmp_path / "grid.png", columns=2)
    assert files(tmp_path) == {}


# The judge ----------------------------------------------------------------------------------------

def test_train_judge_learns_and_leaves_random_numbers_alone():
    kinds = torch.arange(257) % 3
    images = some_images(257) / 4 - 0.5 + kinds[:, None, None, None] / 2
    before = torch.get_rng_state()
    judge = helpers.train_judge(images, kinds, epochs=20)
    assert torch.equal(torch.get_rng_state(), before) and not judge.training
    unseen = some_images(257, seed=2) / 4 - 0.5 + kinds[:, None, None, None] / 2
    read = helpers.judge_images(judge, unseen)[1]
    assert read.shape == (257, 3) and (read.argmax(dim=1) == kinds).float().mean() > 0.9


def test_of_larger_images_the_judge_sees_the_centre():
    judge, images = helpers.load_judge(), some_images(3)
    framed = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)
    for seen, expected in zip(helpers.judge_images(judge, framed),
                              helpers.judge_images(judge, images)):
        assert torch.equal(seen, expected)
    with pytest.raises(ValueError, match=r"at least 28 x 28 pixels, not \(27, 28\)"):
        helpers.judge_images(judge, images[:, :, 1:])


def test_a_damaged_judge_is_named_with_how_to_get_it_back(tmp_path):
    (tmp_path / "judge.pt").write_bytes(helpers.JUDGE_FILE.read_bytes()[:-200])
    with pytest.raises(ValueError, match="judge.pt' is missing or damaged .*git checkout -- data"):
        helpers.load_judge(tmp_path / "judge.pt")


def test_generate_is_in_eval_mode_and_leaves_no_trace():
    generator, latent = tiny_generator(3), torch.randn(2100, 3)
    before = flat(generator)
    images = helpers.generate(generator, latent)
    assert generator.training and differences(before, flat(generator)) == []
    torch.testing.assert_close(images, generator.eval()(latent).detach())


def test_exact_products_are_exact_inside_and_leave_the_precision_as_it_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        product = helpers.exact_products()(torch.get_float32_matmul_precision)
        assert product() == "highest" and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# Settings, files ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value, message", [
    *[("learning_rate", value, f"learning_rate = {value!r} must be from 0.0 to 1.0")
      for value in ("2e-4", None, float("nan"), -0.1, 1.5, torch.tensor(0.5))],
    *[("batch_size", value, f"batch_size = {value!r} must be from 2 to 60,000 (a whole number)")
      for value in (1, 32.0)]])
def test_a_number_out_of_its_range_is_refused_by_name_and_value(name, value, message):
    lowest = {setting: low for setting, (low, _) in helpers.RANGES.items()}
    helpers.check_settings(types.SimpleNamespace(name="mlp", **lowest))  # these can work
    with pytest.raises(ValueError) as error:
        helpers.check_settings(types.SimpleNamespace(name="mlp", **{**lowest, name: value}))
    assert str(error.value) == message


def test_a_checksum_changes_with_a_grey_and_with_the_order_and_not_with_rounding():
    images = some_images(4).add(1).mul(127.5).round().div(127.5).sub(1)
    other = images.clone()
    other[3, 0, 27, 27] += 1 / 127.5 if other[3, 0, 27, 27] < 0 else -1 / 127.5
    different = [images, other, images.flip(0), images.flip(3), images / 2]
    assert len({helpers.checksum(one) for one in different}) == len(different)
    assert helpers.checksum(images) == helpers.checksum((images + 3).sub(3).clamp(-1, 1))


def test_output_folder_is_made_where_the_variable_says_or_the_variable_is_named(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAN_OUTPUT", "else where/ö")
    assert helpers.output_folder(quick=True).samefile(tmp_path / "else where" / "ö" / "quick")
    Path("file").touch()
    monkeypatch.setenv("GAN_OUTPUT", "file")
    with pytest.raises(OSError, match="file' cannot be written: set GAN_OUTPUT"):
        helpers.output_folder(quick=False)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows sets no limit to a file's size")
    (tmp_path / "checkpoint").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # bytes that a file can have
    try:
        with pytest.raises(OSError, match="checkpoint' cannot be written, and is as it was"):
            helpers.write_whole(tmp_path / "checkpoint", bytes(5001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == {"checkpoint": b"old"}


def test_a_picture_that_cannot_be_replaced_is_told_and_ends_nothing(tmp_path, monkeypatch, capsys):
    def refuse(source, target):
        raise PermissionError(f"{target} is open in another program")  # as Windows does

    (tmp_path / "grid.png").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    helpers.save_grid(some_images(4), tmp_path / "grid.png", columns=2)
    assert "grid.png' cannot be written, and is as it was" in capsys.readouterr().out
    assert files(tmp_path) == {"grid.png": b"old"}


def test_an_exported_generator_draws_without_gradients_and_stays_as_it_is(tmp_path):
    generator = tiny_generator(3)
    before, file = flat(generator), tmp_path / "tiny.pt2"
    helpers.export_generator(generator, file, torch.randn(10, 3))
    assert generator.training and differences(before, flat(generator)) == []
    program = torch.export.load(file).module()
    for latent in (torch.randn(1, 3), torch.randn(1000, 3)):
        drawn = program(latent)
        np.testing.assert_allclose(drawn.numpy(), generator.eval()(latent).detach(), atol=1e-5)
    with pytest.raises(ValueError, match="pixels in"):
        helpers.export_generator(torch.nn.Unflatten(1, (1, 1, 3)), file, torch.full((2, 3), 5.0))
