"""One table of bad inputs: the error that each must raise, and that nothing on disk has changed by then."""

import types
from dataclasses import make_dataclass

import pytest
import torch
from conftest import files

import gan_helpers as helpers

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


BAD_IMAGES = [
    ("None", None, TypeError, "NoneType"), ("a list", [[0.0]], TypeError, "list"),
    ("an array", images().numpy(), TypeError, "ndarray"), ("bytes", images().to(torch.uint8), TypeError, "uint8"),
    ("no batch", images(shape=(28, 28)), ValueError, "(28, 28)"),
    ("three channels", images(shape=(2, 3, 28, 28)), ValueError, "(2, 3, 28, 28)"),
    ("no images", images(shape=(0, 1, 28, 28)), ValueError, "at least 1"), ("NaN", images(NAN), ValueError, "nan"),
    ("too bright", images(1.01), ValueError, "1.01"), ("too dark", images(-2.0), ValueError, "-2"),
    ("infinite", images(-INF), ValueError, "-inf"),
]
TAKE_IMAGES = {
    "check_images": lambda bad, f: helpers.check_images(bad), "to_uint8": lambda bad, f: helpers.to_uint8(bad),
    "plot_grid": lambda bad, f: helpers.plot_grid(bad, 2), "plot_grids": lambda bad, f: helpers.plot_grids({"a": bad}, 2),
    "save_grid": lambda bad, f: helpers.save_grid(bad, f / "old.png", 2),
    "judge_images": lambda bad, f: helpers.judge_images(helpers.Judge(), bad),
}


def other_program(path):
    torch.export.save(torch.export.export(torch.nn.Linear(3, 4), (torch.zeros(2, 3),)), path)
    return path


def other_network(path):
    weights = helpers.Judge().state_dict()
    weights.pop("digits.bias")
    torch.save(weights, path)
    return path


def empty(path):
    path.touch()
    return path


