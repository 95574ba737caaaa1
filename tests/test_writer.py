"""The page that writes numbers: its arithmetic against PyTorch, what it says to a reader, what it refuses."""

import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import differences, flat
from torch.nn import LeakyReLU, ReLU, Tanh, Unflatten

import gan_helpers as helpers

nn, Conv, Norm = torch.nn, torch.nn.ConvTranspose2d, torch.nn.BatchNorm2d
NODE, BROWSER = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
FIRST, LAST = [Unflatten(1, (17, 1, 1)), Conv(17, 1, 4)], [Conv(1, 1, 4), Tanh()]
OTHER = [FIRST[0], Conv(17, 24, 4, bias=False), Norm(24, eps=0.1), ReLU(), Conv(24, 9, 3, 2, 1),
         Norm(9, affine=False), LeakyReLU(0.3), Conv(9, 5, 1), Conv(5, 1, 4, 4, bias=False), Tanh()]
script = lambda page, name: re.search(f'<script id="{name}".*?>(.*?)</script', page, re.DOTALL)[1]


def evaluate(page, code, folder, opened=False):
    """The JSON of this code with the page's functions: by Node, or (without, or `opened`) in the page, by Chromium."""
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 60}
    if NODE and not opened:
        code = f"{script(page, 'arithmetic')}; const text = {json.dumps(script(page, 'network'))}; {code}"
        return json.loads(subprocess.run([NODE, "-p"], input=code, check=True, **options).stdout)
    BROWSER or pytest.skip("needs Chromium, or Node for the arithmetic")
    page += f"<pre id=said></pre><script>const text = document.scripts[0].text; said.textContent = {code}</script>"
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", f"--user-data-dir={folder}", "--dump-dom", folder / "page.html"]
    return json.loads(html.unescape(re.search('id="said">(.*?)<', subprocess.run(command, check=True, **options).stdout)[1]))


def trained(layers, between=0):
    """As if trained: every number is its own. Weights stand on the steps that int8 can store, or so far `between`."""
    torch.manual_seed(0)
    for layer in layers:
        for name, value in layer.state_dict().items():  # shares its memory with the layer
            if value.dim() == 4:
                value.random_(-127, 128)[0, :, 0, 0] = 127  # the largest of its channel
                value.add_(between * torch.rand_like(value)).mul_(0.03 / layer.in_channels**0.5 / layer.stride[0])
            elif value.dim() == 1:
                value.uniform_(0.5, 2) if name in ("weight", "running_var") else value.normal_(0, 0.3)
    return SimpleNamespace(layers=nn.Sequential(*layers))  # in training mode, and the page must draw as in eval mode


@pytest.mark.parametrize("size, dim, between", [(32, 100, 0), (32, 100, 1), (28, 7, 0)])
def test_page_draws_what_the_generator_draws_and_turns_as_the_notebook(story, tmp_path, size, dim, between):
    made = trained(OTHER if dim == 7 else story.ConvGenerator(110, (128, 64, 32, 16)).layers, between)
    latents, directions, steps = torch.randn(3, dim), torch.randn(4, dim), [1.5, -4.0, 0.0, 0.25]
    before, page = flat(made), helpers.writer_page(made, directions, "run")
    assert all(layer.training for layer in made.layers) and differences(before, flat(made)) == [] and len(page) < 4e5
    drawn, turned = evaluate(page, f"""(({{ directions, ...network }}, latents) => JSON.stringify([
        latents.map((z) => [...Array(10).keys()].map((digit) => [...draw(network, z, digit)])),
        turn(latents[0], directions, {steps})]))(unpack(text), {latents.tolist()})""", tmp_path)
    asked = torch.cat([latents.repeat_interleave(10, dim=0), torch.eye(10).repeat(3, 1)], dim=1)
    expected = made.layers.eval()(asked).detach().view(3, 10, size**2)
    assert (torch.tensor(drawn) - expected).abs().mean(dim=2).max() < (0.01 if between else 1e-5)
    assert min(expected.std(dim=axis).mean() for axis in range(3)) > 0.05  # latents, digits and pixels do differ
    for step, direction in zip(steps, directions):
        latents[0] = (moved := latents[0] + step * direction) * latents[0].norm() / moved.norm()
    torch.testing.assert_close(torch.tensor(turned), latents[0], rtol=1e-4, atol=1e-4)


def test_page_answers_what_is_typed_and_needs_no_network_and_a_hostile_name_is_only_text(tmp_path):
    page = helpers.writer_page(trained(OTHER), torch.randn(3, 7), name := "</script><b>\"NETWORK\" & 'é' <!--<script>")
    assert not re.search(r"http|//\S|url\(|@import|src=|<link", page.replace(script(page, "network"), ""))
    assert evaluate(page, r"""JSON.stringify(["", "12a", "1234567890123", "123456789012", "4 2"].map((typed) => {
        Object.assign(document.getElementById("number"), { value: typed }).dispatchEvent(new Event("input"))
        return message.textContent + (save.disabled ? "" : paper.getAttribute("aria-label"))
    }).concat(run.textContent, document.querySelectorAll("b").length))""", tmp_path, opened=True) == [
        "Type a number, and it is written here.", "Digits only: 'a' cannot be written.",
        "At most 12 digits: this number has 13.", "123456789012 in handwriting", "42 in handwriting", name, 0]


@pytest.mark.parametrize("named, layers", [
    ("Linear, Tanh", [nn.Linear(17, 4), Tanh()]), ("object", None), ("Unflatten, ConvTranspose2d", FIRST),
    ("Unflatten, ConvTranspose2d, ReLU", [*FIRST, ReLU()]), ("Unflatten", FIRST[:1]),
    ("Unflatten, ConvTranspose2d, ReLU, BatchNorm2d", [*FIRST, ReLU(), Norm(1), *LAST]),
    *[(f"Unflatten, ConvTranspose2d, {type(odd).__name__}, Conv", [*FIRST, odd, *LAST]) for odd in [
        Tanh(), nn.Dropout(0.5), Conv(1, 1, (2, 3)), Conv(1, 1, 3, (1, 2)), Conv(1, 1, 3, dilation=2),
        Conv(1, 1, 3, 2, 1, (0, 1))]]])
def test_layers_that_the_page_does_not_know_are_refused_by_name(named, layers):
    with pytest.raises(ValueError, match=f"^writer.html cannot draw with {named}.*: it takes Unflatten"):
        helpers.writer_page(SimpleNamespace(layers=layers) if layers else object(), torch.zeros(1, 7), "run")
