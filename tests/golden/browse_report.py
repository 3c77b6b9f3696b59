#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""browse_report.py REPORT.html [SCREENSHOT_PREFIX]

Uses a report of vmastat as a person would, in headless Chromium: zooms, filters, sorts, by mouse and by keyboard.
Exit 1: something does not work; 77: there is no browser here.
"""

import shutil
import sys
from pathlib import Path

if not (shutil.which("chromium") and shutil.which("chromedriver")):
    print("chromium or chromedriver is not installed")
    sys.exit(77)
try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError as missing:
    print(missing)
    sys.exit(77)

faults = []


def check(good, what):
    if not good:
        faults.append(what)


def main():
    report = Path(sys.argv[1]).resolve()
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1300,1500"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(report.as_uri())

        def js(code, *arguments):
            return driver.execute_script(code, *arguments)

        def picture(name):
            if len(sys.argv) > 2:
                driver.save_screenshot(f"{sys.argv[2]}-{name}.png")

        def map_image():
            return js("return document.getElementById('map').toDataURL()")

        def rows():
            return len(driver.find_elements(By.CSS_SELECTOR, "#vmas tbody tr"))

        def column(key):
            at = js("return VMA.findIndex(c => c[0] === arguments[0])", key)
            return js("return [...document.querySelectorAll('#vmas tbody tr')]"
                      ".map(r => r.cells[arguments[0]].textContent)", at)

        picture("light")
        check(driver.find_element(By.ID, "title").text.startswith("vmastat: "), "the title names the process")
        mappings = js("return V.length")
        check(mappings > 0 and rows() == min(mappings, 500), f"{rows()} rows for {mappings} mappings")
        check(js("return [...document.querySelectorAll('#kinds tbody tr')].length") > 0, "kinds are listed")
        colors = js("const c = document.getElementById('map'), d = c.getContext('2d')"
                    ".getImageData(0, 0, c.width, c.height).data, s = new Set;"
                    "for (let i = 0; i < d.length; i += 4) s.add(d[i] + ',' + d[i+1] + ',' + d[i+2]); return s.size")
        check(colors > 2, "the map is drawn")
        if js("return P.at.length") > 0:
            check(int(js("return document.getElementById('scatter').dataset.points")) > 0, "the scatter is drawn")
        check(js("return (P.runs || []).length === document.querySelectorAll('#hist tr').length"), "the histogram is there")

        # Zoom: by key, by button, by wheel; and back.
        whole = map_image()
        canvas = driver.find_element(By.ID, "map")
        js("document.getElementById('map').focus()")
        canvas.send_keys("+")
        zoomed = map_image()
        check(zoomed != whole and js("return view[1] - view[0] < P.w * 0.75"), "+ zooms in")
        canvas.send_keys(Keys.ARROW_RIGHT)
        check(map_image() != zoomed, "an arrow moves")
        canvas.send_keys("0")
        check(map_image() == whole, "0 shows the whole")
        driver.find_element(By.ID, "in").click()
        check(js("return view[1] - view[0] < P.w * 0.6"), "the button zooms in")
        driver.find_element(By.ID, "whole").click()
        js("document.getElementById('map').dispatchEvent(new WheelEvent('wheel', {deltaY: -1, clientX: 400, cancelable: true}))")
        check(js("return view[1] - view[0] < P.w * 0.75"), "the wheel zooms in")
        canvas.send_keys("0")
        canvas.send_keys(Keys.PAGE_DOWN)
        check(js("return marked") == 0 and driver.find_element(By.ID, "says").text.startswith("0x"),
              "Page Down says what the next mapping is")
        driver.find_element(By.ID, "linear").click()
        check(map_image() != whole, "true widths are another picture")
        driver.find_element(By.ID, "linear").click()

        # Filter and sort.
        box = driver.find_element(By.ID, "filter")
        name = js("const n = V.map(v => v.name).filter(n => n); return n.length ? n[0] : 'no such'")
        box.send_keys(name)
        WebDriverWait(driver, 10).until(lambda d: rows() < mappings or mappings == 1)
        check(all(name.lower() in n.lower() for n in column("name")), "the filter keeps what it names")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.DELETE)
        WebDriverWait(driver, 10).until(lambda d: rows() == min(mappings, 500))
        driver.find_element(By.CSS_SELECTOR, "#vmas th button[data-key=rss]").send_keys(Keys.ENTER)
        values = js("return list.map(v => v.rss)")
        known = [v for v in values if v is not None]
        check(known == sorted(known, reverse=True), "rss sorts")
        check(js("return document.activeElement.dataset.key") == "rss", "the focus stays where it was")
        box_of_class = driver.find_element(By.CSS_SELECTOR, "#classes input")
        label = box_of_class.get_attribute("value")
        before = js("return list.length")
        of_class = js("return V.filter(v => v.cls === arguments[0]).length", label)
        box_of_class.click()
        check(js("return list.length") == before - of_class, "a class can be left out")
        box_of_class.click()
        row = driver.find_element(By.CSS_SELECTOR, "#vmas tbody tr")
        row.send_keys(Keys.ENTER)
        check(js("return marked") == int(row.get_attribute("data-i")), "Enter marks a row's mapping")

        # Dark.
        ground = js("return getComputedStyle(document.body).backgroundColor")
        driver.find_element(By.ID, "theme").click()
        check(js("return getComputedStyle(document.body).backgroundColor") != ground, "light and dark differ")
        picture("dark")

        check(js("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0,
              "nothing is loaded")
        for entry in driver.get_log("browser"):
            faults.append(f"console: {entry['level']}: {entry['message']}")
    finally:
        driver.quit()
    for fault in faults:
        print("not so:", fault)
    return 1 if faults else 0


sys.exit(main())