# (what it is called, call on a folder with files old.png, old.pt2 and a folder `sub`, the error, a part of its message)
TABLE = [
    # images
    *[(f"{bad_name} to {call_name}", lambda f, call=call, bad=bad: call(bad, f), error, message)
      for bad_name, bad, error, message in BAD_IMAGES for call_name, call in TAKE_IMAGES.items()],
    ("no frames", lambda f: helpers.save_animation([], f / "old.gif"), ValueError, "snapshots is empty"),
    ("frames as .jpg", lambda f: helpers.save_animation([helpers.to_uint8(images())], f / "x.jpg"), ValueError, ".gif"),
    *[(f"epochs {bad}", lambda f, bad=bad: helpers.plot_filmstrip([helpers.to_uint8(images())] * 3, bad), ValueError,
       f"{bad} cannot be shown: there are snapshots of 0 to 2") for bad in ([3], [-1], [])],
    ("no history", lambda f: helpers.plot_history([], {"d": "D"}, "loss", (0, "")), ValueError, "history is empty"),
    ("too small to read", lambda f: helpers.judge_images(helpers.Judge(), images(shape=(2, 1, 27, 32))), ValueError, "28 x 28"),
    ("too few real ones", lambda f: helpers.frechet_distance(features(4), features()), ValueError, "at least 5"),
    ("too few fakes", lambda f: helpers.frechet_distance(features(), features(4)), ValueError, "fake has the shape (4, 4)"),
    ("too few for neighbours", lambda f: helpers.precision_recall_coverage(features(), features(5)), ValueError, "at least 6"),
    ("fewer than neighbours", lambda f: helpers.neighbour_radii(features(3), k=3), ValueError, "at least 4"),
    ("NaN in a cloud", lambda f: helpers.frechet_distance(features(), features(value=NAN)), ValueError, "fake holds NaN"),
    ("NaN in fakes", lambda f: helpers.precision_recall_coverage(features(), features(value=NAN)), ValueError, "fake holds NaN"),
    ("NaN in features", lambda f: helpers.neighbour_radii(features(value=NAN)), ValueError, "NaN"),
    # latents
    ("latent of one dimension", lambda f: helpers.generate(generator(), torch.zeros(3)), ValueError, "(3,)"),
    ("no latents", lambda f: helpers.generate(generator(), torch.zeros(0, 3)), ValueError, "(0, 3)"),
    ("latent with NaN", lambda f: helpers.generate(generator(), images(NAN, (2, 3))), ValueError, "NaN"),
    ("slerp of two shapes", lambda f: helpers.slerp(torch.ones(2, 3), torch.ones(2, 4), 0.5), ValueError, "(2, 4)"),
    ("slerp of numbers", lambda f: helpers.slerp(torch.tensor(1.0), torch.tensor(1.0), 0.5), ValueError, "()"),
    ("slerp from zero", lambda f: helpers.slerp(torch.zeros(2, 3), torch.ones(2, 3), 0.5), ValueError, "not be zero"),
    ("slerp to zero", lambda f: helpers.slerp(torch.ones(2, 3), torch.zeros(2, 3), 0.5), ValueError, "not be zero"),
    ("a single latent", lambda f: loaded(f / "sub")(torch.zeros(3)), ValueError, "(N, 3), N at least 1, not torch.float32 (3,)"),
    ("none to a program", lambda f: loaded(f / "sub")(torch.zeros(0, 3)), ValueError, "(0, 3)"),
    ("latent of another size", lambda f: loaded(f / "sub")(torch.zeros(2, 4)), ValueError, "(N, 3)"),
    ("latent in float64", lambda f: loaded(f / "sub")(torch.zeros(2, 3).double()), ValueError, "float64"),
    ("latent as a list", lambda f: loaded(f / "sub")([0.0]), ValueError, "list"),
    # settings
    ("a setting below", lambda f: checked(0, 1, 9), ValueError, "size = 0 cannot work: size takes whole numbers from 1 to 9"),
    ("a setting above", lambda f: checked(10, 1, 9), ValueError, "size = 10"),
    ("no setting", lambda f: checked(None, 1, 9), ValueError, "size = None"),
    ("a fraction", lambda f: checked(2.0, 1, 9), ValueError, "2.0"),
    ("a text", lambda f: checked("2", 1, 9), ValueError, "'2'"),
    ("True", lambda f: checked(True, 1, 9), ValueError, "True"),
    ("NaN as a setting", lambda f: checked(NAN, 0.0, 1.0), ValueError, "nan"),
    ("an empty tuple", lambda f: checked((), 1, 9), ValueError, "()"),
    ("one bad entry", lambda f: checked((4, 0), 1, 9), ValueError, "(4, 0)"),
    ("a path as name", lambda f: helpers.check_settings(settings(name="../x")), ValueError, "'../x'"),
    *[(f"seed {bad!r}", lambda f, bad=bad: helpers.seed_everything(bad), ValueError, f"seed = {bad!r}")
      for bad in (-1, 2**63, 1.5, "0", True, None)],
    ("an unknown device", lambda f: helpers.choose_device("tpu"), ValueError, "'tpu'"),
    ("an unknown precision", lambda f: helpers.choose_precision(torch.device("cpu"), "int4"), ValueError, "'int4' is unknown; there are: float32, bfloat16"),
    ("a batch of one", lambda f: helpers.check_settings(settings(name="x", train_images=65, batch_size=32)), ValueError,
     "batch_size = 32 cannot work: it leaves the last of train_images = 65 alone in a batch"),
    *[(f"batch size {bad!r}", lambda f, bad=bad: helpers.shuffled_batches(images(), bad), ValueError,
       f"batch_size = {bad!r} cannot work: batch_size takes whole numbers from 1 to 6") for bad in (0, -1, 7, 2.0, True, "3")],
    # files
    ("a folder as picture", lambda f: helpers.save_grid(images(), f / "sub", 4), IsADirectoryError, "sub"),
    ("a picture in no folder", lambda f: helpers.save_grid(images(), f / "none" / "x.png", 4), OSError, "none"),
    ("a picture in a file", lambda f: helpers.save_grid(images(), f / "old.png" / "x.png", 4), OSError, "old.png"),
    ("JSON of a tensor", lambda f: helpers.save_json(torch.zeros(1), f / "old.png"), TypeError, "Tensor"),
    ("a generator called .pt", lambda f: helpers.export_generator(generator(), f / "g.pt", 3), ValueError, ".pt2"),
    ("no generator of images", lambda f: helpers.export_generator(torch.nn.Linear(3, 4), f / "old.pt2", 3), ValueError,
     "the generator's output must have the shape"),
    ("a generator of another latent", lambda f: helpers.export_generator(generator(), f / "old.pt2", 4), RuntimeError, "3"),
    ("a generator beyond [-1, 1]", lambda f: helpers.export_generator(
        torch.nn.Sequential(generator(tail=torch.nn.Identity), torch.nn.Threshold(9, 5)), f / "old.pt2", 3), ValueError,
     "the generator's output must have pixels in [-1, 1]"),
    ("no generator", lambda f: helpers.load_generator(f / "none.pt2"), FileNotFoundError, "none.pt2"),
    ("a folder as generator", lambda f: helpers.load_generator(f / "sub"), FileNotFoundError, "sub"),
    ("an empty generator", lambda f: helpers.load_generator(empty(f / "sub" / "g.pt2")), ValueError, "not a whole file"),
    ("another program", lambda f: helpers.load_generator(other_program(f / "sub" / "g.pt2")), ValueError,
     "g.pt2' is not a whole file written by export_generator"),
    ("a picture as generator", lambda f: helpers.load_generator(f / "old.png"), ValueError, "old.png"),
    ("half a generator", lambda f: helpers.load_generator(truncated(exported, f / "sub" / "g.pt2")), ValueError, "g.pt2"),
    ("no judge", lambda f: helpers.load_judge(f / "none.pt"), ValueError, "none.pt' is missing or damaged"),
    ("a folder as judge", lambda f: helpers.load_judge(f / "sub"), ValueError, "recreates"),
    ("an empty judge", lambda f: helpers.load_judge(empty(f / "sub" / "j.pt")), ValueError, "missing or damaged"),
    ("another judge", lambda f: helpers.load_judge(other_network(f / "sub" / "j.pt")), ValueError, helpers.JUDGE_COMMAND),
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
    ("losses of minus infinity", lambda f: helpers.check_finite([0.5, -INF], "steps 1 to 50"), FloatingPointError, "steps 1 to 50"),
]


@pytest.mark.parametrize("call, error, message", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_input_is_refused_and_nothing_changes(tmp_path, call, error, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "old.png").write_bytes(b"\x89PNG an older picture")
    (tmp_path / "old.pt2").write_bytes(b"an older generator")
    before = files(tmp_path)
    with pytest.raises(error) as raised:
        call(tmp_path)
    assert message in str(raised.value)
    after = files(tmp_path)
    assert {path: after[path] for path in after if path.parts[0] != "sub"} == before  # `sub` is where a test prepares
    assert [path for path in tmp_path.iterdir() if path.name not in ("sub", "old.png", "old.pt2")] == []
