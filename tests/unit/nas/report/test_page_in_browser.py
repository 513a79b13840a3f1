"""The page in a real browser: every panel has marks, they answer to the pointer and the keyboard, and nothing fails."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_search import MadeUp
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By

from nas.report.html.data import Page, page_of
from nas.report.html.page import write
from nas.study.snapshot import open_study, snapshot

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("needs the programs chromium and chromedriver", allow_module_level=True)
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "window-size=1200,900"]
WHERE = """
const [one] = arguments, box = one.getBoundingClientRect();
if (!one.classList.contains("line")) return [box.x + box.width / 2, box.y + box.height / 2];
const first = one.getPointAtLength(0).matrixTransform(one.getScreenCTM());
return [first.x, first.y];
"""
ATTACK = "</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in [*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chrome')}"]:
        options.add_argument(f"--{flag}")
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def search(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    made = MadeUp(tiny_teacher_folder, tmp_path_factory.mktemp("search"))
    made.screen()
    made.trials(6, failing=[4], reason=ATTACK)
    made.conclude()
    return made


@pytest.fixture(scope="module")
def page(search: MadeUp) -> Path:
    return write(read(search), search.plan.folder / "page.html")


@pytest.fixture
def shown(browser: Chrome, page: Path) -> Chrome:
    return opened(browser, page)


def opened(browser: Chrome, path: Path, width: int = 1200) -> Chrome:
    sizes = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    browser.get_log("browser")
    browser.get(path.as_uri())
    return browser


def complaints(browser: Chrome) -> list[str]:
    return [one["message"] for one in browser.get_log("browser")]


def point_at(browser: Chrome, selector: str) -> None:
    """Move the pointer to the middle of an element, or to the first point of a line."""
    found = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    x, y = browser.execute_script(WHERE, found)
    actions = ActionBuilder(browser)
    actions.pointer_action.move_to_location(round(x), round(y))
    actions.perform()


def read(made: MadeUp, running: bool = False) -> Page:
    return page_of([snapshot(open_study(made.plan.storage, made.plan.study))], running)


def click(browser: Chrome) -> None:
    ActionChains(browser).click().perform()


def test_every_chart_has_marks_and_the_console_is_silent(shown: Chrome) -> None:
    counted = {
        one.get_attribute("data-chart"): len(one.find_elements(By.CSS_SELECTOR, ".mark"))
        for one in shown.find_elements(By.CSS_SELECTOR, "[data-chart]")
    }
    assert set(counted) == {"curves", "sizes", "parallel", "screening", "removals", "neurons", "heads", "shares"}
    assert all(counted.values()), counted
    bare = [
        one.get_attribute("data-panel")
        for one in shown.find_elements(By.CSS_SELECTOR, "section")
        if not one.find_elements(By.CSS_SELECTOR, ".mark, td")
    ]
    assert bare == ["settings"] or not bare
    assert len(shown.find_elements(By.CSS_SELECTOR, "td.interval .mark")) >= 2
    assert complaints(shown) == []


@pytest.mark.parametrize("chart", ["curves", "sizes", "parallel", "screening"])
def test_a_mark_names_its_architecture_and_picks_its_rows(shown: Chrome, search: MadeUp, chart: str) -> None:
    mark = f"[data-chart={chart}] .mark.kind-winner"
    point_at(shown, f"{mark} .dot, {mark} .line")
    tip = shown.find_element(By.ID, "tip")
    assert tip.is_displayed()
    key = tip.text.splitlines()[0]
    assert key in {one.key for one in search.plan.target.feasible}
    click(shown)
    rows = shown.find_elements(By.CSS_SELECTOR, "tr.picked")
    assert rows
    assert {row.get_attribute("data-key") for row in rows} == {key}
    assert key in shown.find_element(By.ID, "picked").text
    ActionChains(shown).send_keys(Keys.ESCAPE).perform()
    assert not shown.find_elements(By.CSS_SELECTOR, ".picked")


def test_a_row_picks_the_marks_of_all_charts(shown: Chrome) -> None:
    point_at(shown, "table.final tr.winner")
    click(shown)
    for chart in ("curves", "sizes", "parallel", "screening"):
        assert len(shown.find_elements(By.CSS_SELECTOR, f"[data-chart={chart}] .mark.picked")) == 1


def test_the_keyboard_goes_from_mark_to_mark(shown: Chrome) -> None:
    marks = shown.find_elements(By.CSS_SELECTOR, "[data-chart=curves] .mark")
    assert [one.get_attribute("tabindex") for one in marks].count("0") == 1
    shown.execute_script("arguments[0].focus()", marks[0])
    ActionChains(shown).send_keys(Keys.ARROW_RIGHT).perform()
    focused = shown.switch_to.active_element
    assert focused == marks[1]
    key = focused.get_attribute("data-key")
    assert focused.get_attribute("aria-label").startswith(key)
    assert key in shown.find_element(By.ID, "tip").text
    ActionChains(shown).send_keys(Keys.ENTER).perform()
    assert {one.get_attribute("data-key") for one in shown.find_elements(By.CSS_SELECTOR, ".picked[data-key]")} == {key}


def test_the_horizontal_axis_can_be_chosen(shown: Chrome) -> None:
    before = shown.find_element(By.CSS_SELECTOR, "[data-chart=sizes] svg[height]").get_attribute("outerHTML")
    choice = shown.find_element(By.CSS_SELECTOR, "[data-chart=sizes] option[value=memory_bytes]")
    choice.click()
    assert shown.find_element(By.CSS_SELECTOR, "[data-chart=sizes] svg[height]").get_attribute("outerHTML") != before


def test_the_colours_follow_the_button(shown: Chrome) -> None:
    def ground() -> str:
        return str(shown.execute_script("return getComputedStyle(document.body).backgroundColor"))

    before = ground()
    shown.find_element(By.ID, "theme").click()
    after = ground()
    assert before != after
    shown.find_element(By.ID, "theme").click()
    assert ground() == before


def test_it_is_printed_dark_on_light(shown: Chrome) -> None:
    shown.execute_script("localStorage.clear()")  # the choice of another test
    shown.refresh()
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    for media, ground in (("screen", "rgb(20, 23, 27)"), ("print", "rgb(255, 255, 255)")):
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": dark})
        body = shown.find_element(By.TAG_NAME, "body")
        assert shown.execute_script("return getComputedStyle(arguments[0]).backgroundColor", body) == ground
    assert not shown.find_element(By.ID, "theme").is_displayed()
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_is_as_wide_as_its_window(browser: Chrome, page: Path, width: int) -> None:
    opened(browser, page, width)
    root = browser.find_element(By.TAG_NAME, "html")
    assert int(root.get_property("scrollWidth")) <= int(root.get_property("clientWidth"))
    charts = browser.find_elements(By.CSS_SELECTOR, "[data-chart] svg[height]")
    assert all(one.size["width"] <= width for one in charts)
    assert complaints(browser) == []


def test_it_works_in_the_frame_of_another_page(browser: Chrome, page: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.html"
    source = html.escape(page.read_text("utf-8"))
    outer.write_text(
        f'<iframe sandbox="allow-scripts" style="width:100%;height:90vh" srcdoc="{source}"></iframe>', "utf-8"
    )
    opened(browser, outer)
    browser.switch_to.frame(0)
    assert browser.find_elements(By.CSS_SELECTOR, "[data-chart=curves] .mark")
    browser.find_element(By.ID, "theme").click()
    browser.find_element(By.CSS_SELECTOR, ".copy").click()
    assert browser.find_element(By.CSS_SELECTOR, ".copy").text in ("copied", "selected")
    browser.switch_to.default_content()
    assert complaints(browser) == []


def test_text_from_outside_stays_text(shown: Chrome) -> None:
    assert shown.title == "made-up"
    assert not shown.find_elements(By.TAG_NAME, "img")
    assert ATTACK in shown.find_element(By.CSS_SELECTOR, "[data-panel=stages]").text


@pytest.mark.parametrize("steps", [(), ("screen",), ("screen", "trials"), ("trials", "conclude")])
def test_a_search_at_any_point_is_drawn(
    browser: Chrome, tiny_teacher_folder: Path, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    made = MadeUp(tiny_teacher_folder, tmp_path, trials=9)
    for step in steps:
        getattr(made, step)(*([3] if step == "trials" else []))
    opened(browser, write(read(made, running=True), tmp_path / "page.html"))
    empty = [
        one.get_attribute("data-chart")
        for one in browser.find_elements(By.CSS_SELECTOR, "[data-chart]")
        if not one.find_elements(By.CSS_SELECTOR, ".mark, .missing")
    ]
    assert not empty
    assert complaints(browser) == []


def test_students_that_are_not_trained_are_drawn(browser: Chrome, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    made = MadeUp(tiny_teacher_folder, tmp_path, tokens_per_trial=0, finalists=0, sampler="exhaustive")
    made.trials(6)
    made.conclude()
    opened(browser, write(read(made), tmp_path / "page.html"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "[data-chart=curves] .mark")) == 6
    assert complaints(browser) == []


def test_a_winner_with_sizes_by_layer_is_drawn_layer_by_layer(browser: Chrome, search: MadeUp, tmp_path: Path) -> None:
    page = read(search)
    (part,) = page.parts
    assert part.winner is not None
    layers = ((4, 90), (3, 96), (2, 60))
    varied = replace(page, parts=(replace(part, winner=replace(part.winner, by_layer=layers)),))
    opened(browser, write(varied, tmp_path / "page.html"))
    marks = browser.find_elements(By.CSS_SELECTOR, "[data-chart=layers] .mark")
    assert [one.get_attribute("aria-label") for one in marks] == [
        f"layer {place}, {heads} heads, {mlp} MLP neurons" for place, (heads, mlp) in enumerate(layers)
    ]
    assert complaints(browser) == []


def test_two_studies_are_drawn_together(
    browser: Chrome, search: MadeUp, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    other = MadeUp(tiny_teacher_folder, tmp_path, study="other", budget="50%")
    other.trials(6)
    other.conclude()
    both = page_of([snapshot(open_study(one.plan.storage, one.plan.study)) for one in (search, other)])
    opened(browser, write(both, tmp_path / "both.html"))
    tried = sum(len([one for one in part.models if one.trial or one.final]) for part in both.parts)
    assert len(browser.find_elements(By.CSS_SELECTOR, "[data-chart=overview] .mark")) == tried
    assert complaints(browser) == []
