"""The report of a real sweep, opened in headless Chromium: `make test-browser`. Leaves screenshots in build/report/."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs the extra `browser`")

from adamtune import rundir
from adamtune.cli.app import run as command
from tests.browser import BROWSER, DRIVER, Page, browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"),
]

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "report"
PAGES = ["finished", "unfinished", "several"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sweep of digits, the same before it had a result, and both of two beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    run, other, unfinished = folder / "digits", folder / "again", folder / "unfinished"
    assert command(["sweep", str(ROOT / "configs" / "digits.yaml"), "--run-dir", str(run), "--json"]) == 0
    shutil.copytree(run, other)
    shutil.copytree(run, unfinished)
    (unfinished / rundir.RESULT).unlink()
    assert command(["report", str(unfinished), "--open", "never"]) == 0
    both = folder / "both.html"
    assert command(["report", str(run), str(other), "--to", str(both), "--open", "never"]) == 0
    return {"finished": run / rundir.REPORT, "unfinished": unfinished / rundir.REPORT, "several": both}


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, reports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.resize(1280)
        page.open(reports[request.param])
        yield request.param, reports[request.param], page


@pytest.fixture
def page(opened: tuple[str, Path, Page]) -> Iterator[Page]:
    """The page as it was opened: light, 1280 pixels wide."""
    _, _, page = opened
    yield page
    page.prefer("light")
    page.resize(1280)


def test_every_plot_is_drawn_and_nothing_complains(opened: tuple[str, Path, Page]) -> None:
    name, file, page = opened
    plots = page.run(
        """return [...document.querySelectorAll(".plot")].map((plot) => ({
            traces: plot.data.filter((trace) => trace.x.length > 0).length,
            drawn: plot.querySelectorAll(".scatterlayer .trace").length,
            size: plot.querySelector("svg.main-svg").getBoundingClientRect().width,
        }))"""
    )
    assert len(plots) >= {"finished": 10, "unfinished": 4, "several": 1}[name]
    for plot in plots:
        assert plot["drawn"] >= plot["traces"] > 0
        assert plot["size"] > 300
    assert page.complaints() == []
    requests = [url for url in page.requests() if not url.startswith("data:")]
    assert requests == [file.resolve().as_uri()]
    SHOTS.mkdir(parents=True, exist_ok=True)
    loading = page.run("const [it] = performance.getEntriesByType('navigation'); return it.domInteractive / 1000")
    measured = {"bytes": file.stat().st_size, "plots": len(plots), "parsed_s": loading, "all_drawn_s": page.seconds}
    (SHOTS / f"{name}.json").write_text(json.dumps(measured) + "\n")


_CONTRASTS = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => channels(colour).slice(0, 3).map((each) => each / 255)
  .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
  .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
const contrast = (one, other) => {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const back = getComputedStyle(document.body).backgroundColor;
const texts = [...document.querySelectorAll(".plot text")].filter((text) => text.textContent.trim());
const words = [...document.querySelectorAll("p, h1, h2, h3, td, th, li a, dt, dd, small, figcaption, summary, pre")];
const lines = [...document.querySelectorAll(".plot .js-line")].filter((line) => line.style.stroke !== "none"
  && parseFloat(line.style.strokeWidth) > 0);
const least = (colours) => Math.min(...colours.map((colour) => contrast(colour, back)));
return {
  back: light(back),
  plots: least(texts.map((text) => getComputedStyle(text).fill)),
  words: least(words.map((word) => getComputedStyle(word).color)),
  lines: least(lines.map((line) => getComputedStyle(line).stroke)),
};
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme: str, opened: tuple[str, Path, Page], page: Page) -> None:
    page.prefer(scheme)
    page.screenshot(SHOTS / f"{opened[0]}-{scheme}.png")
    found = page.run(_CONTRASTS)
    assert (found["back"] > 0.5) == (scheme == "light")
    assert found["plots"] >= 4.5  # WCAG 2.1 AA: 4.5 for text, 3 for what else must be seen
    assert found["words"] >= 4.5
    assert found["lines"] >= 3


_OVERLAPS = """
const cut = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const box = (element) => element.getBoundingClientRect();
return [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const parts = ["g.legend", "g.xtick", "g.ytick", ".xtitle", ".ytitle"].flatMap((name) =>
    [...plot.querySelectorAll(name)].filter((part) => box(part).width > 0 && box(part).height > 0));
  return parts.flatMap((one, place) => parts.slice(place + 1).filter((other) => cut(box(one), box(other)))
    .map((other) => `${plot.parentElement.ariaLabel}: ${one.textContent} and ${other.textContent}`));
});
"""


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_lies_upon_another_or_makes_the_page_scroll_sideways(
    width: int, opened: tuple[str, Path, Page], page: Page
) -> None:
    page.resize(width)
    if width == 400:
        page.screenshot(SHOTS / f"{opened[0]}-400.png")
    assert page.run("return document.documentElement.scrollWidth") == width
    assert page.run(_OVERLAPS) == []


def test_a_keyboard_and_a_screen_reader_find_their_way(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    focused = "return document.activeElement.className + document.activeElement.id"
    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.run(focused) == "skip"
    assert page.run("return document.activeElement.getBoundingClientRect().left") >= 0  # and is seen
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.run(focused) == "content"
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for node in (each for each in nodes if not each["ignored"]):
        roles.setdefault(node.get("role", {}).get("value", ""), []).append(node.get("name", {}).get("value", ""))
    for landmark in ("banner", "navigation", "main"):
        assert len(roles[landmark]) == 1
    images = roles["image" if "image" in roles else "img"]
    assert len(images) == page.run("return document.querySelectorAll('.plot').length")
    assert all(name.startswith("Plot of ") for name in images)


_AS_IN_THE_README = """
const hide = (parts) => parts.forEach((part) => { part.style.display = "none"; });
const [stages, trials] = ["#stages", "#trials"].map((name) => document.querySelector(name).closest("section"));
hide([...document.querySelectorAll("nav, details, .modebar-container, main > section")]);
[stages, trials].forEach((section) => { section.style.display = ""; });
const parts = [...stages.children], [first, second] = ["stage-1", "stage-2"].map((id) =>
  parts.findIndex((part) => part.id === id));
hide(parts.filter((part, place) => place < first || place >= second));
"""
"""The answer, the range test and all trials."""


def test_the_picture_in_the_readme_is_of_this_page(reports: dict[str, Path], tmp_path: Path) -> None:
    taken, shown = SHOTS / "readme.png", ROOT / "docs" / "report.png"  # where they differ, look and copy the one over
    with browser(tmp_path) as page:
        page.resize(940)
        page.open(reports["finished"])
        page.run(_AS_IN_THE_README)
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(taken)
    (width, height), (other_width, other_height) = (struct.unpack(">II", f.read_bytes()[16:24]) for f in (taken, shown))
    assert width == other_width == 940
    assert abs(height - other_height) < 25  # a line of text more or less


def test_the_dashboard_lists_the_studies_of_a_run(reports: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs the extra `dashboard`")
    run = reports["finished"].parent
    arguments = ["dashboard", str(run), "--port", "0", "--open", "never"]
    serving = subprocess.Popen([sys.executable, "-m", "adamtune", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        address = serving.stdout.readline().split()[0]
        with browser(tmp_path) as page:
            page.driver.get(address)
            deadline = time.monotonic() + 30
            while "digits/lr_range" not in page.run("return document.body.textContent"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=20)
    assert serving.returncode == 0
