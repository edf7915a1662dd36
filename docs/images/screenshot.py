"""Photographs sections of a report, by their ids: python docs/images/screenshot.py PAGE PICTURE SECTION…

Needs chromium, chromedriver, selenium and Pillow.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

WIDTH = 1200
COLOURS = 200
HIDE_OTHERS = """
for (const one of document.querySelectorAll("section"))
  if (!arguments[0].includes(one.id)) one.remove();
return document.body.scrollHeight;
"""


def photograph(page: Path, sections: list[str]) -> bytes:
    """The page as PNG, its other sections left out."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    # Named, so that selenium doesn't look for one on the network.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        metrics = {"width": WIDTH, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(page.resolve().as_uri())
        height = browser.execute_script(HIDE_OTHERS, sections)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        picture = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
    small = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(photograph(Path(sys.argv[1]), sys.argv[3:]))
