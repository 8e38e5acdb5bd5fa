"""Uses the chat page in headless Chromium: by keyboard, on a desk's screen and on a phone's.

    python page.py http://127.0.0.1:8080 [--key KEY] [--pictures FOLDER]

Needs `chromium` and nothing else: the browser is spoken to over pipes. Prints a table of checks and exits
with 1 if one fails. Where the served model has experts, what the page shows of them is checked too.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}
# Width, height, and whether it is a phone.
SCREENS = {"desk": (1280, 800, False), "phone": (390, 844, True)}


class Browser:
    """Chromium over its debugging pipes: JSON that ends with a zero byte, requests on its file descriptor 3,
    answers and events on 4."""

    def __init__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit("chromium is not installed")
        self.folder = tempfile.TemporaryDirectory()
        theirs_in, self.write = os.pipe()
        self.read, theirs_out = os.pipe()

        def place():
            os.dup2(theirs_in, 10), os.dup2(theirs_out, 11)
            os.dup2(10, 3), os.dup2(11, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             f"--user-data-dir={self.folder.name}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self.rest, self.number, self.session, self.complaints = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.read, 1 << 16)
                assert part, "the browser has ended"
                self.rest += part
            raw, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            advice = answer.get("params", {}).get("entry", {}).get("level") in ("verbose", "info")
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded") and not advice:
                self.complaints.append(json.dumps(answer["params"])[:300])

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script, seconds=120):
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"still not: {script}"
            time.sleep(0.1)
        return value

    def press(self, key, text=None):
        event = {"key": key, "windowsVirtualKeyCode": KEYS[key], "code": "Space" if key == " " else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()


def open_page(browser, args, screen):
    width, height, mobile = SCREENS[screen]
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    browser.call("Page.navigate", url=args.url)
    browser.wait("document.readyState === 'complete'")
    if args.key:
        browser.run(f"at('key').value = {json.dumps(args.key)}; connect()")
    browser.wait("models.length > 0")
    return browser.run("model.id")


def ask(browser, text):
    """Types a question and sends it, by keyboard alone; the number of answers before it."""
    before = browser.run("document.querySelectorAll('.answer').length")
    assert browser.run("document.activeElement.id") == "question", "the entry has no focus"
    browser.type(text)
    browser.press("Enter", "\r")
    return before


def checks(browser, args, screen):
    yield "opens", lambda: open_page(browser, args, screen)

    def answers():
        before = ask(browser, "Is the pump on?")
        browser.wait(f"document.querySelectorAll('.answer').length > {before}")
        browser.wait("running === null")
        assert browser.run("document.querySelector('.user').textContent.includes('Is the pump on?')")
        assert browser.run("conversation.length") == 2
        return browser.run("document.querySelector('.speed').textContent")

    yield "answers, by keyboard", answers

    def shows_experts():
        names = browser.run("model.artel.experts")
        if not names:
            return "the model has none"
        browser.run("at('settings').open = true; at('words').focus()")
        browser.press(" ", " ")
        assert browser.run("at('words').checked"), "a space does not tick the box"
        # Anew, as the first answer may have filled a small model's context.
        browser.run("at('settings').open = false; at('clear').click()")
        ask(browser, "And who says so?")
        browser.wait("running === null && document.querySelectorAll('.answer').length === 1")
        words = browser.run("document.querySelectorAll('.answer:last-child .token').length")
        shown = browser.run("[...document.querySelectorAll('.answer:last-child .experts li')].length")
        assert words > 0 and shown == len(names), (words, shown)
        assert browser.run("document.querySelector('.token').title.includes('%')")
        return f"{words} words, {shown} experts, {browser.run('document.querySelectorAll(`.sources li`).length')} sources"

    yield "shows who spoke each word", shows_experts

    def stops():
        browser.run("at('clear').click()")
        ask(browser, "Tell me all you know.")
        browser.press("Escape")
        # Long before an answer at its length limit would be written.
        browser.wait("running === null", 5)
        assert browser.run("at('send').textContent") == "Send"
        last = browser.run("document.querySelector('.answer:last-child').textContent")
        return "stopped" if "Stopped." in last else "the answer was faster"

    yield "Escape stops the answer", stops

    def fits():
        width, room = browser.run("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= room, f"{width} wide on a screen of {room}"
        bottom = browser.run("document.getElementById('send').getBoundingClientRect().bottom")
        assert bottom <= SCREENS[screen][1], f"the button ends at {bottom}"
        small = browser.run(
            "[...document.querySelectorAll('button, textarea, summary')].filter(e => e.getBoundingClientRect().height"
            " && e.getBoundingClientRect().height < 20).map(e => e.id || e.textContent)")
        assert not small, f"too small to touch: {small}"

    yield "fits the screen", fits

    def reached():
        """Tab reaches everything that can be used."""
        browser.run("at('settings').open = true; document.activeElement.blur()")
        seen = set()
        for _ in range(40):
            browser.press("Tab", "\t")
            seen.add(browser.run("document.activeElement.id || document.activeElement.tagName"))
        missing = {"clear", "SUMMARY", "key", "temperature", "models", "question", "send"} - seen
        assert not missing, f"Tab never reaches {missing}"
        browser.run("at('settings').open = false")

    yield "Tab reaches everything", reached

    def begins_anew():
        browser.run("at('clear').click()")
        assert browser.run("document.querySelectorAll('#messages li').length") == 0
        assert browser.run("document.activeElement.id") == "question"

    if args.pictures:
        yield "picture", lambda: browser.picture(args.pictures / f"page-{screen}.png")
    yield "begins anew", begins_anew

    def quiet():
        assert not browser.complaints, browser.complaints

    yield "no errors in the console", quiet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--key")
    parser.add_argument("--pictures", type=Path, help="save pictures of the page here")
    args = parser.parse_args()
    failures = count = 0
    for screen in SCREENS:
        browser = Browser()
        for name, function in checks(browser, args, screen):
            count += 1
            try:
                result, note = "ok", function() or ""
            except Exception as error:
                failures += 1
                result, note = "FAILED", f"{type(error).__name__}: {error}"
            print(f"{screen:6} {name:26} {result:7} {str(note)[:100]}", flush=True)
        browser.close()
    print(f"{count - failures} of {count} checks passed")
    sys.exit(failures > 0)


main()
