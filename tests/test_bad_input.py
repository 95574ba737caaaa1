"""One table of bad inputs: the error that each must raise, and that nothing on disk has changed by then."""

import types
from dataclasses import make_dataclass

import gan_helpers as helpers
import pytest
import torch
from conftest import files

NAN, INF = float("nan"), float("inf")
images = lambda value=0.0, shape=(6, 1, 28, 28): torch.full(shape, value)
features = lambda n=100, value=0.0: torch.randn(n, 4, dtype=torch.float64) + value


def settings(**fields):
    return make_dataclass("S", fields)(**fields)


def checked(value, low, high):
    return helpers.check_settings(settings(name="x", size=value), size=(low, high))


def training_state():
    return types.SimpleNamespace(settings=settings(name="x"), epoch=0, noise=torch.zeros(2))


def truncated(write, path):
    write(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def generator(latent_dim=3, size=4, tail=torch.nn.Tanh):
    return torch.nn.Sequential(torch.nn.Linear(latent_dim, size * size), tail(), torch.nn.Unflatten(1, (1, size, size)))


def exported(path):
    helpers.export_generator(generator(), path, 3)


def loaded(folder):
    exported(folder / "g.pt2")
    return helpers.load_generator(folder / "g.pt2")


# (what it is called, call on a folder with a file old.png and a folder `sub`, the error, a part of its message)
TABLE = [
    # images
    ("a list", lambda f: helpers.check_images([[0.0]]), TypeError, "list"),
    ("an array", lambda f: helpers.check_images(images().numpy()), TypeError, "ndarray"),
    ("bytes", lambda f: helpers.check_images(images().to(torch.uint8)), TypeError, "uint8"),
    ("three channels", lambda f: helpers.to_uint8(images(shape=(2, 3, 28, 28))), ValueError, "(2, 3, 28, 28)"),
    ("no images", lambda f: helpers.save_grid(images(shape=(0, 1, 28, 28)), f / "old.png", 4), ValueError, "at least 1"),
    ("NaN", lambda f: helpers.save_grid(images(NAN), f / "old.png", 4), ValueError, "nan"),
    ("too bright", lambda f: helpers.save_grid(images(1.01), f / "old.png", 4), ValueError, "1.01"),
    ("infinite", lambda f: helpers.plot_grids({"a": images(-INF)}, 4), ValueError, "-inf"),
    ("no frames", lambda f: helpers.save_animation([], f / "old.gif"), ValueError, "snapshots is empty"),
    ("frames as .jpg", lambda f: helpers.save_animation([helpers.to_uint8(images())], f / "x.jpg"), ValueError, ".gif"),
    ("an epoch without snapshot", lambda f: helpers.plot_filmstrip([helpers.to_uint8(images())], [1]), ValueError, "[1]"),
    ("no history", lambda f: helpers.plot_history([], {"d": "D"}, "loss", (0, "")), ValueError, "history is empty"),
    ("too small to read", lambda f: helpers.judge_images(helpers.Judge(), images(shape=(2, 1, 20, 28))), ValueError, "(20, 28)"),
    ("too few to score", lambda f: helpers.frechet_distance(features(4), features()), ValueError, "at least 5"),
    ("NaN in features", lambda f: helpers.neighbour_radii(features(value=NAN)), ValueError, "NaN"),
    # latents
    ("latent of one dimension", lambda f: helpers.generate(generator(), torch.zeros(3)), ValueError, "(3,)"),
    ("no latents", lambda f: helpers.generate(generator(), torch.zeros(0, 3)), ValueError, "(0, 3)"),
    ("latent with NaN", lambda f: helpers.generate(generator(), images(NAN, (2, 3))), ValueError, "NaN"),
    ("slerp of two shapes", lambda f: helpers.slerp(torch.ones(2, 3), torch.ones(2, 4), 0.5), ValueError, "(2, 4)"),
    ("slerp from zero", lambda f: helpers.slerp(torch.zeros(3), torch.ones(3), 0.5), ValueError, "not be zero"),
    ("latent of another size", lambda f: loaded(f / "sub")(torch.zeros(2, 4)), ValueError, "(N, 3)"),
    ("latent in float64", lambda f: loaded(f / "sub")(torch.zeros(2, 3).double()), ValueError, "float64"),
    ("latent as a list", lambda f: loaded(f / "sub")([0.0]), ValueError, "list"),
    # settings
    ("a setting below", lambda f: checked(0, 1, 9), ValueError, "size = 0 cannot work: size takes whole numbers from 1 to 9"),
    ("a fraction", lambda f: checked(2.0, 1, 9), ValueError, "2.0"),
    ("a text", lambda f: checked("2", 1, 9), ValueError, "'2'"),
    ("True", lambda f: checked(True, 1, 9), ValueError, "True"),
    ("NaN as a setting", lambda f: checked(NAN, 0.0, 1.0), ValueError, "nan"),
    ("an empty tuple", lambda f: checked((), 1, 9), ValueError, "()"),
    ("one bad entry", lambda f: checked((4, 0), 1, 9), ValueError, "(4, 0)"),
    ("a path as name", lambda f: helpers.check_settings(settings(name="../x")), ValueError, "'../x'"),
    ("a negative seed", lambda f: helpers.seed_everything(-1), ValueError, "seed = -1"),
    ("a seed of 1.5", lambda f: helpers.seed_everything(1.5), ValueError, "seed = 1.5"),
    ("an unknown device", lambda f: helpers.choose_device("tpu"), ValueError, "'tpu'"),
    ("an unknown precision", lambda f: helpers.choose_precision(torch.device("cpu"), "int4"), ValueError, "'int4'"),
    ("a batch of 0", lambda f: helpers.shuffled_batches(images(), 0), ValueError, "batch_size = 0"),
    ("a batch of more than all", lambda f: helpers.shuffled_batches(images(), 7), ValueError, "1 to 6"),
    # files
    ("a folder as picture", lambda f: helpers.save_grid(images(), f / "sub", 4), IsADirectoryError, "sub"),
    ("a picture in no folder", lambda f: helpers.save_grid(images(), f / "none" / "x.png", 4), OSError, "none"),
    ("a picture in a file", lambda f: helpers.save_grid(images(), f / "old.png" / "x.png", 4), OSError, "old.png"),
    ("JSON of a tensor", lambda f: helpers.save_json(torch.zeros(1), f / "old.png"), TypeError, "Tensor"),
    ("a generator called .pt", lambda f: helpers.export_generator(generator(), f / "g.pt", 3), ValueError, ".pt2"),
    ("a generator of another latent", lambda f: helpers.export_generator(generator(), f / "g.pt2", 4), RuntimeError, "3"),
    ("a generator beyond [-1, 1]", lambda f: helpers.export_generator(
        torch.nn.Sequential(generator(tail=torch.nn.Identity), torch.nn.Threshold(9, 5)), f / "g.pt2", 3), ValueError, "5"),
    ("no generator", lambda f: helpers.load_generator(f / "none.pt2"), FileNotFoundError, "none.pt2"),
    ("a folder as generator", lambda f: helpers.load_generator(f / "sub"), FileNotFoundError, "sub"),
    ("a picture as generator", lambda f: helpers.load_generator(f / "old.png"), ValueError, "old.png"),
    ("half a generator", lambda f: helpers.load_generator(truncated(exported, f / "sub" / "g.pt2")), ValueError, "g.pt2"),
    ("no judge", lambda f: helpers.load_judge(f / "none.pt"), ValueError, "none.pt' is missing or damaged"),
    ("a folder as judge", lambda f: helpers.load_judge(f / "sub"), ValueError, "recreates"),
    ("a picture as judge", lambda f: helpers.load_judge(f / "old.png"), ValueError, "recreates"),
    ("half a judge", lambda f: helpers.load_judge(truncated(
        lambda path: helpers.save_judge(helpers.Judge(), path), f / "sub" / "j.pt")), ValueError, "recreates"),
    ("no checkpoint", lambda f: helpers.load_checkpoint(training_state(), f / "none.pt"), ValueError, "no whole checkpoint"),
    ("a folder as checkpoint", lambda f: helpers.resume(training_state(), f / "sub", True), ValueError, "no whole checkpoint"),
    ("a picture as checkpoint", lambda f: helpers.resume(training_state(), f / "old.png", True), ValueError, "old.png"),
    ("half a checkpoint", lambda f: helpers.load_checkpoint(training_state(), truncated(
        lambda path: helpers.save_checkpoint(training_state(), path), f / "sub" / "c.pt")), ValueError, "train afresh"),
    ("a judge as checkpoint", lambda f: (helpers.save_judge(helpers.Judge(), f / "sub" / "j.pt"), helpers.load_checkpoint(
        training_state(), f / "sub" / "j.pt")), ValueError, "no whole checkpoint"),
    ("losses of NaN", lambda f: helpers.check_finite([0.0, NAN], "steps 1 to 50"), FloatingPointError, "steps 1 to 50"),
    ("losses of infinity", lambda f: helpers.check_finite([INF], "steps 1 to 50"), FloatingPointError, "unstable"),
]


@pytest.mark.parametrize("call, error, message", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_input_is_refused_and_nothing_changes(tmp_path, call, error, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "old.png").write_bytes(b"\x89PNG an older picture")
    before = files(tmp_path)
    with pytest.raises(error) as raised:
        call(tmp_path)
    assert message in str(raised.value)
    after = files(tmp_path)
    assert {path: after[path] for path in after if path.parts[0] != "sub"} == before  # `sub` is where a test prepares
    assert [path for path in tmp_path.iterdir() if path.name not in ("sub", "old.png")] == []
