/* On a page of the book: a derivation line by line, checked on another example wherever a slider stands.

   The page holds all lines as HTML, and {controls, walker: tolerances, rows: the residuals of every state} as JSON. */
(function (root) {
  "use strict";
  const { gnewton } = root;
  let count = 0;

  function walk(box) {
    const { controls, walker, rows } = JSON.parse(box.querySelector("script").textContent);
    const lines = [...box.querySelectorAll("li")], verdicts = [...box.querySelectorAll(".gn-verdict")], equations = [...box.querySelectorAll("mjx-container")];
    const state = Object.fromEntries(controls.map(c => [c.name, c.at])), id = `gn-walk-${++count}`;
    let shown = 1;

    const top = document.createElement("div"), said = document.createElement("p");
    box.prepend(top);
    const handles = gnewton.html("div", { class: "gn-controls", role: "group", "aria-label": "The example that is checked" }, top);
    const show = Object.fromEntries(controls.map(c => [c.name, gnewton.controlled(handles, c, `${id}-${c.name}`, i => { state[c.name] = i; draw(); })]));
    for (const name in state) show[name](state[name]);
    const row = gnewton.html("div", { class: "gn-actions" }, top);
    const button = (text, to) => {
      const made = gnewton.html("button", { type: "button", text }, row);
      made.addEventListener("click", () => { shown = to(); draw(); });
      return made;
    };
    const back = button("Back", () => Math.max(1, shown - 1)), next = button("Next", () => Math.min(lines.length, shown + 1)), all = button("Show all", () => lines.length);
    said.className = "gn-sentence";
    said.setAttribute("aria-live", "polite");
    box.append(said);

    function draw() {
      const residuals = rows[controls.reduce((place, c) => place * c.shown.length + state[c.name], 0)].split(" ");
      const holds = residuals.map((r, i) => Number(r) <= walker[i]), power = t => t.toExponential(0).replace(/e([+-])(\d)$/, "e$10$2");
      verdicts.forEach((one, i) => { one.textContent = `checked: ${holds[i] ? "holds" : "FAILS"} to ${power(walker[i])} (off by ${residuals[i]})`; });
      lines.forEach((line, i) => { line.hidden = i >= shown; });
      back.disabled = shown === 1;
      next.disabled = all.disabled = shown === lines.length;
      const failed = holds.filter(one => !one).length;
      const edge = box.getBoundingClientRect().right + 1;
      for (const one of equations) {
        one.classList.remove("gn-wide");
        one.removeAttribute("tabindex");
        if (one.getBoundingClientRect().right <= edge) continue;
        one.classList.add("gn-wide"); // it scrolls, so the keyboard has to reach it
        one.tabIndex = 0;
      }
      said.textContent = `${shown} of ${lines.length} lines. On this example ${failed ? `${failed} fail` : "all hold"}.`;
    }
    new ResizeObserver(draw).observe(box);
    draw();
  }
  /** Formulas are set while they are seen: a line that is hidden has no width. */
  async function start() {
    await root.MathJax?.startup?.promise;
    document.querySelectorAll("[data-gnewton-walker]").forEach(walk);
  }
  addEventListener("load", start);
})(globalThis);
