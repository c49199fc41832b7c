"""The server's page in headless Chromium: which model it names, and what it shows of a picture."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from imgcls_infer.preprocess import preprocess
from infer.pictures import encode, noise

from .harness import serving, wait_until

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PICTURE = encode(noise(12, 20), "PNG")
USE = """(async () => {
  const until = async (found) => {
    for (let tries = 0; tries < 400 && !found(); tries++) await new Promise((done) => setTimeout(done, 50));
    return found();
  };
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], "noise.png", { type: "image/png" }));
  const files = document.getElementById("files");
  files.files = transfer.files;
  files.dispatchEvent(new Event("change"));
  await until(() => document.querySelector("figure img")?.naturalWidth);
  const seen = document.querySelector("figure img");
  const canvas = new OffscreenCanvas(seen.naturalWidth, seen.naturalHeight);
  canvas.getContext("2d").drawImage(seen, 0, 0);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const answer = document.querySelector(".card h2").textContent;
  const camera = document.getElementById("camera-button");
  camera.click();
  const video = document.getElementById("camera");
  await until(() => !video.hidden && video.videoWidth);
  camera.click();
  const names = () => Array.from(document.querySelectorAll(".card .file"), (node) => node.textContent);
  await until(() => names().length === 2);
  document.getElementById("camera-off").click();
  const heading = document.querySelector("h1").textContent;
  const about = document.getElementById("about").textContent;
  const size = [canvas.height, canvas.width];
  const off = video.hidden && video.srcObject.getTracks().every((track) => track.readyState === "ended");
  const page = { heading, about, answer, names: names(), off, size, pixels: Array.from(pixels) };
  return JSON.stringify(page);
})()"""


class Browser:
    """Chromium's DevTools protocol over a pair of pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, process, commands, answers):
        self.process, self.commands, self.answers, self.sent = process, commands, answers, 0

    def ask(self, method, session=None, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        self.commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self.commands.flush()
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self.sent:
                return answer.get("result", {})

    def value(self, session, script):
        """What a script of the page gives, once it is there; None where the page goes away meanwhile."""
        told = self.ask("Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True)
        return told.get("result", {}).get("value")

    def _message(self):
        found = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            found += byte
        return bytes(found)


@contextmanager
def browser(folder):
    program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        pytest.skip("Chromium is not installed: the page is not run")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe", *fake]
    line = shlex.join([program, *options, f"--user-data-dir={folder}"])
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} 3<&{theirs_in} 4>&{theirs_out}"],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(ours_out, "wb") as commands, os.fdopen(ours_in, "rb") as answers:
            yield Browser(process, commands, answers)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_page_names_the_model_file_shows_what_the_network_sees_and_takes_the_camera(tiny, tmp_path):
    with serving(tiny) as client, browser(tmp_path / "profile") as chromium:
        target = chromium.ask("Target.createTarget", url=str(client.base_url))["targetId"]
        session = chromium.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        script = USE % base64.b64encode(PICTURE).decode()
        about = "document.getElementById('about')?.textContent"
        wait_until(lambda: chromium.value(session, about))
        page = json.loads(chromium.value(session, script))
    assert page["heading"] == tiny.path.name
    assert page["about"].startswith(f"{tiny.manifest.arch}, 3 classes, 8 x 8 pixels, fp32")
    assert page["answer"] == tiny.predict(PICTURE).label
    expected = preprocess(PICTURE, tiny.manifest.preprocessing)
    assert page["size"] == list(expected.shape[:2])
    assert np.reshape(page["pixels"], (*expected.shape[:2], 4))[..., :3].tolist() == expected.tolist()
    camera, chosen = page["names"]
    assert camera.startswith("camera, ")
    assert chosen.startswith("noise.png · ")
    assert page["off"]
