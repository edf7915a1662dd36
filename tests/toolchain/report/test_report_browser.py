"""The page of `slimdeploy report` in a real browser."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile

import pytest

from slimdeploy.tests.toolchain.report.expected_charts import CHARTS, SWEEP_CHARTS

pytestmark = pytest.mark.xdist_group("report")  # one worker makes what they share

ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        service = webdriver.chrome.service.Service(driver)
        found = webdriver.Chrome(options=options, service=service)
        try:
            yield found
        finally:
            found.quit()


@contextlib.contextmanager
def opened(browser, page, *, width, dark=False):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(page.as_uri())
    yield browser.execute_script
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize(("which", "charts"), [("page", CHARTS), ("sweep_page", SWEEP_CHARTS)])
def test_every_chart_is_drawn_and_readable(browser, request, which, charts, width):
    with opened(browser, request.getfixturevalue(which), width=width) as js:
        assert js("return document.documentElement.scrollWidth <= innerWidth")
        assert js("return performance.getEntriesByType('resource').length") == 0
        sizes = js("""
            return [...document.querySelectorAll("figure svg")].map(svg => {
              const box = svg.getBoundingClientRect(), letters = svg.querySelectorAll("text");
              const outside = [...letters].filter(text => {
                const own = text.getBoundingClientRect();
                return own.left < box.left - 12 || own.right > box.right + 12;
              });
              const marks = [...svg.querySelectorAll("path.line, circle.fill, rect.fill")]
                .filter(mark => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 2);
              return {name: svg.ariaLabel, width: box.width, height: box.height, marks: marks.length,
                      letters: letters.length, outside: outside.map(text => text.textContent),
                      font: 12 * box.width / svg.viewBox.baseVal.width};
            })""")
    assert len(sizes) == len(charts)
    for size in sizes:
        assert size["width"] > 250, size
        assert size["height"] > 150, size
        assert size["marks"] >= 1, size
        assert size["letters"] >= 3, size
        assert size["outside"] == [], size
        assert 9 <= size["font"] <= 18, size


def test_charts_answer_to_pointer_and_keyboard(browser, page):
    from selenium.webdriver import ActionChains, Keys

    with opened(browser, page, width=1440) as js:
        svg = browser.find_element("css selector", "#latency-1 svg")
        tip = browser.find_element("css selector", "#latency-1 .tip")
        js("arguments[0].scrollIntoView({block: 'center'})", svg)
        ActionChains(browser).move_to_element(svg).perform()
        assert re.search(r"time of a run [\d.]+ m?s: (original|final) [\d.]+ %", tip.text)
        js("arguments[0].focus()", svg)
        svg.send_keys(Keys.HOME)
        first = tip.text
        svg.send_keys(Keys.ARROW_RIGHT)
        second = tip.text
        assert first
        assert second
        assert first != second
        svg.send_keys(Keys.ARROW_LEFT)
        assert tip.text == first
        svg.send_keys(Keys.ESCAPE)
        assert tip.text == ""


def test_light_and_dark_differ_and_both_have_contrast(browser, page):
    def luminance(colour):
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
        return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    seen = []
    for dark in (False, True):
        with opened(browser, page, width=1440, dark=dark) as js:
            page_colour = luminance(js("return getComputedStyle(document.body).backgroundColor"))
            letters = luminance(js("return getComputedStyle(document.querySelector('svg text')).fill"))
            lines = js("return [...document.querySelectorAll('.line')].map(e => getComputedStyle(e).stroke)")
            seen.append(page_colour)

            def contrast(value, page_colour=page_colour):
                high, low = max(value, page_colour), min(value, page_colour)
                return (high + 0.05) / (low + 0.05)

            assert contrast(letters) >= 7  # WCAG 2.2, AAA for text
            strong = [contrast(luminance(colour)) for colour in lines]
            assert sorted(strong)[len(strong) // 4] >= 3  # AA for graphics; the pale fill alone may be below
    assert seen[0] > 0.9 > 0.1 > seen[1]
