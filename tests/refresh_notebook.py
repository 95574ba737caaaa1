"""Make the committed notebook: one full Restart-and-Run-All, then the checks of test_notebook.py.

    python tests/refresh_notebook.py

Runs in a copy of this folder without what git ignores, keeps the cell ids, strips widget state,
refuses quick mode and errors. The notebook is replaced only by a run that went through and passed
the checks. The README's pictures in .github/ come from the same run, and its results go to output/,
but for the checkpoints. (The notebook's first cell shows a picture of .github/, so that of the run
before: on the same machine the same one, if nothing has changed between the two.)
"""

import base64
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "HandwrittenNumberGAN.ipynb"
PICTURES = ("can_you_tell.png", "training.gif")


def copy_project(folder):
    """Copy what is committed or about to be: no output/, no .venv, no caches."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if (ROOT / name).is_file():  # not the end of the list, and no file deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def smaller(picture):
    """A PNG in base64 with at most 256 colours, half of the size; a film stays as it is."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if getattr(image, "n_frames", 1) > 1:
            return picture
        file = io.BytesIO()
        image.convert("RGB").quantize(256, dither=0).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def strip(notebook):
    """Remove widget state, run times of cells, and needless colours of pictures."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])


def keep_failed(path):
    """Put a notebook that failed the checks where it can be looked at, and end."""
    failed = ROOT / "output" / "HandwrittenNumberGAN.failed.ipynb"
    failed.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, failed)
    sys.exit(f"the checks above failed: the notebook is as it was; what they saw is in {failed}")


def main():
    for name in ("GAN_QUICK", "GAN_OUTPUT", "GAN_DEVICE", "GAN_SEED"):
        if name in os.environ:
            sys.exit(f"{name} is set: the committed notebook is a full run with the defaults. "
                     "Unset it and run this again.")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ids = [cell["id"] for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "HandwrittenNumberGAN"
        copy_project(clone)
        NotebookClient(notebook, timeout=None, kernel_name="python3",
                       resources={"metadata": {"path": str(clone)}}).execute()  # or raises
        strip(notebook)
        if [cell["id"] for cell in notebook.cells] != ids:
            sys.exit("cell ids changed during the run: nothing written")
        nbformat.write(notebook, clone / NOTEBOOK.name)
        checks = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                                 "tests/test_notebook.py"], cwd=clone, check=False)
        if checks.returncode != 0:
            keep_failed(clone / NOTEBOOK.name)
        sys.path.insert(0, str(ROOT))
        from gan_helpers import write_whole
        write_whole(NOTEBOOK, (clone / NOTEBOOK.name).read_bytes())
        for name in PICTURES:
            write_whole(ROOT / ".github" / name, (clone / "output" / name).read_bytes())
        # no checkpoints, since there may be a run of somebody's own, and not six thousand pictures
        others = shutil.ignore_patterns("*_checkpoint.pt", "coloured_digits")
        shutil.copytree(clone / "output", ROOT / "output", dirs_exist_ok=True, ignore=others)


if __name__ == "__main__":
    main()
