"""Checkpoint and resume: nothing is lost, nothing half-written, nothing wrongly continued."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, differences, files, flat, some_images, tiny, tiny_story


@pytest.fixture(scope="module")
def play():
    """The notebook's own training cell on tiny settings: play(folder, resume)."""
    return tiny_story()


@pytest.fixture(scope="module")
def undisturbed(play, tmp_path_factory):
    """The checkpoint at the end of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    play(folder)
    return torch.load(folder / "mlp_checkpoint.pt", weights_only=True)


def ended(folder):
    return torch.load(folder / "mlp_checkpoint.pt", weights_only=True)


class StopAt:
    """A trace function that presses stop: KeyboardInterrupt in the n-th call of a function, at its k-th line.

    The function goes by its name, or as file.name where many have that name.
    """

    def __init__(self, function, call, line):
        self.function, self.call, self.line, self.fired = function, call, line, False

    def __call__(self, frame, event, argument):
        ours = frame.f_code.co_filename.startswith("notebook cell") or "gan_helpers" in frame.f_code.co_filename \
            or "torch" in frame.f_code.co_filename
        names = (frame.f_code.co_name, f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        if ours and self.function in names and not self.fired:
            self.call -= 1
            return self.count_lines if self.call == 0 else None

    def count_lines(self, frame, event, argument):
        if event == "line":
            self.line -= 1
            if self.line == 0:
                self.fired = True
                raise KeyboardInterrupt
        return self.count_lines


@contextlib.contextmanager
def stopped_at(*moment):
    stop, before = StopAt(*moment), sys.gettrace()
    sys.settrace(stop)
    try:
        yield
    finally:
        sys.settrace(before)
    assert stop.fired, f"the run never came to {moment}"


MOMENTS = [  # function, its n-th call in the run, the line of it that is not reached; an epoch has 8 steps
    ("discriminator_step", 11, 3), ("discriminator_step", 12, 7), ("discriminator_step", 12, 6), ("r1_penalty", 3, 3),
    ("generator_step", 9, 2), ("generator_step", 13, 4), ("generator_step", 13, 5), ("forward", 40, 2), ("backward", 21, 3),
    ("update_average", 10, 2), ("update_average", 17, 4), ("step", 30, 5), ("record", 12, 2), ("report", 2, 3),
    ("shuffled_batches", 2, 3), ("draw_latent", 20, 1), ("generate", 4, 6), ("to_uint8", 2, 1), ("plot_grid", 3, 4),
    ("save_grid", 2, 3), ("frechet_of_images", 2, 1), ("save_checkpoint", 3, 3), ("write_beside", 5, 9),
    ("grad_mode.__exit__", 80, 1), ("_use_grad", 30, 8), ("_use_grad", 31, 9),
    ("fresh_players", 1, 4), ("resume", 1, 2), ("epochs", 1, 2), ("save_checkpoint", 1, 2), ("learning_rate_factor", 1, 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}-{moment[2]}")
def test_stopped_anywhere_and_run_again_ends_as_if_undisturbed(play, undisturbed, tmp_path, moment):
    """Stop, then run the cell again in the same kernel: to go on, and (from another folder) afresh."""
    for folder, resume in ((tmp_path / "go_on", True), (tmp_path / "afresh", False)):
        folder.mkdir()
        with contextlib.suppress(KeyboardInterrupt), stopped_at(*moment):  # in fresh_players there is no run to stop yet
            state = play(folder)
            assert len(state.history) < 3
        torch.randn(17)  # whatever happens in between
        assert play(folder, resume).epoch == 3
        assert differences(undisturbed, ended(folder)) == []


AUTOCAST = [("autocast_mode.__enter__", 8, line) for line in range(5, 10)] + [
    ("autocast_mode.__exit__", 8, line) for line in range(1, 7)]


@pytest.mark.parametrize("moment", AUTOCAST, ids=lambda moment: f"{moment[0]}-{moment[2]}")
def test_stopped_between_float32_and_bfloat16_and_run_again_ends_as_if_undisturbed(tmp_path, monkeypatch, moment):
    """A stop in the lines of autocast itself would leave it on, or its copies of the weights in use for good."""
    monkeypatch.setenv("GAN_PRECISION", "bfloat16")
    play = tiny_story(epochs=1, train_images=64)
    undisturbed = play(tmp_path)
    with stopped_at(*moment):
        assert play(tmp_path).epoch == 0
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")  # for the drawings that follow
    assert differences(undisturbed, play(tmp_path)) == []


def test_a_run_begins_in_the_modes_of_a_new_process(play, undisturbed, tmp_path):
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.autocast_increment_nesting()
    try:
        play(tmp_path)
        assert differences(undisturbed, ended(tmp_path)) == []
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert torch.autocast_increment_nesting() == 1
    finally:
        sys.modules["gan_helpers"].leave_modes()


def test_stopped_while_it_resumes(play, undisturbed, tmp_path):
    with stopped_at("save_checkpoint", 3, 3):
        play(tmp_path)
    with stopped_at("load_checkpoint", 1, 25):
        play(tmp_path, resume=True)
    play(tmp_path, resume=True)
    assert differences(undisturbed, ended(tmp_path)) == []


def test_stopped_inside_the_backward_pass(play, undisturbed, tmp_path, monkeypatch):
    """Where C++ runs and no line of Python is reached: a hook on a gradient."""
    def stop(gradient):
        raise KeyboardInterrupt

    for name in ("generator", "discriminator"):
        folder = tmp_path / name
        folder.mkdir()
        with monkeypatch.context() as patch:
            helpers = sys.modules["gan_helpers"]
            save = helpers.save_checkpoint

            def save_then_hook(state, path, name=name, save=save):
                save(state, path)
                if state.epoch == 1:
                    next(getattr(state, name).parameters()).register_hook(stop)

            patch.setattr(helpers, "save_checkpoint", save_then_hook)
            state = play(folder)
            assert (state.epoch, state.step) == (1, 8)
        play(folder, resume=True)
        assert differences(undisturbed, ended(folder)) == []


def test_running_the_training_cell_again_repeats_the_run(play, undisturbed, tmp_path, capsys):
    for _ in range(2):
        play(tmp_path)
        assert differences(undisturbed, ended(tmp_path)) == []
    assert "kept as mlp_checkpoint.previous.pt" in capsys.readouterr().out


def test_differences_are_noticed(undisturbed, tmp_path):
    """The oracle of the tests above can fail: another rate differs in weights, losses, Adam's memories and pictures."""
    tiny_story(learning_rate=2e-3)(tmp_path)
    found = differences(undisturbed, ended(tmp_path))
    for part in (".generator.", ".ema_generator.", ".g_optimizer.", ".history.0.d_loss", ".snapshots.1",
                 ".settings.learning_rate"):
        assert any(name.startswith(part) for name in found), part


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_again_and_again_and_resumed_ends_the_same(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # for macOS
    run = subprocess.run([sys.executable, ROOT / "tests" / "killed_run.py", tmp_path], env=environment,
                         capture_output=True, text=True, check=False)
    epochs = [int(epoch) for epoch in re.findall(r"killed after epoch (-?\d+)", run.stdout)]
    assert run.returncode == 0 and len(epochs) == 5, run.stderr + run.stdout
    assert epochs == sorted(epochs) and len(set(epochs)) >= 4 and epochs[-1] < 12  # kills at different epochs, in order
    whole, killed = (ended(tmp_path / name) for name in ("whole", "killed"))
    assert whole["epoch"] == 12 and differences(whole, killed) == []
    for name in ("whole", "killed"):
        for path in (tmp_path / name).glob("*.png"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_after_a_resume_progress_and_errors_count_from_the_resumed_step(story, tmp_path, capsys, monkeypatch):
    path = tmp_path / "c.pt"
    trained(story, path, stop_after=1, epochs=3)
    bars, line = [], story.helpers.progress_line
    monkeypatch.setattr(story.helpers, "progress_line", lambda *a: bars.append(line(*a)) or bars[-1])
    trained(story, path, resume=True, epochs=3)  # 7 steps an epoch
    assert (bars[0].initial, bars[0].n, bars[0].total) == (7, 21, 21)
    trained(story, path, stop_after=1, epochs=3)

    def poison(state):
        if state.epoch == 0 and story.helpers.resume(state, path, True):
            with torch.no_grad():
                state.discriminator.layers[1].bias[0] = float("nan")

    with pytest.raises(FloatingPointError, match="steps 8 to 14"):
        run(story, new_state(story, epochs=3).settings, poison)


def test_a_finished_run_says_that_it_trains_nothing_and_a_fresh_one_keeps_the_old_checkpoint(play, tmp_path, capsys):
    path = tmp_path / "mlp_checkpoint.pt"
    play(tmp_path, resume=True)
    assert "there is no mlp_checkpoint.pt, so this is a fresh run" in capsys.readouterr().out
    before = path.read_bytes()
    assert play(tmp_path, resume=True).epoch == 3
    assert "nothing is trained now" in capsys.readouterr().out and path.read_bytes() == before
    play(tmp_path)
    assert "of epoch 3, is kept as mlp_checkpoint.previous.pt" in capsys.readouterr().out
    assert (tmp_path / "mlp_checkpoint.previous.pt").read_bytes() == before


def test_accidental_runs_that_are_stopped_early_leave_the_good_checkpoint(play, tmp_path, capsys):
    play(tmp_path)
    good = (tmp_path / "mlp_checkpoint.pt").read_bytes()
    for _ in range(2):  # the second one finds the first one's young checkpoint
        with stopped_at("discriminator_step", 11, 3):
            play(tmp_path)
        assert (tmp_path / "mlp_checkpoint.previous.pt").read_bytes() == good
    assert "got to epoch 1 only, so its checkpoint is dropped, and the one before, of epoch 3, stays as " \
           "mlp_checkpoint.previous.pt" in capsys.readouterr().out


def test_a_fresh_run_with_other_settings_loses_no_checkpoint(tmp_path, capsys):
    """Three recipes in turn, then the first one again, stopped early, and a damaged file: everyone's best stays."""
    path, best = tmp_path / "mlp_checkpoint.pt", {}
    for gamma in (1.0, 0.0, 2.0):
        tiny_story(r1_gamma=gamma)(tmp_path)
        best[gamma] = path.read_bytes()
    with stopped_at("discriminator_step", 3, 3):
        tiny_story(r1_gamma=1.0)(tmp_path)
    path.write_bytes(b"damaged")
    tiny_story(r1_gamma=1.0)(tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.glob("*.previous*.pt")}
    assert kept == {"mlp_checkpoint.previous.pt": best[1.0], "mlp_checkpoint.previous-2.pt": best[0.0],
                    "mlp_checkpoint.previous-3.pt": best[2.0], "mlp_checkpoint.previous-4.pt": b"damaged"}
    said = capsys.readouterr().out
    assert "which cannot be read, is kept as mlp_checkpoint.previous-4.pt" in said
    assert "of epoch 3, is kept as mlp_checkpoint.previous-2.pt (rename it to mlp_checkpoint.pt to go on from it)" in said


def test_what_was_kept_goes_on_when_it_is_renamed_back(play, undisturbed, tmp_path):
    with stopped_at("discriminator_step", 20, 3):
        play(tmp_path)
    with stopped_at("discriminator_step", 3, 3):  # RESUME was forgotten
        play(tmp_path)
    (tmp_path / "mlp_checkpoint.previous.pt").replace(tmp_path / "mlp_checkpoint.pt")
    assert ended(tmp_path)["epoch"] == 2
    play(tmp_path, resume=True)
    assert differences(undisturbed, ended(tmp_path)) == []


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def new_state(story, **changes):
    """A state as it is before training; train calls after_epoch with it and is stopped there."""
    states = []

    def stop(state):
        states.append(state)
        raise KeyboardInterrupt

    run(story, tiny(story, **changes), stop)
    return states[0]


def run(story, settings, after_epoch):
    return story.train(*story.fresh_players(settings), some_images(settings.train_images), settings, after_epoch)


def trained(story, path=None, resume=False, stop_after=None, **changes):
    """A run with checkpoints; returns the state."""
    def after_epoch(state):
        if state.epoch == 0 and story.helpers.resume(state, path, resume):
            return
        story.helpers.save_checkpoint(state, path)
        if state.epoch == stop_after:
            signal.raise_signal(signal.SIGINT)  # what Jupyter's stop button sends

    return run(story, tiny(story, **changes), after_epoch)


@pytest.mark.parametrize("changes, named", [
    ({"r1_gamma": 2.0}, "r1_gamma = 1.0, and r1_gamma is now 2.0"), ({"epochs": 5}, "epochs = 2"),
    ({"generator_widths": (16, 16)}, r"generator_widths = \(32, 16\)"), ({"name": "dcgan"}, "name = 'mlp'"),
    ({"betas": (0.5, 0.99)}, "betas"), ({"seed": 1}, "seed = 0"),
])
def test_other_settings_are_refused_by_name(story, tmp_path, changes, named):
    path = tmp_path / "c.pt"
    trained(story, path)
    refused_and_unchanged(story, new_state(story, **changes), path, named)


def refused_and_unchanged(story, state, path, named):
    before, untouched, random_state = files(path.parent), flat(state), torch.get_rng_state()
    with pytest.raises(ValueError, match=named):
        story.helpers.resume(state, path, True)
    assert files(path.parent) == before and torch.equal(torch.get_rng_state(), random_state)
    assert differences(untouched, flat(state)) == []


@pytest.mark.parametrize("key", ["generator", "d_optimizer", "fixed_noise", "step", "history", "extra"])
def test_a_checkpoint_with_other_keys_is_refused_whole(story, tmp_path, key):
    path = tmp_path / "c.pt"
    trained(story, path)
    saved = torch.load(path, weights_only=True)
    saved.update(extra=1) if key == "extra" else saved.pop(key)
    torch.save(saved, path)
    refused_and_unchanged(story, new_state(story), path, f"another edition of this notebook .the difference: {key}")


def test_a_checkpoint_of_the_first_edition_is_refused_in_one_sentence(story, tmp_path):
    path = tmp_path / "mlp_checkpoint.pt"
    state = new_state(story)
    first_edition = {"settings": {"name": "mlp", "generator_batch_norm": True}, "epoch": 1, "step": 7, "history": [],
                     "snapshots": [], "distances": [], "ema": {}, "g_optimizer": {}, "d_optimizer": {}, "g_schedule": {},
                     "d_schedule": {}, "generator": state.generator.state_dict(), "random": [torch.get_rng_state()],
                     "discriminator": state.discriminator.state_dict(), "fixed_noise": state.fixed_noise}
    torch.save(first_edition, path)
    refused_and_unchanged(story, state, path, "written by another edition of this notebook")


def test_a_checkpoint_of_another_kind_of_device_is_refused(story, tmp_path):
    path = tmp_path / "c.pt"
    trained(story, path)
    saved = torch.load(path, weights_only=True)
    saved["random"]["cuda"] = saved["random"]["cpu"]
    torch.save(saved, path)
    refused_and_unchanged(story, new_state(story), path, "set GAN_DEVICE to cuda")


def test_another_architecture_under_the_same_settings_is_refused(story, tmp_path):
    path = tmp_path / "c.pt"
    trained(story, path)
    state = new_state(story)
    state.discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 1))
    weights = state.discriminator[1].weight.clone()
    with pytest.raises(ValueError, match="architecture: the weights of its discriminator"):
        story.helpers.load_checkpoint(state, path)
    assert torch.equal(state.discriminator[1].weight, weights) and state.epoch == 0


def test_another_optimiser_under_the_same_settings_is_refused(story, tmp_path):
    path = tmp_path / "c.pt"
    trained(story, path)
    state = new_state(story)
    state.d_optimizer = torch.optim.Adam(list(state.discriminator.parameters())[:2])
    refused_and_unchanged(story, state, path, "holds another d_optimizer: it trains 6 tensors, and the one here 2")


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
    run = subprocess.run([sys.executable, "-c", WRITERS, ROOT, name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.startswith("OSError") and name in run.stdout and "as it was" in run.stdout, run.stdout + run.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "the last good file"
