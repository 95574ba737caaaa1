"""The notebook in a real JupyterLab in a real browser: every cell runs, every picture is seen."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import write_archives
from refresh_notebook import copy_project

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver")

RUN_ALL = """const done = arguments[0];
jupyterapp.commands.execute("notebook:run-all-cells").then(done, (error) => done(String(error)))"""
READY = """const panel = window.jupyterapp?.shell.currentWidget;
return panel?.sessionContext?.session?.kernel?.status === "idle" && panel.content.widgets.length"""
OUTPUTS = """return jupyterapp.shell.currentWidget.content.model.sharedModel.cells.flatMap(
    (cell) => cell.toJSON().outputs ?? [])"""
PICTURES = """return Promise.all([...document.querySelectorAll(".jp-Notebook img")]
    .filter((image) => !image.src.startsWith("https:"))
    .map((image) => image.decode().then(() => image.naturalWidth, () => image.src.slice(0, 99))))"""
COMPLAINTS = """return document.querySelectorAll(
    "[data-mime-type*=stderr], [data-mime-type*=error]").length"""


def wait_for(condition, what, seconds):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"{what} took more than {seconds} s"
        time.sleep(0.2)
    return result


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


@pytest.fixture
def browser(tmp_path):
    """Chromium, in which JupyterLab has opened a copy of the notebook."""
    project, settings = tmp_path / "project", tmp_path / "settings"
    project.mkdir()
    copy_project(project)
    write_archives(project / "data" / "MNIST" / "raw", kinds=10, training=6_400, test=6_000)
    notebook = project / "HandwrittenNumberGAN.ipynb"  # with fewer epochs, to save time
    shorter = notebook.read_text(encoding="utf-8").replace("epochs: int = 16", "epochs: int = 2")
    notebook.write_text(shorter, encoding="utf-8")
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # so that the page holds every cell
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
               f"--ServerApp.port={port}", f"--ServerApp.root_dir={project}",
               "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings), "GAN_OUTPUT": ""}
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage",
                     f"user-data-dir={tmp_path / 'profile'}", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(port), "JupyterLab's start", 60)
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            driver.set_script_timeout(300)
            driver.get(f"http://127.0.0.1:{port}/lab/tree/HandwrittenNumberGAN.ipynb")
            wait_for(lambda: driver.execute_script(READY), "opening the notebook", 60)
            yield driver
        finally:
            driver.quit()
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_run_all_in_jupyterlab_shows_every_picture_and_no_error(browser):
    assert browser.execute_async_script(RUN_ALL) is not None
    outputs = browser.execute_script(OUTPUTS)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("QUICK MODE" in str(output.get("text")) for output in outputs)  # it did run
    pictures = browser.execute_script(PICTURES)
    expected = sum("image/png" in output.get("data", {}) for output in outputs)
    assert len(pictures) == expected > 25
    assert [picture for picture in pictures if not isinstance(picture, int) or picture == 0] == []
    assert browser.execute_script(COMPLAINTS) == 0

    browser.switch_to.frame(browser.find_element("css selector", ".jp-Notebook iframe"))
    number = browser.find_element("id", "number")
    number.clear()
    number.send_keys("42")
    paper = browser.find_element("id", "paper")
    assert paper.get_attribute("aria-label") == "42 in handwriting"
