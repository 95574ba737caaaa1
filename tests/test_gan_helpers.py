"""Every public helper, against something independent of it."""

import ast
import functools
import gzip
import io
import os
import shutil
import signal
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, files, python, some_images
from matplotlib.figure import Figure
from PIL import Image
from torchvision.datasets import MNIST

import gan_helpers as helpers

LABELS = "t10k-labels-idx1-ubyte.gz"
greys = lambda images: (images[:, 0].numpy() + 1) * 127.5
NOWHERE = "http://127.0.0.1:9/"  # the discard port of this machine: refused at once


def test_helper_is_small_explains_what_is_public_and_imports_only_what_the_design_allows():
    source = (ROOT / "gan_helpers.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports} <= {
        "numpy", "torch", "torchvision", "matplotlib", "tqdm", *sys.stdlib_module_names}
    assert len(source.splitlines()) <= 690 and max(map(len, source.splitlines())) <= 120
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]
    assert len(public) > 20 and [node.name for node in public if not ast.get_docstring(node)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 30] == []


def test_choose_device_prefers_an_accelerator_obeys_the_variable_and_lists_what_is_there(monkeypatch):
    monkeypatch.delenv("GAN_DEVICE", raising=False)
    chosen, there = [], {"is_available": True, "current_accelerator": torch.device("cuda"), "device_count": 2}
    for name in list(there):
        monkeypatch.setattr(torch.accelerator, name, functools.partial(there.get, name))
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    names = [str(helpers.choose_device(name)) for name in (None, " CPU ", "cuda:1")]
    assert names == ["cuda", "cpu", "cuda:1"] and chosen == [1]
    with pytest.raises(ValueError, match="'cuda:7'.*: cpu, cuda, cuda:0, cuda:1$"):
        helpers.choose_device("cuda:7")
    there.update(is_available=False, device_count=0)
    monkeypatch.setenv("GAN_DEVICE", "cuda")
    with pytest.raises(ValueError, match="GAN_DEVICE = 'cuda' is not in this machine, which has: cpu$"):
        helpers.choose_device()


