"""One table of bad inputs: the error that each must raise, and that nothing on disk has changed by then."""

from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import files

import gan_helpers as helpers

NAN, INF = float("nan"), float("inf")
images = lambda value=0.0, shape=(6, 1, 28, 28): torch.full(shape, value)


def training_state():
    return SimpleNamespace(settings=make_dataclass("S", ["name"])("x"), epoch=0, fixed_noise=torch.zeros(2))


def written(write, path, less=0):
    """The path, after a file was written there, and cut short by so many bytes."""
    write(path)
    path.write_bytes(path.read_bytes()[:-less or None])
    return path


def generator(tail=torch.nn.Tanh):
    return torch.nn.Sequential(torch.nn.Linear(3, 16), tail(), torch.nn.Unflatten(1, (1, 4, 4)))


exported = lambda path: helpers.export_generator(generator(), path, 3)
loaded = lambda folder: helpers.load_generator(written(exported, folder / "sub" / "g.pt2"))
class Asked(torch.nn.Module):
    def forward(self, latent, digits):
        return (latent[:, :1] + digits[:, None]).tanh()[..., None, None].expand(-1, 1, 4, 4)


asked = lambda path: helpers.export_generator(Asked(), path, 3, asks=True)
writer = lambda folder: helpers.load_generator(written(asked, folder / "sub" / "w.pt2"))
other_program = lambda path: torch.export.save(torch.export.export(torch.nn.Linear(3, 4), (torch.zeros(2, 3),)), path)
other_judge = lambda path: torch.save({"digits.weight": torch.zeros(10, 64)}, path)

BAD_IMAGES = [
    ("None", None, "NoneType"), ("a list", [[0.0]], "list"), ("an array", images().numpy(), "ndarray"),
    ("bytes", images().to(torch.uint8), "uint8"), ("no batch", images(shape=(28, 28)), "(28, 28)"),
    ("three channels", images(shape=(2, 3, 28, 28)), "(2, 3, 28, 28)"),
    ("no images", images(shape=(0, 1, 28, 28)), "at least 1"), ("NaN", images(NAN), "nan"),
    ("too bright", images(1.01), "1.01"), ("too dark", images(-2.0), "-2"), ("infinite", images(-INF), "-inf"),
]
TAKE_IMAGES = {
    "check_images": lambda bad, f: helpers.check_images(bad), "plot_grid": lambda bad, f: helpers.plot_grid(bad, 2),
    "plot_grids": lambda bad, f: helpers.plot_grids({"a": bad}, 2),
    "save_grid": lambda bad, f: helpers.save_grid(bad, f / "old.png", 2),
    "judge_images": lambda bad, f: helpers.judge_images(helpers.Judge(), bad),
    "train_judge": lambda bad, f: helpers.train_judge(bad, torch.zeros(6, dtype=torch.int64)),
}

