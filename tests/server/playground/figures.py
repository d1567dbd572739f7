"""What the playground costs, measured: `python -m tests.server.playground.figures [FILE]`, which gets the report.

Prints the time to the first view and the bytes of it and of what follows when the page is idle, the longest task while
four columns stream 60 tokens a second each, the times until the end of 500 messages is shown and until all of them are,
and the memory that an hour's worth of streamed text leaves behind. Not a test: it reads a clock.
"""

import json
import sys
import time
from functools import partial
from typing import Any

from playwright.sync_api import Browser, Page, expect

from server.benchmarks.record import circumstances, write_json
from tests.server.playground.browser import Watched, chromium, messages, say
from tests.server.playground.scripted import SCRIPTS, chunk, ended, running_scripted, texts

STREAM_SECONDS = 15
STREAM_RUNS = 3
SETTLING_MS = 1500
"""In which a page reads what it will need, while its user still types."""
RATE = 60
HOUR_TOKENS = 3600 * RATE


def first_view(watch: Watched) -> dict[str, Any]:
    """The time until the page can be used, and what crossed the wire."""
    times = []
    for _ in range(5):
        page = watch.context.new_page()
        began = time.perf_counter()
        page.goto(watch.url)
        page.get_by_role("button", name="Ask a question").wait_for()
        times.append(time.perf_counter() - began)
        size = page.evaluate(
            "performance.getEntriesByType('resource').filter((entry) => entry.name.includes('/playground/'))"
            ".reduce((sum, entry) => sum + entry.encodedBodySize, 0)"
        )
        page.close()
    return {"first_view_s": round(min(times), 3), "first_and_idle_bytes": size}


def streaming(watch: Watched, browser: Browser) -> dict[str, Any]:
    """The longest task while four columns stream, the least of some runs: wall time, which other work on the machine
    lengthens, and processor time."""
    runs = [streamed(watch, browser) for _ in range(STREAM_RUNS)]
    return {name: min(run[name] for run in runs) for name in runs[0]} | {"runs": runs}


def streamed(watch: Watched, browser: Browser) -> dict[str, Any]:
    """The longest task of one run."""
    page = watch.page()
    for _ in range(3):
        page.get_by_role("button", name="Compare").click()
    page.get_by_label("Message", exact=True).fill("paced")
    page.wait_for_timeout(SETTLING_MS)
    browser.start_tracing(
        page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]
    )
    # Nothing is asked of the page meanwhile: what Playwright runs in it would be taken for its own work.
    page.keyboard.press("Enter")
    page.wait_for_timeout(STREAM_SECONDS * 1000)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    page.close()
    renderer = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event for event in events if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in renderer
    ]
    return {
        "tasks": len(tasks),
        "longest_task_ms": max(event.get("dur", 0) for event in tasks) / 1000,
        "longest_task_cpu_ms": max(event.get("tdur", 0) for event in tasks) / 1000,
    }


def opening(watch: Watched) -> dict[str, Any]:
    """The time in which a conversation of 500 messages is shown."""
    page = watch.page()
    talk = {"id": "long", "title": "Long", "created": 1, "updated": 1, "settings": {}, "chosen": {}, "columns": []}
    listed = [
        {
            "id": f"m{index}",
            "talk": "long",
            "parent": f"m{index - 1}" if index else None,
            "order": index,
            "role": "assistant" if index % 2 else "user",
            "content": f"Message {index}. " + "Some **words** and `code` in a paragraph.\n\n- a list\n- of two\n\n" * 4,
        }
        for index in range(500)
    ]
    content = json.dumps({"headrace": 1, "talks": [{"record": talk, "messages": listed}]}).encode()
    page.get_by_role("button", name="Share, export, import").click()
    page.get_by_label("File to import").set_input_files({"name": "a.json", "mimeType": "", "buffer": content})
    expect(messages(page)).to_have_count(500)
    page.get_by_role("button", name="New conversation").first.click()
    times = []
    for _ in range(3):
        times.append(page.evaluate(_OPEN))
        page.get_by_role("button", name="New conversation").first.click()
    page.close()
    shown, complete = min(times)
    return {"open_500_messages_ms": round(shown), "complete_500_messages_ms": round(complete)}


_OPEN = """
() => new Promise((resolve) => {
  const began = performance.now();
  document.querySelector(".entry .title").click();
  let shown = 0;
  const look = () => {
    if (!shown && document.querySelector("article.message")) {
      shown = -1;
      requestAnimationFrame(() => setTimeout(() => { shown = performance.now() - began; }));
    }
    const complete = document.querySelectorAll("article.message").length === 500;
    if (shown > 0 && complete) resolve([shown, performance.now() - began]);
    else setTimeout(look);
  };
  look();
})
"""


def memory(page: Page) -> float:
    """Megabytes that the page's objects take, after what is garbage has gone."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    return round(session.send("Runtime.getHeapUsage")["usedSize"] / 1e6, 1)


def growth(watch: Watched) -> dict[str, Any]:
    """Memory before and after as many tokens as an hour brings, in sixty answers."""
    page = watch.page()
    say(page, "hello")
    before = memory(page)
    for _ in range(60):
        say(page, "minute")
        expect(messages(page).last.locator(".outcome")).to_be_visible(timeout=600_000)
        page.get_by_role("button", name="New conversation").first.click()
    after = memory(page)
    page.close()
    return {"heap_mb_before": before, "heap_mb_after_an_hour_of_tokens": after}


def main() -> None:
    """Measure and print."""
    word = "Some words of an answer with **bold** text, one after another.\n"
    SCRIPTS["minute"] = ended(texts(*([word] * (HOUR_TOKENS // 60 // 12))))
    SCRIPTS["paced"] = [chunk({"content": " word" if index % 12 else ".\n\nNext"}) for index in range(RATE * 60)]
    found: dict[str, Any] = {}
    with chromium() as browser, running_scripted() as server:
        server.pace = 1 / RATE
        for measure in (first_view, partial(streaming, browser=browser), opening):
            watch = Watched(browser, server.url, viewport={"width": 1600, "height": 900})
            found |= measure(watch)
            watch.context.close()
        server.pace = 0.0
        watch = Watched(browser, server.url, viewport={"width": 1600, "height": 900})
        found |= growth(watch)
        watch.context.close()
    print(json.dumps(found, indent=2))
    if len(sys.argv) > 1:
        write_json(sys.argv[1], circumstances() | {"figures": found})


if __name__ == "__main__":
    main()
