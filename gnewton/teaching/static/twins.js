/* Closed forms that the browser computes itself: each the twin of a widget's numbers() in Python, to 1e-9; a test compares. */
(function (root) {
  "use strict";
  const gnewton = root.gnewton || (root.gnewton = {});
  if (gnewton.compute) return; // every live figure brings this script
  const compute = gnewton.compute = {};
  const general = (v, digits) => gnewton.general(v, digits);
  const hypot = v => Math.hypot(v[0], v[1]);

  // -- symmetric 2 x 2 matrices [a, b, c] of [[a, b], [b, c]] ----------------------------------------------------------
  const times = ([a, b, c], [x, y]) => [a * x + b * y, b * x + c * y];
  /** Eigenvalues, the lower first, and its unit vector, whose first component that is not 0 is positive. */
  function eigen([a, b, c]) {
    const middle = (a + c) / 2, half = Math.hypot((a - c) / 2, b);
    const values = [middle - half, middle + half];
    let vector = b === 0 ? (a <= c ? [1, 0] : [0, 1]) : Math.abs(values[0] - c) > Math.abs(values[0] - a) ? [values[0] - c, b] : [b, values[0] - a];
    const size = hypot(vector), first = vector[0] || vector[1];
    vector = vector.map(v => v / size * Math.sign(first) + 0);
    return { values, low: vector, high: [-vector[1], vector[0]] };
  }
  /** b / (kappa + sigma), 0 where b is 0. */
  const over = (b, kappa, sigma) => b.map((v, i) => v === 0 ? 0 : v / (kappa[i] + sigma));
  /** Where `f`, positive at low and negative at high, is zero. */
  function bisect(f, low, high) {
    for (let i = 0; i < 200 && low < high; i++) {
      const middle = (low + high) / 2;
      if (middle === low || middle === high) break;
      if (f(middle) > 0) low = middle; else high = middle;
    }
    return high;
  }
  /** The coordinates of g along the eigenvectors; what rounding leaves of an orthogonal part is 0. */
  function along(g, e) {
    const b = [e.low, e.high].map(q => q[0] * g[0] + q[1] * g[1]), least = 1e-13 * hypot(b);
    return b.map(v => Math.abs(v) < least ? 0 : v);
  }
  const back = (s, e) => [0, 1].map(i => s[0] * e.low[i] + s[1] * e.high[i]);

  // -- steps: gradient g, Hessian H -> what is taken off the parameters -------------------------------------------------
  function newton(g, H) {
    const e = eigen(H), b = along(g, e), least = 2 * 2.220446049250313e-16 * Math.max(...e.values.map(Math.abs));
    return back(b.map((v, i) => Math.abs(e.values[i]) <= least ? 0 : v / e.values[i]), e);
  }
  /** The minimizer of -g.s + s.Hs/2 over |s| <= radius(sigma), where radius may grow with sigma; and its sigma. */
  function bounded(g, H, radius) {
    const e = eigen(H), k = e.values, b = along(g, e), base = Math.max(0, -k[0]);
    const length = sigma => hypot(over(b, k, sigma)), beyond = sigma => length(sigma) - radius(sigma);
    let sigma = base, s = over(b, k, base);
    if (!(beyond(base) <= 0)) {
      let high = base + 1;
      while (beyond(high) > 0) high = base + 2 * (high - base);
      sigma = bisect(beyond, base, high);
      s = over(b, k, sigma);
    } else if (k[0] < 0) { // the hard case: along the lowest curvature the rest of the radius is free
      const rest = radius(base) ** 2 - hypot(s) ** 2;
      s = [rest > 1e-14 * radius(base) ** 2 ? Math.sqrt(rest) : 0, s[1]]; // less is rounding
      return { step: back(s, e), sigma, hard: true };
    }
    return { step: back(s, e), sigma, hard: false };
  }
  const trustRegion = (g, H, radius) => bounded(g, H, () => radius);
  function cubicStep(g, H, strength) {
    if (strength > 0) return bounded(g, H, sigma => 2 * sigma / strength).step;
    const e = eigen(H), least = 1e-14 * Math.max(...e.values.map(Math.abs));
    return e.values.some(v => Math.abs(v) <= least) ? [0, 0] : newton(g, H);
  }

  // -- the figures -----------------------------------------------------------------------------------------------------
  compute.bowl = ({ condition, angle, start }, { steps, floor, names }) => {
    const c = Math.cos(angle * Math.PI / 180), s = Math.sin(angle * Math.PI / 180), turn = start * Math.PI / 180;
    const A = [c * c + condition * s * s, c * s * (1 - condition), s * s + condition * c * c];
    const height = (x, y) => (A[0] * x * x + 2 * A[1] * x * y + A[2] * y * y) / 2;
    const dot = (v, w) => v[0] * w[0] + v[1] * w[1];
    const rules = [() => 1 / condition, g => dot(g, g) / dot(g, times(A, g)) || 0, null];
    const paths = rules.map(rule => {
      let p = [2 * Math.cos(turn), 2 * Math.sin(turn)];
      const x = [p[0]], y = [p[1]];
      for (let i = 0; i < steps; i++) {
        const g = times(A, p), rate = rule && rule(g);
        p = rule ? [p[0] - rate * g[0], p[1] - rate * g[1]] : [0, 0]; // Newton's step on a quadratic ends at its minimum
        x.push(p[0]); y.push(p[1]);
      }
      return { x, y };
    });
    const losses = paths.map(({ x, y }) => x.map((v, i) => height(v, y[i]))), when = [...Array(steps + 1).keys()];
    const ends = names.map((name, i) => `${name} has loss ${general(losses[i][steps] > 1e-12 ? losses[i][steps] : 0, 1)}`);
    return {
      numbers: [{ f: height }, ...paths, { x: [paths[0].x[0]], y: [paths[0].y[0]] }, ...losses.map(l => ({ x: when, y: l.map(v => Math.max(v, floor)) }))],
      sentence: `Condition number ${condition}, turned by ${angle}°: after ${steps} steps ${ends.join(", ")}.`,
    };
  };

  compute.secular = ({ lowest, along: b1, strength }, { highest, across, reach }) => {
    const kappa = [lowest, highest], b = [b1, across];
    const { step: y, sigma: root, hard } = bounded(b, [lowest, 0, highest], sigma => 2 * sigma / strength);
    const sigmas = Array.from({ length: 401 }, (_, i) => i * reach / 400), pole = 0 - lowest;
    const lengths = sigmas.map(sigma => Math.min(hypot(over(b, kappa, sigma)), 10 * reach));
    const least = Math.max(0, -lowest), allowed = Array.from({ length: 200 }, (_, i) => least + 10 ** (-6 + 9 * i / 199));
    const curve = allowed.map(sigma => [b[0] / (kappa[0] + sigma), b[1] / (kappa[1] + sigma)]);
    const status = hard ? "HARD_CASE" : "CONVERGED", where = hard ? "root there too" : `root at ${general(root, 3)}`;
    const minima = hard ? [y, [-y[0], y[1]]] : [y];
    return {
      numbers: [
        { low: 0, high: Math.max(pole, 0) }, { at: Math.max(pole, 0) }, { x: sigmas, y: lengths }, { x: [0, reach], y: [0, 2 * reach / strength] },
        { x: [root], y: [2 * root / strength] },
        { f: (p, q) => -b[0] * p - b[1] * q + (kappa[0] * p * p + kappa[1] * q * q) / 2 + strength / 6 * Math.hypot(p, q) ** 3 },
        { x: curve.map(v => v[0]), y: curve.map(v => v[1]) }, { x: minima.map(v => v[0]), y: minima.map(v => v[1]) }, { x: [0], y: [0] },
      ],
      sentence: `Lowest curvature ${general(lowest, 6)}, gradient ${general(b1, 6)} along it, strength ${general(strength, 6)}: ` +
        `${pole >= 0 ? `pole at σ = ${general(pole, 6)}, ` : "no pole, "}${where}; ${status}.`,
    };
  };

  const loss = (a, b) => (a * b - 1) ** 2 / 2;
  function derivatives([a, b]) {
    const r = a * b - 1;
    return [[r * b, r * a], [b * b, 2 * a * b - 1, a * a]];
  }
  function remedy(name, start, length) {
    const [g, H] = derivatives(start);
    if (name === "gradient") { const rate = length / (hypot(g) || 1); return g => g.map(v => rate * v); }
    if (name === "Newton, shortened") {
      const part = Math.min(1, length / (hypot(newton(g, H)) || 1));
      return (g, H) => newton(g, H).map(v => part * v);
    }
    if (name === "trust region") return (g, H) => trustRegion(g, H, length).step;
    const { step, sigma } = trustRegion(g, H, length), strength = 2 * sigma / (hypot(step) || 1);
    return (g, H) => cubicStep(g, H, strength);
  }
  compute.saddle = ({ a, b, remedy: name, length }, { steps, floor, far, reaches }) => {
    const start = [a, b], rule = remedy(name, start, length), points = [start];
    for (let i = 0; i < steps; i++) {
      const here = points[i], step = hypot(here) < far ? rule(...derivatives(here)) : [0, 0];
      points.push([here[0] - step[0], here[1] - step[1]]);
    }
    const reached = [start, ...reaches.map(r => { const step = remedy(name, start, r)(...derivatives(start)); return [a - step[0], b - step[1]]; })];
    const losses = points.map(p => loss(...p)), last = points[steps], end = losses[steps];
    const at = end < 1e-6 ? "at a minimum" : hypot(last) < 1e-2 ? "at the saddle" : hypot(last) > far ? "far away" : "still on its way";
    const track = ps => ({ x: ps.map(p => p[0]), y: ps.map(p => p[1]) });
    return {
      numbers: [{ f: loss }, {}, {}, {}, track(reached), track(points), track([start]), {}, { x: points.map((_, i) => i), y: losses.map(v => Math.max(v, floor)) }, {}],
      sentence: `From (${general(a, 6)}, ${general(b, 6)}), ${name}, first step at most ${general(length, 6)} long: after ${steps} steps loss ${general(end > 1e-12 ? end : 0, 2)}, ${at}.`,
    };
  };

  /** The losses of all rates stand in a list, the last rate moving first; the model is computed. */
  compute.rates = (values, { start, gradient, hessian, metric, cubic, losses }) => {
    const t = Object.values(values), parts = [0, .5, 1, 1.5, 2];
    const sum = f => t.reduce((total, v, i) => total + f(v, i), 0);
    const model = start - sum((v, i) => gradient[i] * v) + sum((v, i) => v * sum((w, j) => hessian[i][j] * w)) / 2
      + cubic / 6 * Math.sqrt(sum((v, i) => (metric[i] * v) ** 2)) ** 3;
    const after = losses[t.reduce((place, v) => place * parts.length + parts.indexOf(v), 0)];
    const listed = t.map(v => general(v, 6)), last = listed.pop();
    const said = listed.length ? `${listed.join(", ")} and ${last}` : last;
    return {
      numbers: [{ values: t }, { values: [start, model, after] }],
      sentence: `With ${said} times Newton's rates the loss goes from ${general(start, 3)} to ${general(after, 3)}; the model says ${general(model, 3)}.`,
    };
  };

  /** A training run made beforehand, as far as the slider says; the runs of the other settings in grey. */
  compute.replay = (chosen, { names, fixed, runs, steps }) => {
    const values = { ...fixed, ...chosen };
    const told = name => typeof values[name] === "string" ? values[name] : general(values[name], 6);
    const key = names.map(told).join("|"), run = runs[key], made = run.slice(0, values.done);
    const others = { x: [], y: [] };
    for (const one in runs) if (one !== key) { runs[one].forEach((v, i) => { others.x.push(i); others.y.push(v); }); others.x.push(null); others.y.push(null); }
    const said = names.map(name => `${name.replace("set_", "")} ${told(name)}`).join(", ");
    const fate = made.length === run.length && run.length < steps ? "no finite loss any more" : made.length === steps ? "done" : "so far";
    return {
      numbers: [others, { x: made.map((_, i) => i), y: made }],
      sentence: `${said}: ${made.length} of ${steps} steps${made.length ? `, loss ${general(made[made.length - 1], 1)}` : ""}, ${fate}.`,
    };
  };
})(globalThis);
