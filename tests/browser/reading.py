"""A page as a reader's browser shows it, and what is wrong with it: one complaint a line."""

from contextlib import contextmanager
from urllib.parse import urlsplit

WIDE, NARROW, HEIGHT = 1280, 390, 900  # pixels; 390 is a telephone
THEMES = ("light", "dark")

TYPESET = """async () => {
  document.querySelectorAll('details').forEach(fold => fold.open = true);
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
}"""

# Mathematics that MathJax left alone and tables that stayed Markdown, wherever they are not shown as code.
MATHEMATICS = r"""() => {
  const said = [...document.querySelectorAll('mjx-merror, [data-mml-node=merror]')].map(e => 'merror: ' + e.textContent);
  for (const element of document.querySelectorAll('.math:not(:has(mjx-container))'))
    said.push('not typeset: ' + element.textContent.trim());
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent, around = texts.currentNode.parentElement;
    if (/\\[()[\]]|\$\$|\\[a-zA-Z]{2,}|\$\S[^$\n]*\$/.test(text) && !around.closest('code, pre, script, style, mjx-container, .math'))
      said.push('raw mathematics: ' + text.trim());
    if (text.includes('|---') && !around.closest('code, pre, script, style'))
      said.push('raw table: ' + text.trim());
  }
  return said;
}"""

IMAGES = (
    "() => [...document.images].filter(image => !image.naturalWidth).map(image => 'image not loaded: ' + image.src)"
)

# The page scrolls sideways, and these elements stand out of it: none of their ancestors scrolls for itself.
TOO_WIDE = """() => {
  const page = document.documentElement, width = page.clientWidth;
  if (page.scrollWidth <= width) return [];
  const scrolls = e => e && e !== document.body && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const out = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement));
  const name = e => e.id ? '#' + e.id : e.tagName.toLowerCase() + [...e.classList].map(c => '.' + c).join('');
  const where = e => (e.parentElement.closest('[id]') ? name(e.parentElement.closest('[id]')) + ' ' : '') + name(e);
  return [`scrolls to ${page.scrollWidth} of ${width} pixels: ${[...new Set(out.map(where))].slice(0, 5).join('; ')}`];
}"""

# A page follows its reader's system within a few frames; no colour is left half-way.
WORN = """async theme => {
  const page = document.documentElement, frame = () => new Promise(requestAnimationFrame);
  for (let n = 0; n < 30 && page.dataset.theme !== theme; n++) await frame();
  await frame();
  for (const change of document.getAnimations()) if (change.effect.getComputedTiming().endTime < Infinity) change.finish();
  return page.dataset.theme;
}"""


def watch(page):
    """A list that grows with every request to another machine and every error that the page reports."""
    events = []

    def asked(url):
        if urlsplit(url).hostname not in (None, "127.0.0.1"):
            events.append(f"outside request: {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda socket: asked(socket.url))
    page.on("console", lambda line: line.type == "error" and events.append(f"console: {line.text}"))
    page.on("pageerror", lambda error: events.append(f"page error: {error}"))
    return events


class Reading:
    """A page, loaded and typeset with every fold open, and what happened on the way."""

    def __init__(self, page, url):
        self.page, self.events = page, watch(page)
        page.goto(url)
        page.evaluate(TYPESET)

    def complaints(self):
        said = [*self.page.evaluate(MATHEMATICS), *self.page.evaluate(IMAGES)]
        for width in (NARROW, WIDE):
            self.page.set_viewport_size({"width": width, "height": HEIGHT})
            said += self.page.evaluate(TOO_WIDE)
        for theme in THEMES:
            if (shown := self.wear(theme)) != theme:
                said.append(f"data-theme is {shown} where the reader wants {theme}")
        return self.events + said

    def wear(self, theme):
        """The theme that the page shows to a reader whose system wears this one."""
        self.page.emulate_media(color_scheme=theme)
        return self.page.evaluate(WORN, theme)

    def photograph(self, folder, name):
        """Pictures of the whole page: wide in both themes, and narrow."""
        for theme in THEMES:
            self.wear(theme)
            self._take(folder / f"{name}-{theme}.jpg")
        self.wear("light")
        # Else the sidebars are caught while they slide away.
        self.page.add_style_tag(
            content="*, ::before, ::after { transition: none !important; animation: none !important }"
        )
        self.page.set_viewport_size({"width": NARROW, "height": HEIGHT})
        self._take(folder / f"{name}-narrow.jpg")

    def _take(self, path):
        # A JPEG ends at 65,535 rows; of a longer page Chromium would write an empty file.
        height = min(self.page.evaluate("document.documentElement.scrollHeight"), 60_000)
        clip = {"x": 0, "y": 0, "width": self.page.viewport_size["width"], "height": height}
        self.page.screenshot(path=path, full_page=True, clip=clip)
        assert path.stat().st_size


@contextmanager
def reading(browser, url):
    """The page in a context of its own: nothing stored by one page is seen by the next."""
    context = browser.new_context(viewport={"width": WIDE, "height": HEIGHT})
    try:
        yield Reading(context.new_page(), url)
    finally:
        context.close()
