"""Run the whole notebook with other seeds, and behind it more.py; print what results.md is made of.

    python tests/measure/run_seeds.py 0 1 2

Each run takes half an hour to an hour on 2 cores, and leaves output/seed_N/ with all its files, the
executed notebook and measured.txt.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent


def run(seed):
    folder = ROOT / "output" / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(GAN_SEED=str(seed), GAN_OUTPUT=str(folder))
    notebook = nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)
    more = nbformat.v4.new_code_cell("%run -i tests/measure/more.py")
    notebook.cells.append(more)
    try:
        NotebookClient(notebook, timeout=None, kernel_name="python3",
                       resources={"metadata": {"path": str(ROOT)}}).execute()
    finally:
        nbformat.write(notebook, folder / "executed.ipynb")
    printed = "".join(output.get("text", "") for output in more.outputs)
    (folder / "measured.txt").write_text(printed, encoding="utf-8")
    print(printed)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(int(argument))
