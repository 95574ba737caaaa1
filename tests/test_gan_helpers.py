"""Every public helper, against something independent of it."""

import ast
import dataclasses
import gzip
import hashlib
import io
import shutil
import struct
import subprocess
import sys
import threading
import types
from dataclasses import make_dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision.datasets import MNIST

import gan_helpers as helpers

ARCHIVES = ROOT / "data" / "MNIST" / "raw"


def some_images(n=6, size=28, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def data_copy(tmp_path):
    """A private copy of the archives, not unpacked."""
    (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    for path in ARCHIVES.glob("*.gz"):
        shutil.copy(path, tmp_path / "data" / "MNIST" / "raw")
    return tmp_path / "data"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # the discard port: refused at once


# ---------------------------------------------------------------------------------------------------------------------
# The module itself


def test_helper_imports_only_what_the_design_allows_and_explains_what_is_public():
    source = (ROOT / "gan_helpers.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = {(node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    allowed = {"numpy", "torch", "torchvision", "matplotlib", "tqdm", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported} <= allowed
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            inner = node.name in ("display", "forward", "block", "report", "record")
            assert ast.get_docstring(node) or inner, f"{node.name} has no docstring"
    assert max(map(len, source.splitlines())) <= 120


# ---------------------------------------------------------------------------------------------------------------------
# Settings, seeding and device


def test_check_settings_accepts_the_ends_of_a_range():
    settings = make_dataclass("Settings", ["size", "rate", "widths"])
    helpers.check_settings(settings(1, 0.5, (1, 3)), size=(1, 3), rate=(0.5, 1.0), widths=(1, 3))
    helpers.check_settings(settings(3, 1, (3,)), size=(1, 3), rate=(0.5, 1.0), widths=(1, 3))


def test_seed_everything_repeats():
    draws = []
    for seed in (3, 3, 4):
        helpers.seed_everything(seed)
        draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_choose_device_prefers_gpu_obeys_the_variable_and_lists_what_is_there(monkeypatch):
    monkeypatch.delenv("GAN_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert helpers.choose_device() == torch.device("cuda:0") == helpers.choose_device("cuda")
    assert helpers.choose_device("cuda:1") == torch.device("cuda:1")
    assert helpers.choose_device(" CPU ") == torch.device("cpu")
    with pytest.raises(ValueError, match="cuda:7.*cuda:0, cuda:1, cpu"):
        helpers.choose_device("cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert helpers.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert helpers.choose_device() == torch.device("cpu")
    monkeypatch.setenv("GAN_DEVICE", "tpu")
    with pytest.raises(ValueError, match="GAN_DEVICE = 'tpu'.*cpu"):
        helpers.choose_device()


def test_only_a_cpu_gets_channels_last():
    formats = {name: helpers.conv_memory_format(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert formats == {"cpu": torch.channels_last, "cuda": torch.contiguous_format, "mps": torch.contiguous_format}


def test_choose_precision_needs_bf16_units_and_obeys_the_variable(monkeypatch):
    monkeypatch.delenv("GAN_PRECISION", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for capability, expected in [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=capability: {has: True}, raising=False)
        assert helpers.choose_precision(cpu) == expected
        assert helpers.choose_precision(cuda) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # older torch
    assert helpers.choose_precision(cpu) == torch.float32
    monkeypatch.setenv("GAN_PRECISION", "bfloat16")
    assert helpers.choose_precision(cpu) == torch.bfloat16
    assert helpers.choose_precision(cpu, "Float32") == torch.float32


def test_describe_device_says_what_was_chosen():
    line = helpers.describe_device(torch.device("cpu"), torch.bfloat16)
    assert line.startswith(f"cpu, {torch.get_num_threads()} threads, bfloat16, torch {torch.__version__.split('+')[0]}")


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_bundled_archives_are_the_originals():
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in ARCHIVES.glob("*.gz")}
    assert sums == dict(MNIST.resources)


@pytest.mark.parametrize("train, stem", [(True, "train"), (False, "t10k")])
def test_load_mnist_against_a_parser_of_the_archives(train, stem, no_network):
    images, labels = helpers.load_mnist(train)
    raw = gzip.decompress((ARCHIVES / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    magic, count, rows, columns = struct.unpack(">4i", raw[:16])
    expected = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(count, 1, rows, columns)
    assert magic == 2051 and images.dtype == torch.float32 and images.shape == expected.shape
    assert torch.equal(helpers.to_uint8(images), expected)
    assert images.min() == -1 and images.max() == 1
    raw = gzip.decompress((ARCHIVES / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    assert labels.dtype == torch.int64 and labels.tolist() == list(raw[8:])


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2:]
    elif how == "one bit flipped":
        content[len(content) // 2] ^= 1
    elif how == "empty":
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "one bit flipped", "empty", "a folder"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "train-images-idx3-ubyte",
                                  "train-labels-idx1-ubyte"])
def test_damaged_files_are_named_and_left_alone(data_copy, no_network, name, how):
    if not name.endswith(".gz"):
        helpers.load_mnist(True, data_folder=data_copy)  # unpacks
    path = data_copy / "MNIST" / "raw" / name
    if how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        damage(path, how)
    before = sorted((file.name, file.stat().st_size) for file in path.parent.iterdir())
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        helpers.load_mnist(True, data_folder=data_copy)
    assert sorted((file.name, file.stat().st_size) for file in path.parent.iterdir()) == before


def test_missing_archive_without_network_says_what_is_missing_and_where_to_put_it(data_copy, no_network):
    (data_copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        helpers.load_mnist(True, data_folder=data_copy)
    for part in ("t10k-labels-idx1-ubyte.gz", "http://127.0.0.1:9/", str(data_copy / "MNIST" / "raw")):
        assert part in str(error.value)


def test_missing_archive_is_downloaded(data_copy, tmp_path, monkeypatch):
    """From a mirror on this machine, serving the real file."""
    import http.server
    name = "t10k-labels-idx1-ubyte.gz"
    (data_copy / "MNIST" / "raw" / name).unlink()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(ARCHIVES))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        images, _ = helpers.load_mnist(False, data_folder=data_copy)
        server.shutdown()
    assert len(images) == 10_000 and (data_copy / "MNIST" / "raw" / name).is_file()


def test_unwritable_data_folder_is_unpacked_elsewhere(data_copy, tmp_path, monkeypatch, no_network):
    writable = helpers._is_writable
    monkeypatch.setattr(helpers, "_is_writable", lambda folder: Path(folder) != data_copy and writable(folder))
    before = sorted(data_copy.rglob("*"))
    images, _ = helpers.load_mnist(False, data_folder=data_copy, fallback_folder=tmp_path / "output" / "data")
    assert len(images) == 10_000 and sorted(data_copy.rglob("*")) == before
    assert (tmp_path / "output" / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10, 11])
def test_batches_hold_every_image_once(batch_size):
    numbers = torch.arange(11).view(11, 1)
    batches = list(helpers.shuffled_batches(numbers, batch_size))
    assert sorted(torch.cat(batches).flatten().tolist()) == list(range(11))
    assert [len(batch) for batch in batches] == [batch_size] * (11 // batch_size) + [11 % batch_size] * (11 % batch_size > 0)


def test_batches_are_shuffled_anew():
    numbers = torch.arange(1000)
    first, second = (torch.cat(list(helpers.shuffled_batches(numbers, 100))) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Progress


def test_progress_line_outside_a_notebook_is_tqdm_on_stdout(capsys):
    with helpers.progress_line(10) as progress:
        progress.update(10)
    captured = capsys.readouterr()
    assert "10/10" in captured.out and captured.err == ""


def test_progress_line_in_a_kernel_is_one_display_updated_in_place(monkeypatch, capsys):
    shown, updates = [], []
    handle = types.SimpleNamespace(update=lambda data, raw: updates.append(data["text/plain"]))
    display = lambda data, raw, display_id: shown.append(data["text/plain"]) or handle
    fake = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()),
                                 display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    with helpers.progress_line(10) as progress:
        progress.set_postfix_str("loss 1.5")
        progress.update(10)
    assert len(shown) == 1 and "0/10" in shown[0]
    assert "100%" in updates[-1] and "10/10" in updates[-1] and "loss 1.5" in updates[-1]
    assert not any("\r" in text or "\n" in text for text in shown + updates)
    assert capsys.readouterr() == ("", "")


def test_check_finite_lets_large_numbers_pass():
    helpers.check_finite([0.0, -1e30], "steps 1 to 50")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_uint8_round_trips():
    every_grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(helpers.to_uint8(helpers.from_uint8(every_grey)), every_grey)
    images = some_images()
    assert (helpers.from_uint8(helpers.to_uint8(images)) - images).abs().max() <= 1 / 255 + 1e-6
    assert helpers.to_uint8(torch.tensor([[[[-1.0, 1.0]]]])).flatten().tolist() == [0, 255]


def test_load_grid_is_the_inverse_of_save_grid(tmp_path):
    images = helpers.from_uint8(torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8))
    for scale in (1, 2):
        helpers.save_grid(images, tmp_path / "grid.png", columns=3, scale=scale)
        torch.testing.assert_close(helpers.load_grid(tmp_path / "grid.png", 28, scale), images, rtol=0, atol=1 / 127)
    with pytest.raises(ValueError, match="no grid of images of 32 x 32"):
        helpers.load_grid(tmp_path / "grid.png", 32)
    assert helpers.load_grid(helpers.SAMPLE_FILE, 28).shape == (100, 1, 28, 28)


def test_steepness_of_a_linear_generator_is_the_norm_of_its_matrix():
    """E |A u|^2 over directions u of length 1 in d dimensions is |A|^2 / d."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Unflatten(1, (1, 4, 4)))
    expected = generator[0].weight.norm() / 3**0.5
    torch.testing.assert_close(helpers.steepness(generator, torch.randn(50, 3), directions=2000), expected.expand(50),
                               rtol=0.03, atol=0)
    bent = lambda latent: torch.tanh(10 * latent[:, :1]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    steep = helpers.steepness(bent, torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert steep[0] > 100 * steep[1]


def test_frames_of_the_plane_look_where_they_say():
    places = helpers.plane_places(5)
    assert places[0].tolist() == [-3, -3] and places[1].tolist() == [-1.5, -3] and places[-1].tolist() == [3, 3]
    frame = helpers.plane_frame(7, lambda places: 100 * places[:, 0], torch.zeros(4, 2))
    assert (frame.probability[:, 0] < 0.01).all() and (frame.probability[:, -1] > 0.99).all()  # columns are x
    film = helpers.plane_film([dataclasses.replace(frame, step=step) for step in range(40)], torch.zeros(8, 2))
    assert Image.open(io.BytesIO(film)).n_frames == 24 and len(film) < 400 * 1024
    game = [dataclasses.replace(frame, step=step) for step in range(41)]
    for frames, steps in [(game[:2], [0, 1]), (game, [0, 4, 10, 20, 40])]:
        figure = helpers.plot_plane(frames, torch.zeros(8, 2), lambda points: (len(points), 0.25))
        assert [axes.get_title() for axes in figure.axes[:-1]] == [f"step {step}" for step in steps]
        assert all(axes.get_xlabel() == "4 of 8, 25% on" for axes in figure.axes[:-1])
    plt.close("all")


def test_plot_pairs_and_the_game_show_what_they_are_given():
    tops, bottoms = some_images(3), 5 * some_images(3, seed=2)
    figure = helpers.plot_pairs(tops, bottoms, ("up", "down"), ["a", "b", "c"], signed=True)
    shown = figure.axes[3].images[0]
    assert np.array_equal(shown.get_array(), bottoms[0, 0]) and shown.norm.vmax == -shown.norm.vmin == bottoms[0].abs().max()
    assert [axes.get_xlabel() for axes in figure.axes[3:]] == ["a", "b", "c"] and figure.axes[0].get_ylabel() == "up"
    game = helpers.plot_game(tops[0], tops[1]).axes[0]
    assert [np.array_equal(image.get_array(), tops[k, 0]) for image, k in zip(game.images, (1, 0))] == [True, True]
    plt.close("all")


def test_save_grid_puts_each_pixel_where_it_belongs(tmp_path):
    images = some_images(6, size=5)
    helpers.save_grid(images, tmp_path / "grid.png", columns=3, scale=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert pixels.shape == (2 * (2 * 7 + 2), 2 * (3 * 7 + 2))
    for index in range(6):
        row, column = divmod(index, 3)
        cell = pixels[2 * (row * 7 + 2):2 * (row * 7 + 7), 2 * (column * 7 + 2):2 * (column * 7 + 7)]
        expected = np.repeat(np.repeat(helpers.to_uint8(images[index:index + 1])[0, 0].numpy(), 2, 0), 2, 1)
        assert np.abs(cell - expected.astype(int)).max() <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_plot_grid_is_low_pixel_for_pixel_and_labelled():
    images = some_images(64)
    figure = helpers.plot_grid(images, columns=16, title="epoch 3", labels=range(64), scale=1)
    assert figure.get_size_inches()[1] <= 1.5
    axes, = figure.axes
    assert axes.get_title() == "epoch 3" and [text.get_text() for text in axes.texts] == [str(i) for i in range(64)]
    shown = axes.images[0].get_array()
    assert len(np.unique(shown)) <= 13 and shown.shape == (4 * 30 + 2, 16 * 30 + 2)
    grey = helpers.to_uint8(images)[17, 0].numpy().astype(int)  # second row, second column
    assert np.abs(shown[32:60, 32:60].astype(int) - grey).max() <= 13
    figure.canvas.draw()
    box = axes.get_window_extent()
    assert (round(box.width), round(box.height)) == (shown.shape[1], shown.shape[0])


def test_plot_grids_shows_all_on_one_scale():
    figure = helpers.plot_grids({"real": some_images(4), "generated": torch.zeros(4, 1, 28, 28)}, columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["real", "generated"]
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 255)}


def test_plot_history_draws_the_numbers_given():
    history = [{"epoch": 1, "a": 0.5, "b": 2.0}, {"epoch": 2, "a": 0.25, "b": 3.0}]
    axes, = helpers.plot_history(history, {"a": "first", "b": "second"}, "loss", (1.5, "level")).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["first"].get_xdata()) == [1, 2] and list(lines["first"].get_ydata()) == [0.5, 0.25]
    assert list(lines["second"].get_ydata()) == [2, 3] and set(lines["level"].get_ydata()) == {1.5}


def test_plot_filmstrip_shows_the_epochs_asked_for():
    snapshots = [torch.full((20, 1, 28, 28), level, dtype=torch.uint8) for level in (0, 100, 255)]
    figure = helpers.plot_filmstrip(snapshots, [0, 2], digits=3)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (4 * 31, 4 * 46) and shown[20, 20] == 0 and shown[80, 80] == 255
    assert [text.get_text() for text in figure.axes[0].texts] == ["epoch 0", "epoch 2"]


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_animation_has_every_frame_in_order(tmp_path, suffix):
    snapshots = [torch.full((8, 1, 28, 28), level, dtype=torch.uint8) for level in range(0, 250, 25)]
    film = helpers.save_animation(snapshots, tmp_path / f"film{suffix}", columns=4)
    (tmp_path / "inline.png").write_bytes(film)
    for path in (tmp_path / f"film{suffix}", tmp_path / "inline.png"):
        with Image.open(path) as image:
            levels = []
            for frame in range(image.n_frames):
                image.seek(frame)
                levels.append(image.convert("L").getpixel((10, 10)))
        assert len(levels) == 10 and levels == sorted(levels)
        assert np.abs(np.array(levels) - np.arange(0, 250, 25)).max() <= 13


def test_animation_takes_first_and_last_of_many(tmp_path):
    snapshots = [torch.full((1, 1, 8, 8), level, dtype=torch.uint8) for level in range(200)]
    helpers.save_animation(snapshots, tmp_path / "film.gif", max_frames=30)
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames <= 30
        image.seek(image.n_frames - 1)
        assert abs(image.convert("L").getpixel((5, 5)) - 199) <= 13


# ---------------------------------------------------------------------------------------------------------------------
# Latent space


def toy_generator(latent_dim=3, size=4):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(latent_dim, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, size * size),
                               torch.nn.Tanh(), torch.nn.Unflatten(1, (1, size, size)))


def test_slerp_end_points_pace_and_length():
    torch.manual_seed(0)
    start, end = torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(helpers.slerp(start, end, 0), start)
    torch.testing.assert_close(helpers.slerp(start, end, 1), end)
    cosine = torch.nn.functional.cosine_similarity
    angle = cosine(start, end).acos()
    for share in (0.1, 0.5, 0.8):
        point = helpers.slerp(start, end, share)
        torch.testing.assert_close(cosine(start, point).acos(), share * angle)  # an even pace, on the way
        torch.testing.assert_close(cosine(point, end).acos(), (1 - share) * angle)
        torch.testing.assert_close(point.norm(dim=1), start.norm(dim=1).lerp(end.norm(dim=1), share))
    unit = torch.nn.functional.normalize(torch.randn(2, 16, dtype=torch.float64))
    a, b = unit
    theta, t = (a @ b).acos(), torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    shoemake = (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
    torch.testing.assert_close(helpers.slerp(a.expand(9, 16), b.expand(9, 16), t), shoemake)


def test_slerp_of_equal_and_of_opposite_vectors():
    torch.manual_seed(0)
    start = torch.randn(5, 16)
    share = torch.rand(5, 1)
    torch.testing.assert_close(helpers.slerp(start, start, share), start)
    torch.testing.assert_close(helpers.slerp(start, 3 * start, 0.5), 2 * start)
    torch.testing.assert_close(helpers.slerp(start, start + 1e-7 * torch.randn(5, 16), share), start, rtol=1e-5, atol=1e-5)
    half_way = helpers.slerp(start, -start, 0.5)
    torch.testing.assert_close(half_way.norm(dim=1), start.norm(dim=1))  # the straight line would be at 0 here
    torch.testing.assert_close((half_way * start).sum(dim=1), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(helpers.slerp(start, -start, 1), -start)


def test_generate_is_eval_mode_in_chunks_and_leaves_no_trace():
    generator = toy_generator()
    generator[1].eval()  # modes may differ per module, and are given back as they were
    latent = torch.randn(11, 3)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    images = helpers.generate(generator, latent, batch_size=4)
    assert generator.training and not generator[1].training
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    generator.eval()
    torch.testing.assert_close(images, generator(latent).detach())
    assert not images.requires_grad and images.device.type == "cpu"


def test_generate_gives_the_modes_back_after_an_error():
    generator = toy_generator()
    with pytest.raises(RuntimeError):
        helpers.generate(generator, torch.zeros(2, 5))
    assert all(module.training for module in generator.modules())


# ---------------------------------------------------------------------------------------------------------------------
# Saving and exporting


def test_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAN_OUTPUT", raising=False)
    assert helpers.output_folder(False) == Path("output") and Path("output").is_dir()
    assert helpers.output_folder(True) == Path("output/quick") and Path("output/quick").is_dir()
    monkeypatch.setenv("GAN_OUTPUT", str(tmp_path / "else where" / "ö"))
    assert helpers.output_folder(True).is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("GAN_OUTPUT", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file' cannot be written: set the variable GAN_OUTPUT"):
        helpers.output_folder(False)


def test_write_beside_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), helpers.write_beside(path) as beside:
        beside.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with helpers.write_beside(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_write_beside_survives_a_kill(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    code = ("import gan_helpers, os, signal, sys\n"
            "with gan_helpers.write_beside(sys.argv[1]) as beside:\n"
            "    beside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert run.returncode != 0 and path.read_text() == "old"


def test_exported_generator_gives_the_same_images_for_any_batch(tmp_path):
    generator = toy_generator()
    generator(torch.randn(64, 3))  # BatchNorm's running statistics move away from their start
    path = tmp_path / "generator.pt2"
    helpers.export_generator(generator, path, 3)
    assert generator.training
    loaded = helpers.load_generator(path)
    assert (loaded.latent_dim, loaded.image_size) == (3, 4)
    for n in (1, 2, 7, 1000):
        latent = torch.randn(n, 3)
        images = loaded(latent)
        torch.testing.assert_close(images, helpers.generate(generator, latent))
        assert images.shape == (n, 1, 4, 4) and images.dtype == torch.float32 and not images.requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark's count


@pytest.mark.parametrize("penalty", [False, True])
def test_benchmark_counts_the_matrix_products_that_torch_does(story, penalty):
    from benchmark import matmul_flops_per_image
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                left, right = args[-2:]
                if bool(left.any()) and bool(right.any()):  # the second derivative of LeakyReLU is a matrix of zeros
                    self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
            return function(*args, **(kwargs or {}))

    generator, discriminator = story.Generator(8, (32, 16)), story.Discriminator((24, 16))
    real, latent = some_images(10), torch.randn(10, 8)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (discriminator, generator)]
    with Counter() as counter:
        fake = generator(latent)
        story.discriminator_step(discriminator, optimizers[0], real, fake, float(penalty))
        story.generator_step(generator, discriminator, optimizers[1], fake)
    assert 10 * matmul_flops_per_image(8, (32, 16), (24, 16), int(penalty)) == pytest.approx(counter.flops, rel=0.01)
