"""The page that writes numbers: its arithmetic against PyTorch, its answers, what it refuses."""

import copy
import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn
from torch.nn import BatchNorm2d, ConvTranspose2d, Hardtanh, LeakyReLU, Unflatten

import gan_helpers as helpers

NODE, BROWSER = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
START = [Unflatten(1, (17, 1, 1)), ConvTranspose2d(17, 24, 4, bias=False)]  # 7 numbers, 10 labels
OTHER = nn.Sequential(*START, BatchNorm2d(24, eps=0.1), LeakyReLU(0.0),
                      ConvTranspose2d(24, 9, 3, 2, 1), BatchNorm2d(9, affine=False), LeakyReLU(0.3),
                      ConvTranspose2d(9, 5, 1), ConvTranspose2d(5, 1, 4, 4, bias=False),
                      Hardtanh())


def output_of(*command, code=None):
    return subprocess.run(command, input=code, capture_output=True, encoding="utf-8",
                          check=True, timeout=60).stdout


def script(page, name):
    return re.search(f'<script id="{name}".*?>(.*?)</script', page, re.DOTALL)[1]


@torch.no_grad()
def train(layers):
    """As if trained: all numbers differ; weights stand on the steps that an int8 can store."""
    for name, value in layers.state_dict().items():  # shares its memory with the layers
        if value.dim() == 4:
            value.random_(-127, 128)[0, :, 0, 0] = 127  # the largest of its channel
            value.mul_(0.02 / value.shape[0] ** 0.5)
        elif value.dim() == 1:
            value.uniform_(0.5, 2) if name.endswith(("weight", "var")) else value.normal_(0, 0.3)


@pytest.mark.skipif(not NODE, reason="node is not installed")
@pytest.mark.parametrize("stack", ["the notebook's", "another"])
def test_page_draws_and_turns_as_pytorch_does(story, stack):
    torch.manual_seed(0)
    layers = OTHER if stack == "another" else story.ConvGenerator(110, (128, 64, 32, 16)).layers
    train(layers)
    size, steps = layers[0].unflattened_size[0] - 10, [1.5, -4.0, 0.0, 0.25]
    latent = torch.randn(size)
    directions = {name: torch.randn(size) for name in ("slant", "width", "direction 3", "size")}
    page = helpers.writer_page(layers.train(), latent, directions, "run")
    assert layers.training
    images, turned = json.loads(output_of(NODE, "-p", code=f"""{script(page, "arithmetic")}
        const network = unpack({json.dumps(script(page, "network"))}), z = network.hand
        const images = [...Array(10).keys()].map((digit) => [...draw(network, z, digit)])
        JSON.stringify([images, turn(z, network.directions, {steps})])"""))
    asked = torch.cat([latent.expand(10, -1), torch.eye(10)], dim=1)
    expected = copy.deepcopy(layers).double().eval()(asked.double()).detach().float()
    expected = expected.mean(dim=1).flatten(1)  # of the channels of the last layer
    torch.testing.assert_close(torch.tensor(images), expected, rtol=0, atol=1e-3)
    assert expected.std(dim=0).mean() > 0.05 and expected.std(dim=1).mean() > 0.05  # they do differ
    for step, direction in zip(steps, directions.values()):
        latent = nn.functional.normalize(latent + step * direction, dim=0) * latent.norm()
    torch.testing.assert_close(torch.tensor(turned), latent, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not BROWSER, reason="neither chromium nor google-chrome is installed")
def test_page_answers_what_is_typed_without_a_network_and_a_hostile_name_is_only_text(tmp_path):
    name = "</script><b>\"NETWORK\" & 'é' <!--<script>"
    page = helpers.writer_page(OTHER, torch.randn(7), {"slant": torch.randn(7)}, name)
    assert not re.search(r"https?:|url\(|@import|src=|<link", page)
    page += """<pre id=said></pre><script>
        const answers = ["", "12a", "1234567890123", "123456789012", "4 2"].map((typed) => {
            Object.assign(document.getElementById("number"), { value: typed })
                .dispatchEvent(new Event("input"))
            return message.textContent + (save.disabled ? "" : paper.getAttribute("aria-label")) })
        const asked = performance.getEntriesByType("resource").length
        const bold = document.querySelectorAll("b").length
        const label = knobs.innerText.split("\\n")[0]
        const all = [...answers, run.textContent, bold, asked, label]
        said.textContent = JSON.stringify(all)</script>"""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    opened = output_of(BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}",
                       "--dump-dom", tmp_path / "page.html")
    assert json.loads(html.unescape(re.search('id="said">(.*?)<', opened)[1])) == [
        "Type a number, and it is written here.", "Digits only: 'a' cannot be written.",
        "At most 12 digits: this number has 13.", "123456789012 in handwriting",
        "42 in handwriting", name, 0, 0, "slant"]


@pytest.mark.parametrize("layer", [
    nn.Linear(24, 24), nn.ReLU(), BatchNorm2d(24), ConvTranspose2d(24, 24, (2, 3)),
    ConvTranspose2d(24, 24, 3, dilation=2), ConvTranspose2d(24, 24, 3, groups=2),
    ConvTranspose2d(24, 24, 3, 2, output_padding=1)], ids=str)
def test_what_the_page_cannot_draw_after_an_activation_is_refused_by_name(layer):
    with pytest.raises(ValueError, match=f"writer.html cannot draw with {type(layer).__name__}"):
        helpers.writer_page(nn.Sequential(*START, LeakyReLU(), layer), torch.zeros(7), {}, "run")