@pytest.mark.parametrize("train, stem", [(True, "train"), (False, "t10k")])
def test_load_mnist_against_a_parser_of_the_archives(train, stem):
    images, labels = helpers.load_mnist(train)
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    magic, *shape = np.frombuffer(raw, ">i4", 4)
    pixels = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(shape[0], 1, *shape[1:])
    assert magic == 2051 and torch.equal((images + 1).mul(127.5).round().byte(), pixels)
    torch.testing.assert_close(images[:2000], pixels[:2000] / 127.5 - 1)
    raw = gzip.decompress((helpers.ARCHIVES / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    assert labels.dtype == torch.int64 and labels.tolist() == list(raw[8:])


@pytest.fixture
def archives(tmp_path):
    """A private copy of the archives of the test set."""
    for path in helpers.ARCHIVES.glob("t10k*.gz"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_loading_writes_nothing_so_that_a_read_only_folder_works(archives):
    before = files(archives)
    archives.chmod(0o555)
    changed = archives.stat().st_mtime_ns  # when a file in it last came or went: permissions do not bind root
    assert len(helpers.load_mnist(False, folder=archives)[0]) == 10_000
    assert files(archives) == before and archives.stat().st_mtime_ns == changed
    archives.chmod(0o755)


DAMAGE = {"missing": Path.unlink, "empty": lambda path: path.write_bytes(b""),
          "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
          "a folder": lambda path: (path.unlink(), path.mkdir())}


@pytest.mark.parametrize("how", DAMAGE)
def test_without_a_network_a_bad_archive_is_named_and_left_alone(archives, monkeypatch, how):
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE, "https://example.org/mnist/"])  # on this machine, and elsewhere
    DAMAGE[how](archives / LABELS)
    before = files(archives)
    with pytest.raises(OSError) as raised:
        helpers.load_mnist(False, folder=archives)
    for part in (str(archives / LABELS), "missing" if how == "missing" else "damaged", "git checkout -- data",
                 NOWHERE, "the tests have no network"):
        assert part in str(raised.value)
    assert files(archives) == before


@pytest.mark.parametrize("how", ["missing", "one bit"])
def test_with_a_network_a_bad_archive_is_fetched_from_the_first_mirror_that_answers(archives, monkeypatch, capfd, how):
    DAMAGE[how](archives / LABELS)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    mirror = functools.partial(SimpleHTTPRequestHandler, directory=helpers.ARCHIVES)
    with ThreadingHTTPServer(("127.0.0.1", 0), mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [NOWHERE, f"http://127.0.0.1:{server.server_port}/"])
        assert len(helpers.load_mnist(False, folder=archives)[1]) == 10_000
        server.shutdown()
    assert (archives / LABELS).read_bytes() == (helpers.ARCHIVES / LABELS).read_bytes()
    assert capfd.readouterr() == ("", "")  # no bar of torchvision's in the notebook


def test_stop_button_in_a_thread_says_no_and_leaves_the_handler_alone():
    seen = []

    def look():
        with helpers.stop_button() as stop:
            seen.extend([stop(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [False, signal.default_int_handler] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_save_grid_puts_each_pixel_where_it_belongs(tmp_path):
    images = some_images(6, size=5)
    helpers.save_grid(images, tmp_path / "grid.png", columns=3, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).astype(float)
    assert picture.mode == "L" and pixels.shape == (2 * (2 * 7 + 2), 2 * (3 * 7 + 2))
    for index, grey in enumerate(greys(images)):
        row, column = divmod(index, 3)
        cell = pixels[2 * (row * 7 + 2):2 * (row * 7 + 7), 2 * (column * 7 + 2):2 * (column * 7 + 7)]
        assert np.abs(cell - grey.repeat(2, 0).repeat(2, 1)).max() <= 1


def test_plot_grid_is_low_pixel_for_pixel_and_labelled():
    images = some_images(64)
    figure = helpers.plot_grid(images, columns=16, title="epoch 3", labels=range(64), row_labels="abcd",
                               column_labels=range(100, 116), scale=1)
    axes, = figure.axes
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert axes.get_title() == "epoch 3" and texts.keys() == {*map(str, range(64)), *"abcd", *map(str, range(100, 116))}
    assert texts["17"] == (33, 33)  # second row, second column: in the corner of the image itself
    assert texts["b"][0] < 0 and texts["b"][1] == 45 and texts["101"] == (45, -3)  # the middle of that row and column
    shown = axes.images[0].get_array()
    assert len(np.unique(shown)) <= 13 and shown.shape == (4 * 30 + 2, 16 * 30 + 2)
    assert np.abs(shown[32:60, 32:60] - greys(images)[17]).max() <= 13
    figure.canvas.draw()
    box = axes.get_window_extent()
    assert (round(box.width), round(box.height)) == shown.shape[::-1] and figure.get_size_inches()[1] <= 1.7


def test_plot_grid_frames_those_and_only_those_that_it_is_told():
    figure = helpers.plot_grid(some_images(6), columns=3, scale=2, framed=[False, True, False, False, False, True])
    boxes = [patch.get_bbox() for patch in figure.axes[0].patches]
    assert [(round(box.x0), round(box.y0), round(box.x1), round(box.y1)) for box in boxes] == [
        (61, 1, 119, 59), (121, 61, 179, 119)]  # around second and last, inside the gaps


def test_a_film_has_every_figure_in_order_or_thirty_of_them_and_a_gif_beside_it(tmp_path):
    def levels(film):
        with Image.open(film) as image:
            assert image.info["loop"] == 0
            return [image.seek(frame) or image.convert("L").getpixel((10, 10)) for frame in range(image.n_frames)]

    grey = lambda level: Figure(figsize=(0.4, 0.3), dpi=100, facecolor=(level / 255,) * 3)
    film = helpers.film([grey(level) for level in range(0, 250, 25)], path=tmp_path / "film.gif")
    for source in (io.BytesIO(film), tmp_path / "film.gif"):
        assert levels(source) == pytest.approx(list(range(0, 250, 25)), abs=4)
    found = levels(io.BytesIO(helpers.film([grey(level) for level in range(100)])))
    assert len(found) <= 30 and found == sorted(found) and abs(found[0]) <= 4 and abs(found[-1] - 99) <= 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of many open figures, and a notebook shows that in red
        plt.close("all")
        helpers.film(helpers.plot_grid(some_images(1), 1) for _ in range(41))  # as many as section 3 has
    assert plt.get_fignums() == []


def toy_generator():
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 16),
                                    torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 4, 4)))
    generator(torch.randn(64, 3))  # BatchNorm's running statistics move away from their start
    return generator


