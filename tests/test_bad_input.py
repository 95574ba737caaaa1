"""Bad input and bad places: an error that helps, and what was on disk stays as it was."""

import shutil

import pytest
import torch
from conftest import files, some_images
from torch import nn

import gan_helpers as helpers

LABELS = "t10k-labels-idx1-ubyte.gz"
WHOLE = (helpers.ARCHIVES / LABELS).read_bytes()
ONE_BIT = WHOLE[:2000] + bytes([WHOLE[2000] ^ 1]) + WHOLE[2001:]
SHAPE = (2, 1, 28, 28)
NETWORK = nn.Sequential(nn.Linear(3, 784), nn.Tanh(), nn.Unflatten(1, SHAPE[1:])).eval()


@pytest.mark.parametrize("content", [None, b"", WHOLE[:-100], ONE_BIT],
                         ids=["missing", "empty", "cut", "one bit"])
def test_a_bad_archive_is_named_with_how_to_get_it_back_and_nothing_is_written(tmp_path, content):
    shutil.copy(helpers.ARCHIVES / "t10k-images-idx3-ubyte.gz", tmp_path)
    if content is not None:
        (tmp_path / LABELS).write_bytes(content)
    before = files(tmp_path)
    with pytest.raises(OSError, match="git checkout -- data") as raised:
        helpers.load_mnist(False, folder=tmp_path)
    assert str(tmp_path / LABELS) in str(raised.value) and files(tmp_path) == before


def test_a_damaged_judge_is_named_with_how_to_get_it_back(tmp_path):
    (tmp_path / "judge.pt").write_bytes(helpers.JUDGE_FILE.read_bytes()[:-200])
    with pytest.raises(ValueError, match="judge.pt' is missing or damaged .*git checkout -- data"):
        helpers.load_judge(tmp_path / "judge.pt")


@pytest.mark.parametrize("images, part", [
    (torch.full(SHAPE, torch.nan), "nan"), (torch.full(SHAPE, 1.01), "1.01"),
    (torch.zeros(28, 28), r"\(28, 28\)"), (torch.zeros(2, 3, 28, 28), r"\(2, 3, 28, 28\)"),
    (torch.zeros(0, 1, 28, 28), "at least 1")])
def test_nan_too_bright_another_shape_or_no_images_are_refused(images, part):
    with pytest.raises(ValueError, match=part):
        helpers.check_images(images)


def test_what_does_not_draw_images_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match=r"images must have the shape .*not \(2, 784\)"):
        helpers.export_generator(NETWORK[:2], tmp_path / "program.pt2", torch.zeros(2, 3))
    assert files(tmp_path) == {}


def test_a_full_disk_leaves_the_old_files(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows sets no limit to a file's size")
    figure = helpers.plot_grid(some_images(9), columns=3)
    for name in ("grid", "film", "program"):
        (tmp_path / name).write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # bytes that a file can have
    try:
        with pytest.raises(OSError, match="grid' cannot be written, and is as it was"):
            helpers.save_grid(some_images(9), tmp_path / "grid", columns=3)
        with pytest.raises(OSError, match="film' cannot be written, and is as it was"):
            helpers.film([figure], tmp_path / "film")
        with pytest.raises(OSError, match="program' cannot be written, and is as it was"):
            helpers.export_generator(NETWORK, tmp_path / "program", torch.zeros(2, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == {"grid": b"old", "film": b"old", "program": b"old"}
