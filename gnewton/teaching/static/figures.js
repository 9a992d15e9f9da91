/* Figures with controls, in JupyterLab and on a page without a kernel. No dependency.

   A figure is {controls, panels, marks} and, for each state of its controls, {numbers, panels, sentence}: from a function in
   gnewton.compute, from a table made in Python, or from a kernel that is asked. `gnewton.teaching.scene` says what each holds. */
(function (root) {
  "use strict";
  const gnewton = root.gnewton || (root.gnewton = {});
  if (gnewton.mount) return; // every live figure brings this script
  gnewton.compute = gnewton.compute || {};
  gnewton.figures = [];

  // -- elements ------------------------------------------------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  let count = 0;
  function set(element, attributes) {
    for (const name in attributes) {
      if (name === "text") element.textContent = attributes[name];
      else element.setAttribute(name, attributes[name]);
    }
    return element;
  }
  const svg = (name, attributes, parent) => set(parent.appendChild(document.createElementNS(SVG, name)), attributes);
  const html = (name, attributes, parent) => set(parent.appendChild(document.createElement(name)), attributes);

  // -- numbers as text -----------------------------------------------------------------------------------------------
  /** Python's format(v, ".<digits>g"). */
  function general(v, digits) {
    if (!Number.isFinite(v)) return Number.isNaN(v) ? "nan" : v > 0 ? "inf" : "-inf";
    if (v === 0) return "0";
    const [mantissa, power] = v.toExponential(digits - 1).split("e").map(Number);
    if (power >= -4 && power < digits) return String(+v.toPrecision(digits));
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  gnewton.general = general;
  const minus = text => text.replace("-", "−");
  /** An element's text, the letters after the underscore of λ_int or H_ss set lower and smaller. */
  function typeset(element, text) {
    const lower = element instanceof SVGElement ? part => set(document.createElementNS(SVG, "tspan"), { "baseline-shift": "sub", "font-size": "75%", text: part })
      : part => set(document.createElement("sub"), { text: part });
    text.split(/(?<=(?<!\p{L})\p{L}\u0304?)_([a-z]+)/u).forEach((part, i) => element.append(i % 2 ? lower(part) : part));
    return element;
  }
  /** Moved to the left or right where it would leave the panel. */
  function nudge(text, width) {
    const box = text.getBBox(), by = Math.max(-box.x, Math.min(0, width - box.x - box.width));
    if (by) text.setAttribute("x", +text.getAttribute("x") + by);
  }
  const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  function tickText(v, axis) {
    if (v === 0) return "0";
    const power = Math.log10(Math.abs(v));
    if (axis.scale === "linear" || Math.abs(power - Math.round(power)) > 1e-9) return minus(String(+v.toPrecision(6)));
    const whole = Math.round(power), sign = v < 0 ? "−" : "";
    if (whole >= -2 && whole <= 2) return sign + String(+Math.abs(v).toPrecision(3));
    return `${sign}10${[...String(whole)].map(c => RAISED[c]).join("")}`;
  }

  // -- scales --------------------------------------------------------------------------------------------------------
  function inner(axis) {
    if (axis.scale === "log") return Math.log10;
    // Linear up to `linear`, a decade as long as that stretch beyond it.
    if (axis.scale === "symlog") return v => { const a = Math.abs(v) / axis.linear; return Math.sign(v) * (a <= 1 ? a : 1 + Math.log10(a)); };
    return v => v;
  }
  function scale(axis, from, to) {
    const f = inner(axis), low = f(axis.limits[0]), k = (to - from) / (f(axis.limits[1]) - low);
    return v => from + k * (f(v) - low);
  }
  function ticks(axis, about) {
    const [low, high] = [Math.min(...axis.limits), Math.max(...axis.limits)];
    if (axis.ticks) return axis.ticks.filter(v => v >= low && v <= high);
    if (axis.scale === "log") return decades(low, high, about);
    if (axis.scale === "symlog") {
      const side = Math.max(1, about / 2 - 1), above = high > axis.linear ? decades(axis.linear, high, side) : [];
      const below = low < -axis.linear ? decades(axis.linear, -low, side).map(v => -v).reverse() : [];
      return [...below, 0, ...above];
    }
    const raw = (high - low) / about, unit = 10 ** Math.floor(Math.log10(raw)), step = unit * [1, 2, 5, 10].find(m => m * unit >= raw * .999);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(+(i * step).toPrecision(12));
    return values;
  }
  function decades(low, high, about) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first + 1) / about)), values = [];
    for (let k = last; k >= first; k -= every) values.unshift(10 ** k);
    return values;
  }

  // -- level sets by marching squares, chained into lines: thousands of pieces would be slow to paint ------------------
  const SEGMENTS = [[], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
    [[2, 3]], [[0, 2]], [[0, 1], [2, 3]], [[1, 2]], [[1, 3]], [[0, 1]], [[0, 3]], []];
  /** The grid's values z[j][i], j from the bottom, as paths of `levels` level sets, spaced by factors above the lowest. */
  function contourPath(z, levels, X, Y) {
    const rows = z.length - 1, columns = z[0].length - 1;
    let low = Infinity, high = -Infinity;
    for (const row of z) for (const v of row) { if (v < low) low = v; if (v > high) high = v; }
    let path = "";
    for (let m = 0; m < levels; m++) {
      const level = low + (high - low) * 10 ** (-3 + 3 * m / (levels - 1));
      path += chained(segmentsAt(z, level, rows, columns), X, Y);
    }
    return path;
  }
  function segmentsAt(z, c, rows, columns) {
    const segments = [], width = columns + 1;
    // An edge of the grid has one number, whichever cell it is seen from: 2k along the row, 2k + 1 across it.
    const edge = (j, i, e) => e === 0 ? [2 * (j * width + i), i + (c - z[j][i]) / (z[j][i + 1] - z[j][i]), j]
      : e === 2 ? [2 * ((j + 1) * width + i), i + (c - z[j + 1][i]) / (z[j + 1][i + 1] - z[j + 1][i]), j + 1]
      : e === 1 ? [2 * (j * width + i + 1) + 1, i + 1, j + (c - z[j][i + 1]) / (z[j + 1][i + 1] - z[j][i + 1])]
      : [2 * (j * width + i) + 1, i, j + (c - z[j][i]) / (z[j + 1][i] - z[j][i])];
    for (let j = 0; j < rows; j++) for (let i = 0; i < columns; i++) {
      const code = (z[j][i] > c) | (z[j][i + 1] > c) << 1 | (z[j + 1][i + 1] > c) << 2 | (z[j + 1][i] > c) << 3;
      for (const [from, to] of SEGMENTS[code]) segments.push([edge(j, i, from), edge(j, i, to)]);
    }
    return segments;
  }
  function chained(segments, X, Y) {
    const at = new Map(), next = new Map(), done = new Set();
    const join = (a, b) => { at.set(a[0], a); (next.get(a[0]) || next.set(a[0], []).get(a[0])).push(b[0]); };
    for (const [a, b] of segments) { join(a, b); join(b, a); }
    let path = "";
    const walk = start => {
      let here = start, pen = "M";
      while (here !== undefined && !done.has(here)) {
        done.add(here);
        path += `${pen}${X(at.get(here)[1]).toFixed(1)} ${Y(at.get(here)[2]).toFixed(1)}`;
        pen = "L";
        here = next.get(here).find(one => !done.has(one));
      }
      return start;
    };
    for (const [end, to] of next) if (to.length === 1 && !done.has(end)) walk(end);
    for (const start of next.keys()) if (!done.has(start)) { walk(start); path += "Z"; }
    return path;
  }

  // -- shapes --------------------------------------------------------------------------------------------------------
  const DASHES = ["", "7 4", "9 3 2 3", "2 3", "12 4", "6 2 2 2 2 2", "1 2", "14 3 3 3"];
  const SHAPES = ["circle", "square", "triangle", "diamond", "down", "cross", "plus", "bar"];
  const HOLLOW = ["cross", "plus", "bar"]; // of strokes alone
  function shape(kind, x, y, r) {
    switch (kind) {
      case "square": return `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
      case "triangle": return `M${x} ${y - r}l${r} ${1.8 * r}h${-2 * r}z`;
      case "down": return `M${x} ${y + r}l${r} ${-1.8 * r}h${-2 * r}z`;
      case "diamond": return `M${x} ${y - 1.2 * r}l${r} ${1.2 * r}l${-r} ${1.2 * r}l${-r} ${-1.2 * r}z`;
      case "cross": return `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x - r} ${y + r}l${2 * r} ${-2 * r}`;
      case "plus": return `M${x - r} ${y}h${2 * r}M${x} ${y - r}v${2 * r}`;
      case "bar": return `M${x} ${y - 1.6 * r}v${3.2 * r}`;
      default: return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
    }
  }
  const class_of = look => typeof look === "number" ? `gn-c${look % 8}` : `gn-${look}`;
  const dash_of = m => m.options.dash ?? DASHES[typeof m.look === "number" ? m.look % DASHES.length : 0];
  const shape_of = m => m.options.shape || SHAPES[typeof m.look === "number" ? m.look % SHAPES.length : 0];

  // -- marks: each returns a function that draws its numbers ------------------------------------------------------------
  const KINDS = {
    line(p, m, group) {
      const path = svg("path", { class: "gn-line", "stroke-dasharray": dash_of(m), "stroke-width": m.options.width || 2 }, group);
      if (m.options.faint) path.style.opacity = m.options.faint;
      const dots = m.options.every ? svg("path", { class: "gn-dot" }, group) : null;
      const drawn = n => {
        let d = "", pen = "M", marked = "";
        for (let i = 0; i < n.y.length; i++) {
          const x = n.x[i], y = n.y[i];
          if (x === null || y === null || !Number.isFinite(x) || !Number.isFinite(y)) { pen = "M"; continue; }
          const px = p.X(x), py = p.Y(y);
          d += `${pen}${px.toFixed(1)} ${py.toFixed(1)}`;
          pen = "L";
          if (dots && i % m.options.every === 0) marked += shape(shape_of(m), +px.toFixed(1), +py.toFixed(1), 3.4);
        }
        path.setAttribute("d", d);
        if (dots) dots.setAttribute("d", marked);
      };
      drawn.end = n => { for (let i = n.y.length - 1; i >= 0; i--) if (Number.isFinite(n.y[i]) && n.y[i] !== null) return [n.x[i], n.y[i]]; return null; };
      return drawn;
    },
    points(p, m, group) {
      const hollow = m.options.open || HOLLOW.includes(shape_of(m));
      const path = svg("path", { class: hollow ? "gn-open" : "gn-dot" }, group);
      if (m.options.faint) path.style.opacity = m.options.faint;
      return n => {
        let d = "";
        for (let i = 0; i < n.y.length; i++) if (n.x[i] !== null && n.y[i] !== null) d += shape(shape_of(m), +p.X(n.x[i]).toFixed(1), +p.Y(n.y[i]).toFixed(1), m.options.size || 4);
        path.setAttribute("d", d);
      };
    },
    bars(p, m, group) {
      const { thick = .62, shift = 0, digits = 2 } = m.options;
      const labels = svg("g", {}, p.over);
      return n => {
        group.replaceChildren(); labels.replaceChildren();
        const zero = p.X(Math.max(0, Math.min(...p.x.limits))), high = thick * p.row;
        n.values.forEach((v, i) => {
          if (v === null) return;
          const x = Math.min(Math.max(p.X(v), p.left), p.right), y = p.Y(i + shift) - high / 2;
          svg("rect", { x: Math.min(zero, x), width: Math.abs(x - zero), y, height: high, class: v < 0 ? "gn-bar gn-below" : "gn-bar" }, group);
          if (digits) svg("text", { x: x + (v < 0 ? -6 : 6), y: y + high / 2 + 4.5, "text-anchor": v < 0 ? "end" : "start", class: "gn-value", text: minus((n.text && n.text[i]) ?? general(v, digits)) }, labels);
        });
      };
    },
    band(p, m, group) {
      const path = svg("path", { class: "gn-band" }, group);
      return n => {
        const there = n.x.map((x, i) => [x, n.low[i], n.high[i]]).filter(one => one.every(v => v !== null));
        const up = there.map(([x, low]) => `${p.X(x).toFixed(1)} ${p.Y(low).toFixed(1)}`), down = there.map(([x, , high]) => `${p.X(x).toFixed(1)} ${p.Y(high).toFixed(1)}`).reverse();
        path.setAttribute("d", there.length ? `M${up.join("L")}L${down.join("L")}z` : "");
      };
    },
    heat(p, m, group) {
      const picture = svg("image", { class: "gn-heat", preserveAspectRatio: "none" }, group), signs = svg("path", { class: "gn-signs" }, group);
      const canvas = document.createElement("canvas");
      return n => {
        const z = n.shades ? unpacked(n.shades) : n.z, shade = n.shades ? v => v : shading(n.scale || m.options.scale);
        const rows = z.length, columns = z[0].length;
        canvas.width = columns; canvas.height = rows;
        const pen = canvas.getContext("2d"), image = pen.createImageData(columns, rows);
        const w = (p.right - p.left) / columns, h = (p.bottom - p.top) / rows, r = Math.min(5, w * .3, h * .3);
        let d = "";
        z.forEach((row, j) => row.forEach((v, i) => {
          if (v === null) return;
          const t = shade(v);
          image.data.set([...(t < 0 ? [33, 102, 172] : [178, 24, 43]), Math.round(255 * Math.abs(t))], 4 * (j * columns + i));
          if (m.options.signs === false || Math.abs(t) < .12 || r < 1.6) return;
          const x = p.left + (i + .5) * w, y = p.top + (j + .5) * h;
          d += v < 0 ? `M${x - r} ${y}h${2 * r}` : `M${x - r} ${y}h${2 * r}M${x} ${y - r}v${2 * r}`;
        }));
        pen.putImageData(image, 0, 0);
        set(picture, { x: p.left, y: p.top, width: p.right - p.left, height: p.bottom - p.top, href: canvas.toDataURL() });
        signs.setAttribute("d", d);
      };
    },
    contours(p, m, group) {
      const path = svg("path", { class: "gn-contour" }, group);
      return n => {
        const z = n.z || sampled(n.f, p.x.limits, p.y.limits, 72), rows = z.length - 1, columns = z[0].length - 1;
        const X = i => p.left + i * (p.right - p.left) / columns, Y = j => p.bottom - j * (p.bottom - p.top) / rows;
        path.setAttribute("d", contourPath(z, m.options.levels || 12, X, Y));
      };
    },
    rule(p, m, group) {
      const line = svg("line", { class: "gn-line", "stroke-width": m.options.width || 1.2, "stroke-dasharray": m.options.dash || "" }, group);
      return n => {
        const at = n.at ?? m.options.at, upright = (m.options.axis || "x") === "x";
        if (at === null || at === undefined) return set(line, { x1: 0, x2: 0, y1: 0, y2: 0 });
        const v = (upright ? p.X : p.Y)(at);
        return set(line, upright ? { x1: v, x2: v, y1: p.top, y2: p.bottom } : { x1: p.left, x2: p.right, y1: v, y2: v });
      };
    },
    span(p, m, group) {
      const area = svg("rect", { class: "gn-span" }, group);
      return n => {
        const upright = (m.options.axis || "x") === "x", [a, b] = [n.low ?? m.options.low, n.high ?? m.options.high].map(upright ? p.X : p.Y);
        const from = Math.min(a, b), size = Math.abs(a - b);
        set(area, upright ? { x: from, width: size, y: p.top, height: p.bottom - p.top } : { y: from, height: size, x: p.left, width: p.right - p.left });
      };
    },
    text(p, m) {
      const group = svg("g", { class: "gn-note" }, p.over);
      return n => {
        group.replaceChildren();
        const { x, y, text } = { ...m.options, ...n };
        text.forEach((one, i) => one && svg("text", { x: p.X(x[i]), y: p.Y(y[i]) + 4, "text-anchor": m.options.anchor || "start", text: one }, group));
      };
    },
    cells(p, m, group) {
      return n => {
        group.replaceChildren();
        const w = (p.right - p.left) / n.text[0].length, h = (p.bottom - p.top) / n.text.length;
        const longest = Math.max(...n.text.flat().map(one => one.length)), size = Math.min(13, w / longest / .62); // so that neighbours do not touch
        n.text.forEach((row, j) => row.forEach((one, i) => {
          svg("rect", { x: p.left + i * w, y: p.top + j * h, width: w, height: h, class: `gn-cell gn-${m.options.fills[n.fill[j][i]]}` }, group);
          if (one) svg("text", { x: p.left + (i + .5) * w, y: p.top + (j + .5) * h + 4, "text-anchor": "middle", class: "gn-value", style: `font-size: ${size.toFixed(1)}px`, text: minus(one) }, group);
        }));
      };
    },
  };
  function sampled(f, [l, r], [b, t], n) {
    return Array.from({ length: n + 1 }, (_, j) => Array.from({ length: n + 1 }, (_, i) => f(l + i * (r - l) / n, b + j * (t - b) / n)));
  }
  /** Bytes in base 64, -127 to 127, to rows of numbers in [-1, 1]. */
  function unpacked({ columns, data }) {
    const bytes = Int8Array.from(atob(data), c => c.charCodeAt(0)), all = [...Array(columns).keys()];
    const below = (j, i) => bytes[j * (j + 1) / 2 + i] / 127;
    return all.map(j => all.map(i => below(Math.max(i, j), Math.min(i, j))));
  }
  /** A number to [-1, 1]: linear below `linear`, logarithmic to `high`. */
  function shading({ linear, high }) {
    const f = inner({ scale: "symlog", linear }), top = f(high);
    return v => Math.max(-1, Math.min(1, f(v) / top));
  }

  // -- a panel ---------------------------------------------------------------------------------------------------------
  function panel(row) {
    const clip = `gn-clip-${++count}`, picture = svg("svg", { class: "gn-panel", "aria-hidden": "true" }, row), frame = svg("g", {}, picture);
    const hole = svg("rect", {}, svg("clipPath", { id: clip }, svg("defs", {}, picture)));
    const inside = svg("g", { "clip-path": `url(#${clip})` }, picture), over = svg("g", {}, picture), ends = svg("g", {}, picture);
    const p = { picture, inside, over };
    /** Left and right end and wished height of the plane in a panel so wide. */
    p.measure = (width, spec, room) => {
      const names = spec.y.names, longest = names.length ? Math.max(...names.map(one => one.length)) : 0;
      const left = names.length ? Math.min(width * .5, 14 + 7.2 * longest) + (spec.y.label ? 18 : 0) : 64, right = width - Math.max(14, room);
      const height = spec.equal ? right - left : spec.height || (names.length ? Math.max(90, 30 * names.length) : Math.min(290, width * .72));
      return { left, right, height };
    };
    p.lay = (width, spec, { left, right, height }) => {
      const names = spec.y.names;
      Object.assign(p, spec, { left, right, width, top: spec.title ? 28 : 10 });
      const longest = Math.max(0, ...spec.x.names.map(one => one.length)), slanted = longest > 3, under = slanted ? Math.min(110, 16 + 5.2 * longest) : 44;
      p.bottom = p.top + height;
      p.row = names.length ? height / names.length : 1;
      set(picture, { width, height: p.bottom + under, viewBox: `0 0 ${width} ${p.bottom + under}` });
      set(hole, { x: p.left, y: p.top, width: p.right - p.left, height });
      p.X = spec.x.names.length ? i => p.left + (i + .5) * (p.right - p.left) / spec.x.names.length : scale(spec.x, p.left, p.right);
      p.Y = names.length ? i => p.top + p.row * (i + .5) : scale(spec.y, p.bottom, p.top);
      axes(frame, p, slanted, under);
    };
    /** Names at the ends of curves, moved apart where they would touch. */
    p.name = labels => {
      ends.replaceChildren();
      const sorted = labels.filter(one => one.at).map(one => ({ ...one, y: Math.min(p.bottom, Math.max(p.top, p.Y(one.at[1]))), x: Math.min(p.right, p.X(one.at[0])) })).sort((a, b) => a.y - b.y);
      for (let i = 1; i < sorted.length; i++) sorted[i].y = Math.max(sorted[i].y, sorted[i - 1].y + 15);
      const over_by = sorted.length ? sorted[sorted.length - 1].y - (p.bottom + 4) : 0;
      if (over_by > 0) for (let i = sorted.length - 1, limit = p.bottom + 4; i >= 0; i--, limit -= 15) sorted[i].y = Math.min(sorted[i].y, limit);
      for (const one of sorted) {
        const item = svg("g", { class: class_of(one.look) }, ends);
        svg("path", { class: HOLLOW.includes(one.shape) ? "gn-open" : "gn-dot", d: shape(one.shape, p.right + 9, one.y, 3.4) }, item);
        svg("text", { x: p.right + 17, y: one.y + 4.5, class: "gn-end", text: one.label }, item);
      }
    };
    return p;
  }
  function axes(frame, p, slanted, under) {
    frame.replaceChildren();
    svg("rect", { x: p.left, y: p.top, width: p.right - p.left, height: p.bottom - p.top, class: "gn-frame" }, frame);
    if (p.x.names.length) p.x.names.forEach((name, i) => name && svg("text", slanted ? { transform: `translate(${p.X(i) + 4} ${p.bottom + 14}) rotate(-40)`, "text-anchor": "end", text: name } : { x: p.X(i), y: p.bottom + 17, "text-anchor": "middle", text: name }, frame));
    else for (const v of ticks(p.x, Math.max(2, (p.right - p.left) / 70))) {
      const x = p.X(v);
      svg("line", { x1: x, x2: x, y1: p.top, y2: p.bottom, class: v === 0 && p.x.limits[0] < 0 ? "gn-zero" : "gn-grid" }, frame);
      svg("text", { x, y: p.bottom + 17, "text-anchor": "middle", text: tickText(v, p.x) }, frame);
    }
    if (p.y.names.length) p.y.names.forEach((name, i) => svg("text", { x: p.left - 8, y: p.Y(i) + 4.5, "text-anchor": "end", class: "gn-name", text: name }, frame));
    else for (const v of ticks(p.y, Math.max(2, (p.bottom - p.top) / 44))) {
      const y = p.Y(v);
      svg("line", { x1: p.left, x2: p.right, y1: y, y2: y, class: v === 0 && p.y.limits[0] < 0 ? "gn-zero" : "gn-grid" }, frame);
      svg("text", { x: p.left - 8, y: y + 4.5, "text-anchor": "end", text: tickText(v, p.y) }, frame);
    }
    nudge(typeset(svg("text", { x: (p.left + p.right) / 2, y: p.bottom + under - 8, "text-anchor": "middle", class: "gn-label" }, frame), p.x.label), p.width);
    if (p.y.label) typeset(svg("text", { transform: `translate(14 ${(p.top + p.bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "gn-label" }, frame), p.y.label);
    if (p.title) nudge(typeset(svg("text", { x: p.left, y: 17, class: "gn-title" }, frame), p.title), p.width);
  }

  // -- a figure --------------------------------------------------------------------------------------------------------
  // On the control itself: else JupyterLab takes the arrow keys from it.
  const KEYS = { "data-lm-suppress-shortcuts": "true" };
  function controlled(parent, c, id, moved) {
    const line = html("div", { class: "gn-control" }, parent);
    typeset(html("label", { for: id }, line), c.label);
    if (c.kind === "choice") {
      const list = html("select", { id, ...KEYS }, line);
      c.shown.forEach((text, i) => html("option", { value: i, text }, list));
      list.addEventListener("change", () => moved(+list.value));
      html("span", {}, line); // the third column, where a slider has its value
      return i => { list.value = i; };
    }
    const range = html("input", { id, type: "range", min: 0, max: c.shown.length - 1, step: 1, ...KEYS }, line);
    const told = html("output", { for: id }, line);
    range.addEventListener("input", () => moved(+range.value));
    return i => { range.value = i; told.textContent = c.shown[i]; range.setAttribute("aria-valuetext", c.shown[i]); };
  }
  function legend(parent, marks) {
    parent.replaceChildren();
    const named = new Map(marks.filter(m => m.label).map(m => [m.label, m]));
    for (const [label, m] of named) {
      const item = html("span", { class: "gn-key" }, parent), picture = svg("svg", { width: 34, height: 14, class: class_of(m.look) }, item);
      if (["line", "rule", "contours"].includes(m.kind)) svg("line", { x1: 1, x2: 33, y1: 7, y2: 7, class: "gn-line", "stroke-width": m.options.width || 2, "stroke-opacity": m.options.faint || 1, "stroke-dasharray": m.kind === "rule" ? m.options.dash || "" : dash_of(m) }, picture);
      if (["bars", "band", "span"].includes(m.kind)) svg("rect", { x: 6, y: 1, width: 22, height: 12, class: m.kind === "bars" ? "gn-bar" : `gn-${m.kind}` }, picture);
      if (m.kind === "points" || m.options.every) svg("path", { d: shape(shape_of(m), 17, 7, 4), class: m.options.open || HOLLOW.includes(shape_of(m)) ? "gn-open" : "gn-dot" }, picture);
      typeset(html("span", {}, item), label);
    }
  }

  function actions(parent, names, link) {
    for (const name of names) html("button", { type: "button", text: name }, parent).addEventListener("click", () => link.act(name));
  }

  /** Draw the figure `spec` into `box`. `link`, where a kernel listens: {moved(state), act(name)}. Returns {move, receive, state}. */
  function mount(box, spec, link) {
    const id = `gn-${++count}`, state = Object.fromEntries(spec.controls.map(c => [c.name, c.at]));
    box.classList.add("gn-figure");
    box.replaceChildren();
    const controls = html("div", { class: "gn-controls", role: "group", "aria-label": "Controls of the figure" }, box);
    const show = Object.fromEntries(spec.controls.map(c => [c.name, controlled(controls, c, `${id}-${c.name}`, i => move({ [c.name]: i }))]));
    if (link && spec.actions) actions(html("div", { class: "gn-actions" }, box), spec.actions, link);
    const keys = html("div", { class: "gn-legend", "aria-hidden": "true" }, box);
    const row = html("div", { class: "gn-panels", role: "img", "aria-labelledby": `${id}-said` }, box);
    const panels = spec.panels.map(() => panel(row));
    const caption = html("p", { class: "gn-sentence", id: `${id}-said` }, box), spoken = html("div", { class: "gn-spoken", "aria-live": "polite" }, box);
    const marks = spec.marks.map(m => KINDS[m.kind](panels[m.panel], m, svg("g", { class: class_of(m.look) }, panels[m.panel].inside)));
    const asked_room = spec.panels.map((_, i) => Math.max(0, ...spec.marks.filter(m => m.panel === i && m.options.end).map(m => 26 + 7 * m.label.length)));
    let room = asked_room, received = spec.first, asked = 0, later = 0, laid = "", drawn = [], broken = false;

    function numbers() {
      if (spec.compute) return gnewton.compute[spec.compute](Object.fromEntries(spec.controls.map(c => [c.name, c.values[state[c.name]]])), spec.given || {});
      if (!spec.table) return received;
      const at = spec.table.rows[spec.controls.reduce((place, c) => place * c.shown.length + state[c.name], 0)].map(i => spec.table.pool[i]);
      return { numbers: at.slice(0, -2), panels: at[at.length - 2], sentence: at[at.length - 1] };
    }
    function lay(changes) {
      const whole = row.clientWidth || 640, beside = !spec.stacked && whole >= 205 * panels.length;
      const width = beside ? (whole - 16 * (panels.length - 1)) / panels.length : whole, key = `${Math.round(width)} ${JSON.stringify(changes || {})}`;
      if (key === laid) return;
      laid = key;
      drawn = [];
      // Where names at the ends of curves would take too much of a narrow picture, they stand above it.
      room = asked_room.map(one => one < width * .34 ? one : 0);
      legend(keys, spec.marks.filter(m => !(m.options.end && room[m.panel])));
      const specs = spec.panels.map((base, i) => {
        const change = (changes || {})[i] || {};
        return { ...base, ...change, x: { ...base.x, ...change.x }, y: { ...base.y, ...change.y } };
      });
      const sizes = panels.map((p, i) => p.measure(width, specs[i], room[i]));
      // Panels beside each other are as high as the highest; squares stay squares.
      const highest = Math.max(...sizes.map(one => one.height)), top = specs.some(one => one.title);
      panels.forEach((p, i) => p.lay(width, { ...specs[i], title: specs[i].title || (beside && top ? " " : "") }, beside && !specs[i].equal ? { ...sizes[i], height: highest } : sizes[i]));
    }
    function draw() {
      asked = 0;
      const begun = performance.now(), now = numbers();
      if (!now) return;
      lay(now.panels);
      marks.forEach((one, i) => {
        if (drawn[i] === now.numbers[i]) return; // what states of a table share is one object
        drawn[i] = now.numbers[i];
        one(spec.marks[i].options.fixed ? { ...spec.marks[i].options.fixed, ...now.numbers[i] } : now.numbers[i]);
      });
      panels.forEach((p, i) => p.name(!room[i] ? [] : spec.marks.map((m, k) => ({ m, k })).filter(({ m }) => m.panel === i && m.options.end)
        .map(({ m, k }) => ({ label: m.label, look: m.look, shape: shape_of(m), at: marks[k].end({ ...m.options.fixed, ...now.numbers[k] }) }))));
      caption.textContent = now.sentence;
      clearTimeout(later);
      later = setTimeout(() => { spoken.textContent = now.sentence; }, 600); // not at every step of a dragged slider
      Object.assign(box.dataset, { ms: (performance.now() - begun).toFixed(2), draws: +(box.dataset.draws || 0) + 1 });
    }
    function redraw() { if (!asked) asked = requestAnimationFrame(draw); }
    function follow(change) {
      const names = Object.keys(change).filter(name => change[name] !== state[name]);
      for (const name of names) { state[name] = change[name]; show[name](change[name]); }
      return names.length > 0;
    }
    function move(change) {
      if (!follow(change)) return;
      if (link) link.moved({ ...state });
      if (spec.compute || spec.table) redraw();
    }
    if (spec.drag && spec.drag.panel !== undefined) draggable(panels[spec.drag.panel], spec, state, move);
    for (const name in state) show[name](state[name]);
    new ResizeObserver(() => { if (!broken) draw(); }).observe(row);
    draw();
    return {
      spec, state, move, numbers,
      /** New indices of the controls, from the kernel. */
      follow: change => { if (follow(change)) redraw(); },
      /** New numbers, from the kernel. */
      receive: now => { received = now; redraw(); },
      /** The numbers of all states, or that they hold no more. */
      tabulate: table => { spec.table = table; redraw(); },
      fail: text => { broken = Boolean(text); caption.textContent = text; },
    };
  }
  Object.assign(gnewton, { mount, controlled, html });

  // -- dragging in the plane: the control takes its value nearest to the pointer -----------------------------------------
  const nearest = (values, v) => values.reduce((best, one, i) => Math.abs(one - v) < Math.abs(values[best] - v) ? i : best, 0);
  /** What a pointer at (x, y) asks of the controls. `held`: whether it took the pole at -value, not the line 2 x / value. */
  function pulled(spec, x, y, held) {
    const { angle, slope, pole, x: across, y: up } = spec.drag, values = name => spec.controls.find(c => c.name === name).values;
    if (angle) return { [angle]: nearest(values(angle), (Math.atan2(y, x) * 180 / Math.PI + 360) % 360) };
    if (slope) return held ? { [pole]: nearest(values(pole), -x) } : { [slope]: nearest(values(slope), 2 * x / Math.max(y, 1e-9)) };
    return { ...(across && { [across]: nearest(values(across), x) }), ...(up && { [up]: nearest(values(up), y) }) };
  }
  /** The point, nearest to (x, y), of what can be dragged: the start, the ray to it, the straight line or the pole. */
  function handle(spec, state, x, y, held) {
    const { angle, slope, pole, x: across, y: up } = spec.drag, at = name => spec.controls.find(c => c.name === name).values[state[name]];
    if (held) return [-at(pole), y];
    if (!angle && !slope) return [across ? at(across) : x, up ? at(up) : y];
    const [a, b] = angle ? [Math.cos(at(angle) * Math.PI / 180), Math.sin(at(angle) * Math.PI / 180)] : [1, 2 / at(slope)];
    const along = Math.max(0, (a * x + b * y) / (a * a + b * b));
    return [along * a, along * b];
  }
  function draggable(p, spec, state, move) {
    let held = false, follows = false;
    const back = (axis, from, to, pixel) => axis.limits[0] + (pixel - from) / (to - from) * (axis.limits[1] - axis.limits[0]);
    const place = event => {
      const at = p.picture.getBoundingClientRect();
      return [back(p.x, p.left, p.right, event.clientX - at.left), back(p.y, p.bottom, p.top, event.clientY - at.top)];
    };
    const follow = event => move(pulled(spec, ...place(event), held));
    const { pole } = spec.drag, now = () => spec.controls.find(c => c.name === pole).values[state[pole]];
    const takes_pole = x => Boolean(pole) && Math.abs(p.X(Math.max(0, -now())) - p.X(x)) < 14; // pixels
    const near = touch => {
      const [x, y] = place(touch), [a, b] = handle(spec, state, x, y, takes_pole(x));
      return Math.hypot(p.X(x) - p.X(a), p.Y(y) - p.Y(b)) < 28;
    };
    p.picture.classList.add("gn-drag");
    // A finger on the handle drags it, up and down too; anywhere else it scrolls the page, and moves nothing.
    p.picture.addEventListener("touchstart", event => { if (event.touches.length === 1 && near(event.touches[0])) event.preventDefault(); }, { passive: false });
    p.picture.addEventListener("pointerdown", event => {
      follows = event.pointerType !== "touch" || near(event);
      if (!follows) return;
      p.picture.setPointerCapture(event.pointerId);
      held = takes_pole(place(event)[0]);
      follow(event);
    });
    p.picture.addEventListener("pointermove", event => { if (event.buttons && follows) follow(event); });
  }

  // -- a page: every <figure data-gnewton> holds its description as JSON ---------------------------------------------------
  function start() {
    for (const figure of document.querySelectorAll("figure[data-gnewton]")) {
      const description = figure.querySelector("script");
      if (description) gnewton.figures.push(mount(figure, JSON.parse(description.textContent)));
    }
  }
  gnewton.start = start;
  /** What anywidget calls for a live cell. */
  gnewton.render = ({ model, el }) => {
    const figure = mount(el, { ...model.get("_spec"), table: model.get("_table") }, {
      moved(state) { model.set("_state", state); model.save_changes(); },
      act(name) { model.send({ act: name }); },
    });
    if (model.get("_answer")) figure.receive(model.get("_answer"));
    figure.follow(model.get("_state"));
    model.on("change:_table", () => figure.tabulate(model.get("_table")));
    model.on("change:_state", () => figure.follow(model.get("_state")));
    model.on("change:_answer", () => figure.receive(model.get("_answer")));
    model.on("change:_problem", () => figure.fail(model.get("_problem")));
    gnewton.figures.push(figure);
  };
})(globalThis);