def test_generate_is_eval_mode_in_chunks_and_leaves_no_trace():
    generator, latent = toy_generator(), torch.randn(1100, 3)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    images = helpers.generate(generator, latent)
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    with pytest.raises(RuntimeError):
        helpers.generate(generator, torch.zeros(2, 5))
    assert all(module.training for module in generator.modules())  # after an error, too
    torch.testing.assert_close(images, generator.eval()(latent).detach())
    assert not images.requires_grad and images.device.type == "cpu"
    helpers.generate(generator, latent)
    assert not generator.training


def test_output_folder_is_made_or_the_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAN_OUTPUT", raising=False)
    assert [helpers.output_folder(quick) for quick in (False, True)] == [Path("output"), Path("output/quick")]
    monkeypatch.setenv("GAN_OUTPUT", "else where/ö")
    assert helpers.output_folder(True).is_dir() and Path("output/quick").is_dir() and files(tmp_path) == {}
    Path("file").touch()
    monkeypatch.setenv("GAN_OUTPUT", "file")
    with pytest.raises(OSError, match="'file' cannot be written: set GAN_OUTPUT to a folder that can"):
        helpers.output_folder(False)


def test_write_whole_replaces_a_file_gives_it_ordinary_permissions_and_a_stop_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "kept.txt"
    for content in (b"old", b"new"):
        helpers.write_whole(path, content)
        assert files(tmp_path) == {"kept.txt": content}
    (tmp_path / "plain.txt").touch()
    assert path.stat().st_mode == (tmp_path / "plain.txt").stat().st_mode  # what the umask leaves, not 0600

    monkeypatch.setattr(os, "fsync", lambda file: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        helpers.write_whole(path, b"newest")
    assert files(tmp_path) == {"kept.txt": b"new", "plain.txt": b""}


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits and SIGKILL")
def test_a_kill_and_a_full_disk_leave_the_last_good_file_and_ctrl_c_ends_a_script_after_its_step(tmp_path):
    run = python(ROOT / "tests" / "hard_ends.py", cwd=tmp_path)
    names = ["checkpoint.pt", "grid.png", "film.gif", "scores.json", "generator.pt2"]
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == [
        "killed True the last good file", *(f"'{name}' cannot be written, and is as it was" for name in names),
        "step 1", "step 2", "step 3"], run.stdout + run.stderr
    assert files(tmp_path) == {name: b"the last good file" for name in names}
    assert run.returncode != 0 and "KeyboardInterrupt" in run.stderr


def test_exported_generator_gives_the_same_images_for_any_batch(tmp_path):
    generator = toy_generator()
    helpers.export_generator(generator, tmp_path / "generator.pt2", 3)
    assert generator.training and set(files(tmp_path)) == {"generator.pt2"}
    loaded = helpers.load_generator(tmp_path / "generator.pt2")
    assert (loaded.latent_dim, loaded.image_size) == (3, 4)
    for n in (1, 2, 7, 1000):
        latent = torch.randn(n, 3, requires_grad=True)
        images = loaded(latent)
        torch.testing.assert_close(images, helpers.generate(generator, latent))
        assert images.shape == (n, 1, 4, 4) and images.dtype == torch.float32 and not images.requires_grad


class Asked(torch.nn.Module):
    """A generator that asks for digits: latents of 3 and digits (N,) -> images of one grey each."""

    def forward(self, latent, digits):
        return (latent[:, :1] + digits[:, None]).tanh()[..., None, None].expand(-1, 1, 4, 4)


def test_a_generator_that_asks_for_digits_is_told_apart_and_takes_any_batch(tmp_path):
    helpers.export_generator(Asked(), tmp_path / "writer.pt2", 3, asks=True)
    loaded = helpers.load_generator(tmp_path / "writer.pt2")
    assert loaded.asks
    for n in (1, 2, 5):
        latent, digits = torch.randn(n, 3), torch.arange(n) * 2
        torch.testing.assert_close(loaded(latent, digits), Asked()(latent, digits))
