"""The page that writes numbers: its arithmetic against PyTorch, and its answers in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch

import gan_helpers as helpers

NODE, BROWSER = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")


def output_of(*command, code=None):
    return subprocess.run(command, input=code, capture_output=True, encoding="utf-8",
                          check=True, timeout=60).stdout


def script(page, name):
    return re.search(f'<script id="{name}".*?>(.*?)</script', page, re.DOTALL)[1]


@pytest.fixture
def layers(story):
    """As if trained: all numbers differ; weights stand on the steps that an int8 can store."""
    torch.manual_seed(0)
    layers = story.ConvGenerator(17).layers  # 7 numbers, 10 labels
    for name, value in layers.state_dict().items():  # shares its memory with the layers
        if value.dim() == 4:
            value.random_(-127, 128)[0, :, 0, 0] = 127  # the largest of its channel
            value.mul_(0.02 / value.shape[0] ** 0.5)
        elif value.dim() == 1:
            value.uniform_(0.5, 2) if name.endswith(("weight", "var")) else value.normal_(0, 0.3)
    return layers.eval()


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_page_draws_and_turns_as_pytorch_does(story, layers):
    hand, steps = torch.randn(7), [1.5, -4.0, 0.25]
    directions = torch.randn(3, 7)
    page = helpers.writer_page(layers, hand, directions, "run")
    images, turned = json.loads(output_of(NODE, "-p", code=f"""{script(page, "arithmetic")}
        const network = unpack({json.dumps(script(page, "network"))}), z = network.hand
        const images = [...Array(10).keys()].map((digit) => [...draw(network, z, digit)])
        JSON.stringify([images, turn(z, network.directions, {steps})])"""))
    asked = torch.cat([hand.expand(10, -1), torch.eye(10)], dim=1)
    expected = layers(asked).flatten(1).detach()
    torch.testing.assert_close(torch.tensor(images), expected, rtol=0, atol=1e-3)
    assert expected.std(dim=0).mean() > 0.05 and expected.std(dim=1).mean() > 0.05  # they do differ
    for step, direction in zip(steps, directions):
        hand = story.walk(hand, direction, step)
    torch.testing.assert_close(torch.tensor(turned), hand, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not BROWSER, reason="neither chromium nor google-chrome is installed")
def test_page_answers_what_is_typed_without_a_network_and_a_hostile_name_is_only_text(
        layers, tmp_path):
    name = "</script><b>\"NETWORK\" & 'é' <!--<script>"
    page = helpers.writer_page(layers, torch.randn(7), torch.randn(2, 7), name)
    assert not re.search(r"https?:|url\(|@import|src=|<link", page)
    page += """<pre id=said></pre><script>
        const answers = ["", "12a", "4 2"].map((typed) => {
            Object.assign(document.getElementById("number"), { value: typed })
                .dispatchEvent(new Event("input"))
            return message.textContent + (save.disabled ? "" : paper.getAttribute("aria-label")) })
        said.textContent = JSON.stringify([...answers, run.textContent])</script>"""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    opened = output_of(BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}",
                       "--dump-dom", tmp_path / "page.html")
    assert json.loads(html.unescape(re.search('id="said">(.*?)<', opened)[1])) == [
        "Type a number, and it is written here.", "Digits from 0 to 9 only: 'a' cannot be written.",
        "42 in handwriting", name]
