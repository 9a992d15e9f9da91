"""A figure on a page of the book: its description as it was saved, its keys as a reader presses them, and what is wrong with it."""

import json
import math
import re
from contextlib import contextmanager

from browser.reading import HEIGHT, NARROW, THEMES, TYPESET, WIDE, WORN, watch

FIGURE = re.compile(r'<figure class="gn-figure" data-gnewton>.*?<script type="application/json">(.*?)</script>', re.S)
WALKER = re.compile(r'data-gnewton-walker>.*?<script type="application/json">(.*?)</script>', re.S)
# Controls that may leave the sentence as it is, with the reason; any other has to change it.
SAME_SENTENCE = {
    "reach": "a Taylor slice speaks of t = 1, wherever the picture ends",
    "view": "another picture of the same step",
    "shown": "the method that leads may be among those that stay",
}
# After the next two frames: a number for all that is drawn (its letters, one after the other), and the sentence.
STATE = """async box => {
  for (let n = 0; n < 2; n++) await new Promise(requestAnimationFrame);
  let sum = 0;
  for (const letter of box.querySelector('.gn-panels').innerHTML) sum = (Math.imul(sum, 31) + letter.codePointAt(0)) | 0;
  return [sum, box.querySelector('.gn-sentence').textContent];
}"""
# Words that leave their panel, words on each other (turned ones apart: their boxes are larger than their letters), and
# whatever sticks out of the figure.
CUT_OFF = """box => {
  const said = [], whole = box.getBoundingClientRect();
  if (box.scrollWidth > box.clientWidth + 1) said.push(`scrolls to ${box.scrollWidth} of ${box.clientWidth} pixels`);
  for (const panel of box.querySelectorAll('svg.gn-panel')) {
    const frame = panel.getBoundingClientRect();
    const words = [...panel.querySelectorAll('text')].filter(e => e.textContent.trim())
      .map(e => ({ text: e.textContent, turned: e.hasAttribute('transform'), at: e.getBoundingClientRect() }));
    for (const { text, at } of words)
      if (at.left < frame.left - 2 || at.right > frame.right + 2 || at.top < frame.top - 2 || at.bottom > frame.bottom + 3) said.push(`cut off: ${text}`);
    const flat = words.filter(one => !one.turned);
    flat.forEach((a, i) => flat.slice(0, i).forEach(b => {
      if (a.at.left < b.at.right - 1 && b.at.left < a.at.right - 1 && a.at.top < b.at.bottom - 5 && b.at.top < a.at.bottom - 5) said.push(`on each other: ${a.text} and ${b.text}`);
    }));
  }
  return said;
}"""


def described(text, pattern=FIGURE):
    """The descriptions of a page's figures, in their order, from its HTML."""
    return [json.loads(description.replace("<\\/", "</")) for description in pattern.findall(text)]


def plain(label):
    """A label as it is read out: the subscript of λ_int without its underscore."""
    return re.sub(r"(?<![^\W_])([^\W\d_]\u0304?)_([a-z]+)", r"\1\2", label)


def row(spec, state):
    """The row of a table for a state; None where there is no table."""
    if "table" not in spec:
        return None
    place = 0
    for control in spec["controls"]:
        place = place * len(control["shown"]) + state[control["name"]]
    return spec["table"]["rows"][place]


