"""Section 15: from a folder of odd pictures to a generator, by the notebook's own cells."""

import re
import sys

import numpy as np
import pytest
import torch
from notebook_code import NOTEBOOK, SOURCES, new_names, notebook_code, run_cell, some_images
from PIL import Image
from torchvision.utils import save_image

import gan_helpers as helpers

RED, GREY, INK, PAPER = (255, 0, 0), (128,) * 3, (0, 0, 0), (255, 255, 255)


def half_and_half(mode, left, right, size=(8, 8)):
    picture = Image.new(mode, size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def palette():
    """Red, and a transparent colour."""
    picture = half_and_half("P", 1, 0)
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.info["transparency"] = 0
    return picture


def sixteen_bits():
    values = np.full((8, 8), 65535, np.uint16)
    values[:, :4] = 128 * 256
    return Image.fromarray(values)


@pytest.mark.parametrize("name, picture, left, right", [
    ("grey.png", half_and_half("L", 128, 255), GREY, PAPER),
    ("black and white.png", half_and_half("1", 0, 1), INK, PAPER),
    ("colour.png", half_and_half("RGB", RED, INK), RED, INK),
    ("transparent ink.png", half_and_half("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)), INK, PAPER),
    ("half transparent.png", half_and_half("LA", (0, 127), (0, 0)), GREY, PAPER),
    ("palette.png", palette(), RED, PAPER),
    ("sixteen bits.png", sixteen_bits(), GREY, PAPER),
    ("print.tif", half_and_half("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), RED, INK)])
def test_every_kind_of_picture_is_read_as_it_looks_on_paper(story, tmp_path, name, picture, left,
                                                            right):
    picture.save(tmp_path / name)
    read = story.images_from(tmp_path, 8, 3)[:]
    assert read.shape == (1, 3, 8, 8) and read.dtype == torch.float32
    for half, colour in [(read[..., :4], left), (read[..., 4:], right)]:
        expected = torch.tensor(colour)[None, :, None, None] / 127.5 - 1
        torch.testing.assert_close(half, expected.expand_as(half), rtol=0, atol=2 / 127.5)
    grey = story.images_from(tmp_path, 8, 1).pixels
    luma = Image.new("RGB", (1, 1), left).convert("L").getpixel((0, 0))
    assert grey.shape == (1, 1, 8, 8) and abs(grey[0, 0, 0, 0].item() - luma) <= 2


def test_a_picture_is_turned_upright_and_padded_to_a_square_and_a_large_one_is_not_cut(
        story, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "the camera was turned": show it a quarter to the right
    half_and_half("RGB", RED, INK, (64, 32)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    half_and_half("RGB", RED, INK, (2000, 1000)).save(tmp_path / "b.jpg", quality=95)
    turned, large = story.images_from(tmp_path, 16, 3, paper="blue")[:].round()
    red, ink, blue = torch.tensor([[1, -1, -1], [-1, -1, -1], [-1, -1, 1]])
    for picture in (turned, large.transpose(1, 2)):  # red over black, blue on both sides
        assert (picture[:, :, 0].T == blue).all() and (picture[:, :, -1].T == blue).all()
        assert torch.equal(picture[:, 2, 8], red) and torch.equal(picture[:, -2, 8], ink)


@pytest.mark.skipif(sys.platform == "win32", reason="a link there needs an administrator")
def test_what_is_no_picture_is_named_and_skipped_and_the_rest_is_read(story, tmp_path, capsys):
    good = tmp_path / "Ordner mit Ümläuten" / "schönes Bild 1.png"
    good.parent.mkdir()
    save_image(some_images(1, 20), good, normalize=True)
    (good.parent / ".ipynb_checkpoints").mkdir()
    save_image(some_images(1, 20), good.parent / ".ipynb_checkpoints" / "copy.png", normalize=True)
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    half_and_half("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)).save(tmp_path / "ink.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "cat.png").write_text("This is not a cat.")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (20, 20), RED).save(tmp_path / "red.png")
    assert len(story.images_from(tmp_path, 8, 3, paper="black")) == 1
    said = capsys.readouterr().out
    assert "1 pictures in all, 0 of them smaller than 8 x 8; 5 other files" in said
    for name, reason in [("cat", "cannot identify"), ("cut", "truncated"), ("ink", "of one colour"),
                         ("link", "No such file"), ("red", "of one colour")]:
        assert re.search(f"skipped {name}.png: .*{reason}", said)
    assert len(story.images_from(tmp_path, 9, 3)) == 2  # on white paper one sees black ink
    assert "2 pictures in all, 1 of them smaller than 9 x 9" in capsys.readouterr().out


@pytest.mark.parametrize("name, error", [("empty", ValueError), ("not there", FileNotFoundError)])
def test_a_folder_that_is_empty_or_not_there_is_named_in_an_error(story, tmp_path, name, error):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=name):
        story.images_from(tmp_path / name, 8, 3)


@pytest.mark.parametrize("images, message", [
    (torch.eye(28).expand(9, 1, 28, 28), "black must be -1, and here the darkest pixel is 0"),
    (some_images(9).mul(127.5).add(127.5).byte(), "up to 25"),
    (some_images(9) * 3, r"pixels in \[-1, 1\]"),
    (torch.cat([some_images(8), torch.full((1, 1, 28, 28), -1.0)]), "1 of 9 images are all of one"),
    (torch.tensor([1.0, 0, -1])[:, None, None].expand(9, 3, 28, 28), "9 of 9 images"),
    (some_images(9).expand(9, 2, 28, 28), "1 or 3"), (some_images(9).double(), "dtype")])
def test_no_game_is_trained_on_images_of_the_wrong_kind(tmp_path, images, message):
    names = notebook_code()
    names["output"] = tmp_path
    game = names["LongGame"](names["settings"])
    with pytest.raises((ValueError, RuntimeError), match=message):
        names["train"](game, images)
    assert game.turn == 0


def blocks_of(cell):
    text, = [each.source for each in NOTEBOOK.cells if each.id == cell]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_line_of_the_way_from_a_folder_to_a_generator(channels, tmp_path):
    """In grey and in colour: a few small pictures of three kinds, and eight turns a game."""
    for number in range(9):
        kind = tmp_path / "my pictures" / f"kind {number % 3}"
        kind.mkdir(parents=True, exist_ok=True)
        noise = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(number))
        save_image(noise, kind / f"{number}.png")
    names = notebook_code()
    names.update(output=tmp_path, EPOCH=2, save_image=save_image, sample=tmp_path / "my pictures")
    assert SOURCES["own-pictures"].count("sample, 3") == 1
    exec(SOURCES["own-pictures"].replace("sample, 3", f"sample, {channels}"), names)
    for block in blocks_of("own-pictures-read"):  # mirrored, and shifted whenever it is picked
        exec(block, names)
    assert len(names["pictures"]) == 18
    for cell in ("own-train", "own-page", "own-detective"):
        run_cell(cell, names)
    assert names["mine"].turn == 8 and (tmp_path / "my pictures_epoch_08.png").exists()
    assert names["drawings"].shape == (24, channels, 64, 64)
    names["export"](names["mine"].average, "pictures.pt2", torch.randn(10, 100))
    run_program, = blocks_of("writer-about")
    here = tmp_path.as_posix()
    exec(run_program.replace("output/", f"{here}/").replace('"seven', f'"{here}/seven'), {})
    assert Image.open(tmp_path / "seven.png").size == (7 * 66 + 2, 68)

    longer = SOURCES["own-train"].replace("epochs=8", "epochs=9").replace("=False", "=True")
    exec(longer, names)
    assert names["mine"].turn == 9 and list(names["mine"].drawings) == list(range(10))

    names["picture_settings"] = names["replace"](names["picture_settings"], epochs=2)
    for block in blocks_of("own-train-read") + blocks_of("own-few"):
        exec(block, names)
    assert names["larger"].drawings[2].shape == (16, channels, 128, 128)
    assert names["told"].turn == 16 and names["KINDS"] == 3 and len(names["labels"]) == 9
    assert names["labelled"].shape == (9, channels, 64, 64)


def test_pictures_are_kept_as_bytes_and_come_as_floats(story):
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    pictures = story.Pictures(pixels)
    assert len(pictures) == 2 and pictures.pixels.dtype == torch.uint8
    torch.testing.assert_close(pictures[torch.tensor([1])], pixels[1:].float() / 127.5 - 1)
    helpers.check_data(pictures[:])


def test_the_cells_that_the_text_names_make_a_script(tmp_path, monkeypatch):
    """Section 15 says which cells a script needs: these, and no others."""
    save_image(some_images(2, 20), tmp_path / "one.png", normalize=True)
    names = new_names()
    monkeypatch.setenv("GAN_OUTPUT", str(tmp_path / "output"))
    run_cell("imports", names)
    exec("SEED, EPOCH = 0, 468\nimport copy, math\nplt.switch_backend('agg')", names)
    for cell in ("generator", "discriminator", "discriminator-step", "generator-step", "play",
                 "new-players", "r1", "ema", "settings", "state", "train", "open-picture",
                 "images-from", "images-from-folder"):
        run_cell(cell, names)
    exec(SOURCES["own-pictures"].replace("sample, 3", f"{str(tmp_path)!r}, 1"), names)
    for cell in ("generator-64", "discriminator-64"):
        run_cell(cell, names)
    short = re.sub("max.* else 234", "1", SOURCES["own-train"])
    exec(short, names)
    exec(SOURCES["export"], names)
    assert names["mine"].turn == 8 and (names["output"] / "pictures.pt2").exists()
