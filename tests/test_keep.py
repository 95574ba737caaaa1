"""Checkpoint and resume: nothing is lost, nothing half-written, nothing wrongly continued."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_notebook import tiny


def new_state(story, **changes):
    settings = tiny(story, **changes)
    torch.manual_seed(0)
    generator = story.Generator(settings.latent_dim, settings.generator_widths, settings.generator_batch_norm)
    discriminator = story.Discriminator(settings.discriminator_widths)
    return story.start_state(generator, discriminator, settings, 100, "cpu")


def kept(state):
    """Everything in a state, as one flat dict of values to compare."""
    flat = {}

    def walk(name, value):
        value = value.state_dict() if hasattr(value, "state_dict") else value
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        if isinstance(value, dict):
            return [walk(f"{name}.{key}", entry) for key, entry in value.items() if key != "seconds"]
        if isinstance(value, (list, tuple)):
            return [walk(f"{name}.{index}", entry) for index, entry in enumerate(value)]
        flat[name] = value.clone() if isinstance(value, torch.Tensor) else value

    walk("", state if isinstance(state, dict) else vars(state))
    return flat


def differences(one, other):
    one, other = kept(one), kept(other)
    same = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return sorted(one.keys() ^ other.keys()) + [name for name in one.keys() & other.keys() if not same(one[name], other[name])]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trained(story, path=None, resume=False, stop_after=None, steps=[], **changes):
    """A run with checkpoints; returns the state."""
    state = new_state(story, **changes)
    images = torch.rand(state.settings.train_images, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def after_epoch(state):
        if path is None or state.epoch == 0 and story.helpers.resume(state, path, resume):
            return
        state.snapshots.append(story.helpers.to_uint8(story.helpers.generate(state.ema, state.fixed_noise)))
        story.helpers.save_checkpoint(state, path)
        if state.epoch == stop_after:
            signal.raise_signal(signal.SIGINT)  # what Jupyter's stop button sends

    torch.manual_seed(3)
    return story.train(state.generator, state.discriminator, images, state.settings, after_epoch)


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_stopped_and_resumed_is_the_same_as_in_one_piece(story, tmp_path, capsys, stop_after):
    whole = trained(story, tmp_path / "a.pt", epochs=3)
    stopped = trained(story, tmp_path / "b.pt", epochs=3, stop_after=stop_after)
    assert stopped.epoch == stop_after and len(stopped.history) == stop_after
    assert f"what follows uses: {stop_after}" in capsys.readouterr().out
    torch.randn(17)  # whatever happens in between
    resumed = trained(story, tmp_path / "b.pt", resume=True, epochs=3)
    assert f"goes on after epoch {stop_after} of 3" in capsys.readouterr().out
    assert resumed.epoch == 3 and len(resumed.snapshots) == 4 and differences(whole, resumed) == []
    assert differences(torch.load(tmp_path / "a.pt", weights_only=True), torch.load(tmp_path / "b.pt", weights_only=True)) == []


def test_differences_are_noticed(story, tmp_path):
    """The oracle of the test above can fail: another seed differs in weights, losses, Adam's memories and pictures."""
    found = differences(trained(story, tmp_path / "a.pt"), trained(story, tmp_path / "b.pt", learning_rate=2e-3))
    for part in (".generator.", ".ema.", ".g_optimizer.", ".history.0.d_loss", ".snapshots.1", ".settings.learning_rate"):
        assert any(name.startswith(part) for name in found), part