class Figure:
    """One figure on a page that is open, and its description."""

    def __init__(self, box, spec):
        self.box, self.spec = box, spec
        self.state = {control["name"]: control["at"] for control in spec["controls"]}
        self.said = []

    def complaints(self):
        """What is wrong: controls and their names, keys that do nothing, a sentence that is not the state's."""
        handles = self.box.locator(".gn-control input, .gn-control select").all()
        if not handles or len(handles) != len(self.spec["controls"]):
            return [f"{len(handles)} controls for {len(self.spec['controls'])} of the scene"]
        for control, handle in zip(self.spec["controls"], handles, strict=True):
            self._name(control)
            self._press_keys(control, handle)
        if self.spec["drag"]:
            self._drag()
        return self.said

    def _name(self, control):
        role = "slider" if control["kind"] == "slider" else "combobox"
        if self.box.get_by_role(role, name=plain(control["label"]), exact=True).count() != 1:
            self.said.append(f"no {role} with the name {control['label']!r}")

    def _press_keys(self, control, handle):
        """To a neighbour and back, to the far end and back: four keys, each of which has to be seen and read."""
        end, name = len(control["shown"]) - 1, control["name"]
        start = self.state[name]
        ahead, behind = ("ArrowRight", "ArrowLeft") if control["kind"] == "slider" else ("ArrowDown", "ArrowUp")
        there, back = (ahead, behind) if start < end else (behind, ahead)
        step = 1 if start < end else -1
        before = self.box.evaluate(STATE)
        self._press(control, handle, there, start + step)
        self._press(control, handle, back, start)
        if self.box.evaluate(STATE) != before:
            self.said.append(f"{there} and {back} on {name}: another picture than before")
        far = end if start < end else 0
        self._press(control, handle, "End" if far else "Home", far)
        self._return(handle, name, start, end, (ahead, behind))

    def _return(self, handle, name, start, end, keys):
        """Where the figure began: the next control is tried from there."""
        if start in (0, end):
            handle.press("End" if start else "Home")
        else:
            for _ in range(abs(start - self.state[name])):
                handle.press(keys[0] if self.state[name] < start else keys[1])
        self.state[name] = start
        if handle.input_value() != str(start):
            self.said.append(f"{name}: does not come back")

    def _press(self, control, handle, key, expected):
        name, old, before = control["name"], row(self.spec, self.state), self.box.evaluate(STATE)
        handle.press(key)
        if (got := handle.input_value()) != str(expected):
            self.said.append(f"{key} on {name}: at {got}, expected {expected}")
            return
        self.state[name] = expected
        after, new = self.box.evaluate(STATE), row(self.spec, self.state)
        if control["kind"] == "slider" and handle.get_attribute("aria-valuetext") != control["shown"][expected]:
            self.said.append(f"{key} on {name}: not read out as {control['shown'][expected]!r}")
        if after[0] == before[0]:
            self.said.append(f"{key} on {name}: the picture stays")
        if after[1] == before[1] and name not in SAME_SENTENCE:
            self.said.append(f"{key} on {name}: the sentence stays")
        if new and (new == old or after[1] != self.spec["table"]["pool"][new[-1]]):
            self.said.append(f"{key} on {name}: not what the table says")

    def _drag(self):
        """A pointer in the plane moves what a slider moves; the pole, where there is one, by itself."""
        panel = self.box.locator("svg.gn-panel").nth(self.spec["drag"]["panel"])
        panel.scroll_into_view_if_needed()
        at = panel.bounding_box()
        self._pull(
            panel, [(at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in ((0.6, 0.3), (0.35, 0.25))]
        )
        if pole := self.spec["drag"].get("pole"):
            line, (place,) = panel.locator("line.gn-line").bounding_box(), self._places(pole)
            x, y = line["x"] + line["width"] / 2, line["y"] + line["height"] / 2
            self._pull(panel, [(x + 2, y), (x + 60, y)])
            if self._places(pole) == [place]:
                self.said.append("a drag of the pole: its slider stays")

    def _places(self, name):
        handles = self.box.locator(".gn-control input, .gn-control select").all()
        return [h.input_value() for c, h in zip(self.spec["controls"], handles, strict=True) if c["name"] == name]

    def _pull(self, panel, places):
        before, mouse = self.box.evaluate(STATE), panel.page.mouse
        mouse.move(*places[0])
        mouse.down()
        mouse.move(*places[1], steps=3)
        mouse.up()
        after = self.box.evaluate(STATE)
        if before[0] == after[0] or before[1] == after[1]:
            self.said.append("a drag in the plane: picture or sentence stay")

    def cut_off(self):
        return self.box.evaluate(CUT_OFF)


class Walker:
    """A derivation on a page that is open, and its residuals."""

    def __init__(self, box, spec):
        self.box, self.spec = box, spec

    def complaints(self):
        """Lines that do not come, sliders that check no other example, and whatever does not hold."""
        said, lines = [], len(self.spec["walker"])
        for shown in range(1, lines):
            if self.box.locator("li:visible").count() != shown:
                said.append(f"after {shown - 1} times Next not {shown} lines")
            self._button("Next").press("Enter")
        if self.box.locator("li:visible").count() != lines or self._button("Show all").is_enabled():
            said.append(f"not {lines} lines at the end")
        for control, handle in zip(self.spec["controls"], self.box.locator("input").all(), strict=True):
            if self.box.get_by_role("slider", name=plain(control["label"]), exact=True).count() != 1:
                said.append(f"no slider with the name {control['label']!r}")
            before = self._verdicts()
            handle.press("ArrowRight" if control["at"] < len(control["shown"]) - 1 else "ArrowLeft")
            if self._verdicts() == before:
                said.append(f"{control['name']}: the same residuals")
        failed = [verdict for verdict in self._verdicts() if not verdict.startswith("checked: holds to ")]
        self._button("Back").press("Enter")
        return [*said, *failed, *(["Back takes no line"] * (self.box.locator("li:visible").count() == lines))]

    def _button(self, text):
        return self.box.get_by_role("button", name=text, exact=True)

    def _verdicts(self):
        return self.box.locator(".gn-verdict").all_inner_texts()

    def cut_off(self):
        return self.box.evaluate(CUT_OFF)


class Page:
    """A page opened from a file, without any network, with its figures and derivations."""

    def __init__(self, page, uri, specs, walkers=()):
        self.page, self.events = page, watch(page)
        page.goto(uri)
        page.evaluate(TYPESET)
        if walkers:
            page.wait_for_selector("[data-gnewton-walker] button")
        boxes, walks = (page.locator(which).all() for which in ("figure.gn-figure", "[data-gnewton-walker]"))
        self.figures = [Figure(box, spec) for box, spec in zip(boxes, specs, strict=True)]
        self.figures += [Walker(box, spec) for box, spec in zip(walks, walkers, strict=True)]

    def complaints(self, violations):
        """Everything that is wrong; ``violations``: theme -> what axe finds in the figures as they stand."""
        said = [f"figure {i}: {line}" for i, figure in enumerate(self.figures) for line in figure.complaints()]
        for width in (WIDE, NARROW):
            self.page.set_viewport_size({"width": width, "height": HEIGHT})
            self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
            said += [f"figure {i}, {width}: {line}" for i, f in enumerate(self.figures) for line in f.cut_off()]
            for theme in THEMES:
                self.page.emulate_media(color_scheme=theme)
                self.page.evaluate(WORN, theme)
                said += [f"{width}, {line}" for line in violations(self.page, theme)]
        return said + self.events


@contextmanager
def opened(browser, path):
    """The page of this file; whatever it asks of a network is refused, and told among its events."""
    context = browser.new_context(viewport={"width": WIDE, "height": HEIGHT}, color_scheme="light")
    text = path.read_text(encoding="utf-8")
    context.route(re.compile(r"^(https?|wss?):"), lambda route: route.abort())
    try:
        yield Page(context.new_page(), path.resolve().as_uri(), described(text), described(text, WALKER))
    finally:
        context.close()


class Finger:
    """A finger on the screen of a telephone, as the browser sees it."""

    def __init__(self, page):
        self.page, self.session = page, page.context.new_cdp_session(page)

    def _send(self, what, *places):
        points = [{"x": x, "y": y} for x, y in places]
        self.session.send("Input.dispatchTouchEvent", {"type": what, "touchPoints": points})

    def pull(self, x, y, up):
        """From (x, y) upwards by so many pixels; returns by how many the page went along."""
        before = self.page.evaluate("scrollY")
        self._send("touchStart", (x, y))
        for n in range(1, 13):
            self._send("touchMove", (x, y - up * n / 12))
            self.page.evaluate("() => new Promise(requestAnimationFrame)")
        self._send("touchEnd")
        self.page.wait_for_timeout(100)
        return self.page.evaluate("scrollY") - before


def handle_and_corner(panel, spec):
    """Where the handle is on the screen, and the corner of its plane that is farthest from it."""
    values = {control["name"]: control["values"][control["at"]] for control in spec["controls"]}
    drag, frame = spec["drag"], panel.locator(".gn-frame").bounding_box()
    if "angle" in drag:
        turned = math.radians(values[drag["angle"]])
        x, y = 1.5 * math.cos(turned), 1.5 * math.sin(turned)
    else:
        x, y = (2.0, 4.0 / values[drag["slope"]]) if "slope" in drag else (values[drag["x"]], values[drag["y"]])
    limits = [spec["panels"][drag["panel"]][axis]["limits"] for axis in "xy"]
    across, up = ((v - low) / (high - low) for v, (low, high) in zip((x, y), limits, strict=True))
    place = lambda a, b: (frame["x"] + a * frame["width"], frame["y"] + (1 - b) * frame["height"])  # noqa: E731
    corners = [(a, b) for a in (0.1, 0.9) for b in (0.1, 0.9)]
    return place(across, up), place(*max(corners, key=lambda c: math.dist(c, (across, up))))


def fingered(page, box, spec):
    """What is wrong where a finger drags the handle, and where it scrolls beside it."""
    panel, finger, said = box.locator("svg.gn-panel").nth(spec["drag"]["panel"]), Finger(page), []
    values = lambda: [handle.input_value() for handle in box.locator("input, select").all()]  # noqa: E731
    panel.evaluate("panel => panel.scrollIntoView({ block: 'center' })")
    before, (handle, corner) = values(), handle_and_corner(panel, spec)
    if scrolled := finger.pull(*handle, 60):
        said.append(f"a finger on the handle scrolls the page by {scrolled:.0f} pixels")
    if (moved := values()) == before:
        said.append("a finger on the handle moves nothing")
    if finger.pull(*corner, 60) < 20:
        said.append("a finger beside the handle does not scroll the page")
    if values() != moved:
        said.append("a finger that scrolls the page moves the handle")
    return said
