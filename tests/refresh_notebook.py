"""Make the committed notebook: one full Restart-and-Run-All, then the hygiene checks.

    python tests/refresh_notebook.py

Runs in a copy of this folder, keeps the cell ids, strips widget state, refuses quick mode and errors; the notebook is
replaced only by a run that went through and passed the checks. The README's pictures in .github/ come from the same run,
and its results go to output/, but for the checkpoints.
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
PICTURES = ["can_you_tell.png"]


def smaller(picture):
    """A PNG in base64 with at most 256 colours, half of the size; a film stays as it is."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if getattr(image, "n_frames", 1) > 1:
            return picture
        file = io.BytesIO()
        image.convert("RGB").quantize(256, dither=0).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def strip(notebook):
    """Remove what must not be committed: widget state, run times of cells, needless colours of pictures."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def main():
    if os.environ.get("GAN_QUICK") == "1":
        sys.exit("GAN_QUICK=1 is set: the committed notebook carries a full run. Unset it and run this again.")
    for name in ("GAN_OUTPUT", "GAN_DEVICE"):
        if name in os.environ:
            sys.exit(f"{name} is set: the committed notebook is made with the defaults. Unset it and run this again.")
    sys.path.insert(0, str(ROOT))
    from gan_helpers import write_whole
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ids = [cell["id"] for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as folder:
        # A clone of its own, so that what an earlier run left in output/ changes nothing.
        clone = Path(folder) / "HandwrittenNumberGAN"
        shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns("output", ".git", "__pycache__", ".*_cache"))
        client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(clone)}})
        client.execute()  # raises at the first error
        strip(notebook)
        if [cell["id"] for cell in notebook.cells] != ids:
            sys.exit("cell ids changed during the run: nothing written")
        nbformat.write(notebook, clone / NOTEBOOK.name)
        check = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_notebook.py"]
        if (clone / "tests" / "test_notebook.py").exists() and subprocess.run(check, cwd=clone, check=False).returncode:
            failed = ROOT / "output" / "HandwrittenNumberGAN.failed.ipynb"
            failed.parent.mkdir(exist_ok=True)
            shutil.copyfile(clone / NOTEBOOK.name, failed)
            sys.exit(f"the checks above failed: the notebook is as it was, and what they saw is in {failed}")
        write_whole(NOTEBOOK, (clone / NOTEBOOK.name).read_bytes())
        for name in PICTURES:
            write_whole(ROOT / ".github" / name, (clone / "output" / name).read_bytes())
        shutil.copytree(clone / "output", ROOT / "output", dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("*_checkpoint.pt"))  # there may be a run of somebody's own


if __name__ == "__main__":
    main()