# (name, call on a folder with old.png, old.pt2 and a folder `sub`, a part of the message, the error if no ValueError)
TABLE = {name: rest for name, *rest in [
    *[(f"{bad_name} to {call_name}", lambda f, call=call, bad=bad: call(bad, f), message)
      for bad_name, bad, message in BAD_IMAGES for call_name, call in TAKE_IMAGES.items()],
    ("no frames", lambda f: helpers.film([], path=f / "old.png"), "before the first epoch has ended"),
    ("too small to read", lambda f: helpers.judge_images(helpers.Judge(), images(shape=(2, 1, 27, 32))), "(27, 32)"),
    *[(f"{name} as latents", lambda f, bad=bad: loaded(f)(bad), message) for name, bad, message in [
        ("one vector", torch.zeros(3), "(N, 3), N at least 1, not torch.float32 (3,)"), ("a list", [0.0], "list"),
        ("none", torch.zeros(0, 3), "(0, 3)"), ("other size", torch.zeros(2, 4), "(N, 3)"), ("None", None, "NoneType"),
        ("float64", torch.zeros(2, 3).double(), "float64"), ("a number", torch.tensor(1.0), "torch.float32 ()")]],
    ("no digits for a writer", lambda f: writer(f)(torch.zeros(2, 3)), "digits must be int64 of shape (2,)"),
    ("digits for a plain generator", lambda f: loaded(f)(torch.zeros(2, 3), torch.zeros(2).long()), "takes latents only"),
    *[(f"{name} as digits", lambda f, bad=bad: writer(f)(torch.zeros(2, 3), bad), message) for name, bad, message in [
        ("a list", [1, 2], "not [1, 2]"), ("floats", torch.zeros(2), "not tensor([0., 0.])"),
        ("too few", torch.zeros(1).long(), "not tensor([0])"), ("a column", torch.zeros(2, 1).long(), "shape (2,)"),
        ("ten", torch.tensor([0, 10]), "from 0 to 9, not tensor([ 0, 10])"), ("-1", torch.tensor([-1, 3]), "tensor([-1,")]],
    ("an unknown device", lambda f: helpers.choose_device("tpu"), "'tpu' is not in this machine, which has: cpu"),
    ("a folder as picture", lambda f: helpers.save_grid(images(), f / "sub", 4), "sub' cannot be written", OSError),
    ("a picture in no folder", lambda f: helpers.save_grid(images(), f / "none" / "x.png", 4), "none", OSError),
    ("a picture in a file", lambda f: helpers.save_grid(images(), f / "old.png" / "x.png", 4), "old.png", OSError),
    ("text for bytes", lambda f: helpers.write_whole(f / "old.png", "text"), "bytes", TypeError),
    ("no generator of images", lambda f: helpers.export_generator(torch.nn.Linear(3, 4), f / "old.pt2", 3),
     "the generator's output must be a float tensor of shape (N, 1, H, W)"),
    ("another latent", lambda f: helpers.export_generator(generator(), f / "old.pt2", 4), "2x4 and 3x16", RuntimeError),
    ("a generator beyond [-1, 1]", lambda f: helpers.export_generator(
        torch.nn.Sequential(generator(tail=torch.nn.Identity), torch.nn.Threshold(9, 5)), f / "old.pt2", 3),
     "the generator's output must have pixels in [-1, 1]"),
    ("no generator", lambda f: helpers.load_generator(f / "none.pt2"), "none.pt2", FileNotFoundError),
    *[(f"{name} as generator", lambda f, write=write, less=less: helpers.load_generator(written(
        write, f / "sub" / "g.pt2", less)), "g.pt2' is not a whole file written by export_generator")
      for name, write, less in [("empty", Path.touch, 0), ("another", other_program, 0), ("half", exported, 200),
                                 ("half a writer", asked, 200)]],
    ("no judge", lambda f: helpers.load_judge(f / "none.pt"), "none.pt' is missing or damaged"),
    ("a folder as judge", lambda f: helpers.load_judge(f / "sub"), "git checkout -- data"),
    ("another judge", lambda f: helpers.load_judge(written(other_judge, f / "sub" / "j.pt")), "digits.bias"),
    ("half a judge", lambda f: helpers.load_judge(written(
        lambda path: torch.save(helpers.Judge().state_dict(), path), f / "sub" / "j.pt", 200)), "data/README.md"),
    ("no checkpoint", lambda f: helpers.load_checkpoint(training_state(), f / "none.pt"), "no whole checkpoint"),
    ("a folder as checkpoint", lambda f: helpers.resume(training_state(), f / "sub", True), "no whole checkpoint"),
    ("a picture as checkpoint", lambda f: helpers.resume(training_state(), f / "old.png", True), "old.png"),
    ("half a checkpoint", lambda f: helpers.load_checkpoint(training_state(), written(
        lambda path: helpers.save_checkpoint(training_state(), path), f / "sub" / "c.pt", 200)), "trains afresh"),
    ("a judge as checkpoint", lambda f: helpers.resume(training_state(), helpers.JUDGE_FILE, True), "no whole"),
]}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_and_nothing_changes(tmp_path, name):
    call, message, error = (*TABLE[name], ValueError)[:3]
    (tmp_path / "sub").mkdir()
    (tmp_path / "old.png").write_bytes(b"\x89PNG an older picture")
    (tmp_path / "old.pt2").write_bytes(b"an older generator")
    before = files(tmp_path)
    with pytest.raises(error) as raised:
        call(tmp_path)
    assert message in str(raised.value)
    assert {name: content for name, content in files(tmp_path).items() if not name.startswith("sub/")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"sub", "old.png", "old.pt2"}