def test_killed_ten_times_and_resumed_ends_the_same(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, ROOT / "tests" / "killed_run.py", tmp_path], env=environment,
                         capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count("killed after epoch") == 10, run.stderr + run.stdout
    whole, killed = (torch.load(tmp_path / name / "mlp_checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole["epoch"] == 12 and differences(whole, killed) == []
    for name in ("whole", "killed"):
        for path in (tmp_path / name).glob("*.png"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_finished_run_says_that_it_trains_nothing_and_a_fresh_one_keeps_the_old_checkpoint(story, tmp_path, capsys):
    path = tmp_path / "mlp_checkpoint.pt"
    trained(story, path, resume=True)
    assert "there is no mlp_checkpoint.pt, so this is a fresh run" in capsys.readouterr().out
    before = path.read_bytes()
    assert trained(story, path, resume=True).epoch == 2
    assert "nothing is trained now" in capsys.readouterr().out and path.read_bytes() == before
    trained(story, path, seed=5)
    assert "kept as mlp_checkpoint.previous.pt" in capsys.readouterr().out
    assert (tmp_path / "mlp_checkpoint.previous.pt").read_bytes() == before


@pytest.mark.parametrize("changes, named", [
    (dict(r1_gamma=2.0), "r1_gamma = 1.0, and r1_gamma is now 2.0"), (dict(epochs=5), "epochs = 2"),
    (dict(generator_widths=(16, 16)), r"generator_widths = \(32, 16\)"), (dict(name="dcgan"), "name = 'mlp'"),
    (dict(betas=(0.5, 0.99)), "betas"), (dict(seed=1), "seed = 0"),
])
def test_other_settings_are_refused_by_name(story, tmp_path, changes, named):
    path = tmp_path / "c.pt"
    trained(story, path)
    state, before = new_state(story, **changes), files(tmp_path)
    untouched, random_state = kept(state), torch.get_rng_state()
    with pytest.raises(ValueError, match=named):
        story.helpers.resume(state, path, True)
    assert files(tmp_path) == before and torch.equal(torch.get_rng_state(), random_state)
    assert differences(state, untouched and state) == [] and all(
        torch.equal(value, untouched[name]) if isinstance(value, torch.Tensor) else value == untouched[name]
        for name, value in kept(state).items())


def test_another_architecture_under_the_same_settings_is_refused(story, tmp_path):
    path = tmp_path / "c.pt"
    trained(story, path)
    state = new_state(story)
    state.discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 1))
    weights = state.discriminator[1].weight.clone()
    with pytest.raises(ValueError, match="architecture: the weights of its discriminator"):
        story.helpers.load_checkpoint(state, path)
    assert torch.equal(state.discriminator[1].weight, weights) and state.epoch == 0


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_checkpoint_with_code_in_it_is_refused_and_not_run(story, tmp_path):
    path, marker = tmp_path / "c.pt", tmp_path / "ran"
    trained(story, path)
    torch.save({**torch.load(path, weights_only=True), "extra": Payload(marker)}, path)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        story.helpers.load_checkpoint(new_state(story), path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the payload does work where it is let


WRITERS = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
import gan_helpers as helpers
from dataclasses import make_dataclass
from types import SimpleNamespace
state = SimpleNamespace(settings=make_dataclass("S", ["name"])("x"), noise=torch.randn(100_000))
images = torch.rand(400, 1, 28, 28)
write = {
    "checkpoint.pt": lambda path: helpers.save_checkpoint(state, path),
    "judge.pt": lambda path: helpers.save_judge(helpers.Judge(), path),
    "grid.png": lambda path: helpers.save_grid(images, path, columns=20),
    "film.gif": lambda path: helpers.save_animation([helpers.to_uint8(images)] * 3, path, digits=400, columns=20),
    "scores.json": lambda path: helpers.save_json(list(range(100_000)), path),
    "generator.pt2": lambda path: helpers.export_generator(torch.nn.Sequential(torch.nn.Linear(64, 784), torch.nn.Tanh(),
                                                           torch.nn.Unflatten(1, (1, 28, 28))), path, 64),
}[sys.argv[2]]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the disk is full after 20 kB
try:
    write(sys.argv[2])
except OSError as error:
    print("OSError", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("name", ["checkpoint.pt", "judge.pt", "grid.png", "film.gif", "scores.json", "generator.pt2"])
def test_a_full_disk_gives_a_clear_error_and_leaves_the_last_good_file(tmp_path, name):
    (tmp_path / name).write_text("the last good file")
    run = subprocess.run([sys.executable, "-c", WRITERS, ROOT, name], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.startswith("OSError") and name in run.stdout and "as it was" in run.stdout, run.stdout + run.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "the last good file"
