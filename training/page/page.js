"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const NAMES = Object.keys(D.policies);
const PALETTE = ["#2f6fde", "#e4572e", "#17a398", "#8e44ad", "#e0a100", "#d6336c", "#5f8a10", "#0b84a5", "#a0522d", "#6c5ce7", "#c98bb9", "#4a6572"];
const COLOUR = {};
NAMES.forEach((name) => { COLOUR[name] = name === "none" ? "#8a939e" : PALETTE[Object.keys(COLOUR).filter((n) => n !== "none").length % PALETTE.length]; });
const PARTS = { idle: ["idle nodes", "#e0a100"], fragmentation: ["fragmentation", "#2f6fde"], moves: ["moves: cold starts, fixed price", "#8e44ad"], unserved: ["unserved demand", "#e4572e"] };

/* ---- small helpers; text only ever enters the page as text ---- */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") node.style.cssText = value; else if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const fmt = (value, digits = 1) => value === null || value === undefined ? "–" : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const signed = (value, digits = 1) => (value > 0 ? "+" : value < 0 ? "−" : "±") + fmt(Math.abs(value), digits);
const short = (value) => Math.abs(value) >= 10000 ? fmt(value / 1000, 0) + "k" : fmt(value, Math.abs(value) < 10 && value % 1 ? 1 : 0);
function hm(hours) { const minutes = Math.round(hours * 60); return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")} h`; }
function tip(event, text) {
  const box = $("tip");
  if (!text) { box.style.display = "none"; return; }
  box.textContent = text; box.style.display = "block";
  box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
  box.style.top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8) + "px";
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12), found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(12));
  return found;
}
function spread(values) { let low = Infinity, high = -Infinity; for (const v of values) { if (v < low) low = v; if (v > high) high = v; } return [low, high]; }

/* ---- charts ---- */
const drawers = [];
const hidden = new Set();
function frame(host, height, [x0, x1], [y0, y1], xLabel, yLabel, xTicks = null) {
  const width = Math.max(280, host.clientWidth), left = 58, right = 14, top = 10, bottom = 40;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${yLabel} against ${xLabel}` });
  const sx = (x) => left + (x - x0) / (x1 - x0 || 1) * (width - left - right), sy = (y) => height - bottom - (y - y0) / (y1 - y0 || 1) * (height - top - bottom);
  for (const y of ticks(y0, y1, 5)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: sy(y), y2: sy(y) }), svg("text", { x: left - 8, y: sy(y) + 4, "text-anchor": "end" }, short(y)));
  }
  for (const x of xTicks || ticks(x0, x1, Math.min(12, width / 80))) root.append(svg("line", { class: "grid", x1: sx(x), x2: sx(x), y1: top, y2: height - bottom }), svg("text", { x: sx(x), y: height - bottom + 17, "text-anchor": "middle" }, short(x)));
  root.append(svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, xLabel), svg("text", { x: 13, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(top + height - bottom) / 2})` }, yLabel));
  host.replaceChildren(root);
  return { root, sx, sy, left, right: width - right, top, bottom: height - bottom, width };
}
function steps(f, xs, ys) {
  let path = "", last = null;
  for (let i = 0; i < xs.length; i++) {
    if (i > 0 && i < xs.length - 1 && ys[i] === last) continue;
    path += path ? `H${f.sx(xs[i]).toFixed(1)}V${f.sy(ys[i]).toFixed(1)}` : `M${f.sx(xs[i]).toFixed(1)},${f.sy(ys[i]).toFixed(1)}`;
    last = ys[i];
  }
  return path;
}
function legendOf(host, redraw) {
  const legend = el("p", { className: "legend" });
  for (const name of Object.keys(D.recordings)) {
    const item = el("span", { className: "toggle" + (hidden.has(name) ? " off" : ""), title: "show or hide" }, el("i", { style: `background:${COLOUR[name]}` }), name);
    item.onclick = () => { hidden.has(name) ? hidden.delete(name) : hidden.add(name); redraw(); };
    legend.append(item);
  }
  legend.append(el("span", {}, el("i", { style: "background:var(--free)" }), "bound"));
  host.append(legend);
}
function timeChart(id, height, yLabel, of, boundOf, digits) {
  const host = $(id), cursors = [];
  const draw = () => {
    const shown = Object.keys(D.recordings).filter((name) => !hidden.has(name)), any = Object.values(D.recordings)[0];
    if (!any) { host.textContent = "no recording"; return; }
    const xs = any.time_h, bound = boundOf(any), tops = shown.map((name) => spread(of(D.recordings[name]))[1]);
    const f = frame(host, height, [xs[0], xs[xs.length - 1]], [0, Math.max(1e-9, spread(bound)[1], ...tops) * 1.06], "hours", yLabel);
    f.root.append(svg("path", { d: steps(f, xs, bound) + `V${f.sy(0)}H${f.left}Z`, fill: "var(--free)", opacity: .75 }));
    for (const name of shown) f.root.append(svg("path", { d: steps(f, xs, of(D.recordings[name])), fill: "none", stroke: COLOUR[name], "stroke-width": name === "none" ? 1.4 : 1.8, "stroke-linejoin": "round", opacity: .92 }));
    const cursor = svg("line", { class: "axis", y1: f.top, y2: f.bottom, "stroke-dasharray": "3 3" });
    f.root.append(cursor);
    cursors[0] = (tick) => { const x = f.sx(xs[Math.min(tick, xs.length - 1)]); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
    cursors[0](currentTick());
    const catcher = svg("rect", { x: f.left, y: f.top, width: f.right - f.left, height: f.bottom - f.top, fill: "transparent" });
    const at = (event) => Math.max(0, Math.min(xs.length - 1, Math.round((event.clientX - catcher.getBoundingClientRect().left) / catcher.getBoundingClientRect().width * (xs.length - 1))));
    catcher.onmousemove = (event) => {
      const i = at(event), lines = shown.map((name) => [of(D.recordings[name])[i], name]).sort((a, b) => b[0] - a[0]);
      tip(event, [`${hm(xs[i])}`, ...lines.map(([value, name]) => `${name}: ${fmt(value, digits)}`), `bound: ${fmt(bound[i], digits)}`].join("\n"));
    };
    catcher.onmouseleave = (event) => tip(event, "");
    catcher.onclick = (event) => show(frameOfTick(at(event)));
    f.root.append(catcher);
    legendOf(host, () => drawers.forEach((d) => d()));
  };
  drawers.push(draw); onTick.push((tick) => cursors[0] && cursors[0](tick));
}
function bars(host) {
  const draw = () => {
    const row = 34, width = Math.max(280, host.clientWidth), longest = NAMES.reduce((most, name) => Math.max(most, name.length), 4);
    const left = Math.min(230, 24 + 7.4 * longest), right = 92, root = svg("svg", { viewBox: `0 0 ${width} ${NAMES.length * row + 28}`, height: NAMES.length * row + 28, role: "img", "aria-label": "bill above the bound by cause" });
    const sums = NAMES.map((name) => [Object.keys(PARTS).reduce((s, p) => s + Math.min(0, D.parts_usd[name][p]), 0), Object.keys(PARTS).reduce((s, p) => s + Math.max(0, D.parts_usd[name][p]), 0)]);
    const low = Math.min(0, ...sums.map((s) => s[0])), high = Math.max(1e-9, ...sums.map((s) => s[1])), sx = (v) => left + (v - low) / (high - low) * (width - left - right);
    for (const x of ticks(low, high, Math.max(3, Math.min(8, width / 120)))) root.append(svg("line", { class: "grid", x1: sx(x), x2: sx(x), y1: 0, y2: NAMES.length * row }), svg("text", { x: sx(x), y: NAMES.length * row + 18, "text-anchor": "middle" }, short(x)));
    NAMES.forEach((name, i) => {
      let up = 0, down = 0;
      const label = svg("text", { class: "strong", x: left - 10, y: i * row + 21, "text-anchor": "end" }, name.length > 28 ? name.slice(0, 27) + "…" : name);
      label.append(svg("title", {}, name)); root.append(label);
      for (const [part, [heading, colour]] of Object.entries(PARTS)) {
        const value = D.parts_usd[name][part], from = value >= 0 ? up : down + value;
        const bar = svg("rect", { x: sx(from), y: i * row + 5, width: Math.max(0, sx(from + Math.abs(value)) - sx(from)), height: row - 12, fill: colour, rx: 2 });
        const share = 100 * value / D.parts_usd[name].bound;
        bar.onmousemove = (event) => tip(event, `${name}\n${heading}: ${fmt(value, 2)} USD (${fmt(share, 1)} % of the bound)`); bar.onmouseleave = (event) => tip(event, "");
        root.append(bar); value >= 0 ? up += value : down += value;
      }
      root.append(svg("text", { class: "strong", x: sx(up) + 8, y: i * row + 21 }, `${fmt(up + down, up + down < 10 ? 2 : 0)} USD`));
    });
    const legend = el("p", { className: "legend" }, ...Object.values(PARTS).map(([heading, colour]) => el("span", {}, el("i", { style: `background:${colour}` }), heading)));
    legend.append(el("span", { className: "quiet" }, `bound: ${fmt(D.parts_usd[NAMES[0]].bound, 0)} USD per episode; fragmentation: paid above the bound on nodes that hold something`));
    host.replaceChildren(root, legend);
  };
  drawers.push(draw);
}
function scatter(id, xMetric, xLabel) {
  const host = $(id), points = D.sweep.length ? D.sweep : NAMES.map((name) => ({ name, rule: name, settings: null, ...D.policies[name] }));
  const draw = () => {
    const xs = points.map((p) => p[xMetric].mean), ys = points.map((p) => p.cost_usd.mean), [yl, yh] = spread(ys), [xl, xh] = spread(xs), pad = (yh - yl) * .12 || yh * .02 || 1, padX = (xh - xl) * .06 || 1;
    const f = frame(host, 320, [Math.max(0, xl - padX), xh + padX], [yl - pad, yh + pad], xLabel, "node bill, USD");
    const sorted = points.map((p, i) => i).sort((a, b) => xs[a] - xs[b] || ys[a] - ys[b]), front = [];
    let best = Infinity;
    for (const i of sorted) if (ys[i] < best) { best = ys[i]; front.push(i); }
    if (front.length > 1) f.root.append(svg("path", { d: front.map((i, k) => k ? `H${f.sx(xs[i])}V${f.sy(ys[i])}` : `M${f.sx(xs[i])},${f.sy(ys[i])}`).join(""), fill: "none", stroke: "var(--quiet)", "stroke-dasharray": "4 4" }));
    const placed = [];
    points.forEach((p, i) => {
      const cx = f.sx(xs[i]), cy = f.sy(ys[i]), plain = p.settings === null;
      const dot = svg("circle", { cx, cy, r: plain ? 7 : 4.5, fill: COLOUR[p.rule] || "#888", opacity: plain ? 1 : .55, stroke: plain ? "var(--card)" : "none", "stroke-width": 2 });
      dot.onmousemove = (event) => tip(event, `${p.name}\nnode bill ${fmt(p.cost_usd.mean, 1)} USD, total ${fmt(p.total_usd.mean, 1)} USD\nmoves ${fmt(p.moves.mean, 1)}, undone ${fmt(p.undone_moves.mean, 1)}\nunserved ${fmt(p.unserved_request_s.mean, 0)} request-s`);
      dot.onmouseleave = (event) => tip(event, "");
      f.root.append(dot);
      if (!plain) return;
      const end = cx > f.left + (f.right - f.left) * .7; let y = cy + 4;
      while (placed.some((q) => Math.abs(q[0] - cx) < 130 && Math.abs(q[1] - y) < 13)) y += 13;
      placed.push([cx, y]);
      f.root.append(svg("text", { class: "strong", x: cx + (end ? -11 : 11), y, "text-anchor": end ? "end" : "start" }, p.name.length > 24 ? p.name.slice(0, 23) + "…" : p.name));
    });
    host.append(el("p", { className: "quiet" }, D.sweep.length ? "Large: as evaluated. Small: the same rule at other settings. Dashed: what no setting beats in both." : "Dashed: what no policy beats in both. --sweep K draws each heuristic's curve."));
  };
  drawers.push(draw);
}

/* ---- tables ---- */
function figures() {
  const choice = $("reference"), table = $("figures");
  choice.append(el("option", { value: "" }, "the figures"), ...NAMES.map((name) => el("option", { value: name }, `difference to ${name}, % of its mean`)));
  const lower = new Set(["total_usd", "excess_frac", "cost_usd", "disruption_usd", "unserved_usd", "node_hours", "undone_moves", "unserved_request_s"]);
  const fill = () => {
    const reference = choice.value, rows = reference ? D.versus[reference] : D.policies;
    const head = el("tr", {}, el("th", {}, ""), ...NAMES.map((name) => el("th", { style: `border-bottom:3px solid ${COLOUR[name]}` }, name)));
    const body = D.columns.map(([metric, heading, factor, digits]) => {
      const means = NAMES.map((name) => rows[name][metric].mean), known = means.filter((m) => m !== null);
      const best = metric === "tokens_per_gpu_s" || metric === "closed_frac" ? Math.max(...known) : Math.min(...known);
      return el("tr", {}, el("td", {}, reference ? heading.replace(/ %| USD/, "") : heading), ...NAMES.map((name, i) => {
        const { mean, ci95 } = rows[name][metric], scale = reference ? 100 : factor, d = reference ? 1 : digits;
        const cell = el("td", {}, mean === null ? "–" : reference ? signed(mean * scale, d) + " %" : fmt(mean * scale, d));
        if (ci95) cell.append(el("small", {}, `${fmt(ci95[0] * scale, d)} … ${fmt(ci95[1] * scale, d)}`));
        if (!reference && known.length > 1 && means[i] === best && (lower.has(metric) || best !== 0) && Math.max(...known) !== Math.min(...known) && (lower.has(metric) || metric === "tokens_per_gpu_s" || metric === "closed_frac")) cell.className = "best";
        return cell;
      }));
    });
    const loud = NAMES.some((name) => D.policies[name].refused_moves.mean > 0) && !reference ? [el("tr", { className: "loud" }, el("td", {}, "REFUSED MOVES"), ...NAMES.map((name) => el("td", {}, fmt(D.policies[name].refused_moves.mean, 1))))] : [];
    const audits = Object.keys(D.audit).length && !reference ? [el("tr", {}, el("td", {}, "blind to the future"), ...NAMES.map((name) => { const said = D.audit[name]; return el("td", { title: said || "" }, said === undefined ? "–" : said.startsWith("FAILED") ? "NO" : "yes"); }))] : [];
    table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...body, ...loud, ...audits));
  };
  choice.onchange = fill; fill();
}
function deployments() {
  const keys = D.deployment_names, worst = Math.max(1e-9, ...NAMES.flatMap((name) => keys.map((key) => D.deployments[name][key].unserved_request_s)));
  const sum = (key) => NAMES.reduce((s, name) => s + D.deployments[name][key].unserved_request_s, 0);
  const rows = [...keys].sort((a, b) => sum(b) - sum(a)).map((key) => el("tr", {}, el("td", {}, el("i", { style: `display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px;background:${hue(keys.indexOf(key))}` }), key), ...NAMES.map((name) => {
    const d = D.deployments[name][key];
    return el("td", { style: `background:color-mix(in srgb, var(--bad) ${Math.round(55 * d.unserved_request_s / worst)}%, transparent)` }, fmt(d.unserved_request_s, 0), el("small", {}, `${fmt(d.moves_per_replica_day, 2)} moves`));
  })));
  $("deployments").append(el("thead", {}, el("tr", {}, el("th", {}, ""), ...NAMES.map((name) => el("th", {}, name)))), el("tbody", {}, ...rows));
}
function published() {
  if (!D.published.length) { $("published-card").remove(); return; }
  const percent = (value) => value === null || value === undefined ? "–" : signed(100 * value, 1) + " %";
  $("published").append(el("thead", {}, el("tr", {}, el("th", {}, ""), el("th", {}, "published"), ...NAMES.map((name) => el("th", {}, name)))),
    el("tbody", {}, ...D.published.map((figure) => el("tr", {}, el("td", {}, figure.what), el("td", {}, percent(figure.published_frac)), ...NAMES.map((name) => el("td", {}, percent(figure.policies[name])))))));
}
function tiles() {
  const order = [...NAMES].sort((a, b) => D.policies[a].total_usd.mean - D.policies[b].total_usd.mean), reference = NAMES.includes("none") ? "none" : NAMES[0];
  for (const name of order.slice(0, 8)) {
    const total = D.policies[name].total_usd, against = D.versus[reference][name].total_usd, tile = el("div", { className: "tile", style: `--c:${COLOUR[name]}` }, el("span", { className: "name" }, name), el("b", {}, `${fmt(total.mean, total.mean < 100 ? 2 : 0)} USD`));
    if (name !== reference && against.mean !== null) tile.append(el("span", { className: against.mean < 0 ? "down" : "up" }, `${signed(100 * against.mean)} %`), el("span", { className: "quiet" }, against.ci95 ? ` [${fmt(100 * against.ci95[0])}, ${fmt(100 * against.ci95[1])}] against ${reference}` : ` against ${reference}`));
    else tile.append(el("span", { className: "quiet" }, `excess ${fmt(100 * D.policies[name].excess_frac.mean)} % over the bound`));
    $("tiles").append(tile);
  }
}

/* ---- cluster map ---- */
const onTick = [];
const hue = (d) => `hsl(${(d * 137.508 + 210) % 360} ${58 + d % 3 * 12}% ${dark() ? 62 - d % 2 * 10 : 48 + d % 2 * 10}%)`;
const dark = () => document.documentElement.dataset.theme === "dark";
const RECORDED = Object.keys(D.recordings);
const TICKS = RECORDED.length ? D.recordings[RECORDED[0]].frame_ticks : [0];
let current = 0, timer = null, panels = [];
const currentTick = () => TICKS[current] || 0;
const frameOfTick = (tick) => { let i = 0; while (i + 1 < TICKS.length && TICKS[i + 1] <= tick) i++; return i; };
function stateAt(panel, index) {
  if (index < panel.at) { panel.at = -1; panel.nodes = new Map(); }
  while (panel.at < index) for (const change of D.recordings[panel.name].frames[++panel.at]) change.length === 1 ? panel.nodes.delete(change[0]) : panel.nodes.set(change[0], change);
  return panel.nodes;
}
function rowsOf(name) {  // every node row that is ever there, by type: a node keeps its place
  const types = new Map();
  for (const frame of D.recordings[name].frames) for (const change of frame) if (change.length > 1) types.set(change[0], change[1]);
  return [...types.keys()].sort((a, b) => a - b);
}
const MOST_ROWS = RECORDED.length ? Math.max(...RECORDED.map((name) => rowsOf(name).length)) : 0;
function buildPanels() {
  const chosen = RECORDED.filter((name) => $("chosen").querySelector(`input[data-index="${RECORDED.indexOf(name)}"]`).checked);
  panels = chosen.map((name) => {
    const count = el("span"), canvas = el("canvas"), box = el("div", { className: "map" }, el("h3", {}, el("b", { style: `color:${COLOUR[name]}` }, name), count), canvas);
    const panel = { name, canvas, count, box, at: -1, nodes: new Map(), rows: rowsOf(name), hits: [] };
    canvas.onmousemove = (event) => hover(event, panel); canvas.onmouseleave = (event) => tip(event, "");
    return panel;
  });
  $("maps").replaceChildren(...panels.map((panel) => panel.box));
  show(current);
}
function paint(panel) {
  const nodes = stateAt(panel, current), canvas = panel.canvas, width = canvas.parentElement.clientWidth, scale = devicePixelRatio || 1;
  const many = MOST_ROWS > 120, most = Math.max(1, ...D.node_types.map((t) => t.gpus)), columns = Math.min(4, most), lines = Math.ceil(most / columns);
  const cell = many ? 4 : MOST_ROWS > 48 ? 8 : MOST_ROWS > 12 ? 14 : 22, gap = many ? 1 : 2, pad = many ? 2 : 5, bw = columns * (cell + gap) - gap + 2 * pad, bh = lines * (cell + gap) - gap + 2 * pad, space = many ? 3 : 9, dearest = Math.max(1e-9, ...D.node_types.map((t) => t.usd_per_h));
  const perRow = Math.max(1, Math.floor((width + space) / (bw + space))), height = Math.ceil(MOST_ROWS / perRow) * (bh + space);
  canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = height + "px";
  const c = canvas.getContext("2d"); c.scale(scale, scale); c.clearRect(0, 0, width, height); panel.hits = [];
  const F = D.flags, ink = { node: css("--node"), line: css("--line"), free: css("--free"), quiet: css("--quiet"), warn: css("--warn"), bad: css("--bad"), accent: css("--accent"), card: css("--card") };
  panel.rows.forEach((row, i) => {
    const x = i % perRow * (bw + space), y = Math.floor(i / perRow) * (bh + space), node = nodes.get(row);
    c.lineWidth = 1; c.setLineDash([]);
    if (!node) { c.strokeStyle = ink.line; c.globalAlpha = .55; c.setLineDash([2, 3]); c.strokeRect(x + .5, y + .5, bw - 1, bh - 1); c.globalAlpha = 1; return; }
    const [, type, flags, cells] = node;
    c.fillStyle = ink.node; c.beginPath(); c.roundRect(x, y, bw, bh, many ? 1 : 4); c.fill();
    c.strokeStyle = flags & F.draining ? ink.bad : flags & F.fenced ? ink.warn : flags & F.booting ? ink.accent : ink.line;
    c.lineWidth = flags & (F.draining | F.fenced | F.booting) ? 2 : 1;
    if (flags & F.booting) c.setLineDash([4, 3]);
    c.beginPath(); c.roundRect(x + 1, y + 1, bw - 2, bh - 2, many ? 1 : 4); c.stroke(); c.setLineDash([]);
    if (!many) { c.fillStyle = ink.quiet; c.fillRect(x + 1, y + bh + 1.5, (bw - 2) * D.node_types[type].usd_per_h / dearest, 3); }
    cells.forEach((code, g) => {
      if (g >= columns * lines) return;
      const gx = x + pad + g % columns * (cell + gap), gy = y + pad + Math.floor(g / columns) * (cell + gap), stage = code >= 0 ? code % 4 : 0;
      c.fillStyle = code === -1 ? ink.free : code === -2 ? ink.quiet : hue(code >> 2);
      c.globalAlpha = flags & F.booting ? .45 : stage === 1 ? .45 : stage === 2 ? .3 : 1;
      c.fillRect(gx, gy, cell, cell); c.globalAlpha = 1;
      if (many) return;
      if (stage === 1) { c.strokeStyle = hue(code >> 2); c.lineWidth = 1.5; c.strokeRect(gx + .75, gy + .75, cell - 1.5, cell - 1.5); }
      if (stage === 2) { c.strokeStyle = ink.bad; c.lineWidth = 1.5; c.beginPath(); c.moveTo(gx + 2, gy + cell - 2); c.lineTo(gx + cell - 2, gy + 2); c.stroke(); }
      if (stage === 3) { c.fillStyle = ink.card; c.beginPath(); c.arc(gx + cell / 2, gy + cell / 2, cell / 4.5, 0, 7); c.fill(); }
    });
    panel.hits.push([x, y, bw, bh, node, cell, gap, pad, columns]);
  });
  const tick = currentTick(), recording = D.recordings[panel.name], pending = recording.pending[tick];
  panel.count.textContent = `${recording.num_nodes[tick]} nodes (bound ${recording.bound_nodes[tick]}), ${fmt(recording.cost_usd_per_h[tick], 0)} USD/h` + (pending ? `, ${pending} waiting` : "");
}
function hover(event, panel) {
  const box = panel.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  for (const [x, y, w, h, [row, type, flags, cells], cell, gap, pad, columns] of panel.hits) {
    if (px < x || px > x + w || py < y || py > y + h) continue;
    const g = Math.floor((py - y - pad) / (cell + gap)) * columns + Math.floor((px - x - pad) / (cell + gap)), code = cells[g];
    const is = Object.entries(D.flags).filter(([, bit]) => flags & bit).map(([name]) => name), stage = ["serves", "starts", "drains", "leaves"];
    const what = code === undefined ? "" : code === -1 ? "\nfree" : code === -2 ? "\nother work" : `\n${D.deployment_names[code >> 2]}: ${stage[code % 4]}`;
    tip(event, `node ${row}: ${D.node_types[type].name}, ${fmt(D.node_types[type].usd_per_h, 2)} USD/h${is.length ? "\n" + is.join(", ") : ""}${what}`);
    return;
  }
  tip(event, "");
}
function show(index) {
  current = Math.max(0, Math.min(TICKS.length - 1, index));
  $("slider").value = current;
  if (RECORDED.length) $("clock").textContent = hm(D.recordings[RECORDED[0]].time_h[currentTick()] || 0);
  panels.forEach(paint); onTick.forEach((f) => f(currentTick()));
}
function play(on = timer === null) {
  clearInterval(timer); timer = null; $("play").textContent = on ? "⏸" : "▶";
  if (!on) return;
  if (current >= TICKS.length - 1) current = 0;
  timer = setInterval(() => { show(current + 1); if (current >= TICKS.length - 1) play(false); }, 1000 / +$("speed").value);
}
function clusterMap() {
  if (!RECORDED.length) return;
  $("map-title").textContent = `seed ${D.seeds[0]}`;
  $("slider").max = TICKS.length - 1;
  const first = ["none", ...RECORDED.filter((name) => name !== "none").sort((a, b) => D.policies[a].total_usd.mean - D.policies[b].total_usd.mean)].filter((name) => RECORDED.includes(name)).slice(0, innerWidth < 900 ? 2 : 3);
  RECORDED.forEach((name, i) => { const box = el("input", { type: "checkbox", checked: first.includes(name) }); box.setAttribute("data-index", i); box.onchange = buildPanels; $("chosen").append(el("label", {}, box, name)); });
  $("slider").oninput = () => show(+$("slider").value);
  $("play").onclick = () => play();
  $("speed").onchange = () => { if (timer !== null) play(true); };
  addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT", "BUTTON"].includes(event.target.tagName) && event.target.id !== "slider") return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); show(current + by * (event.shiftKey ? 10 : 1)); }
    if (event.key === " ") { event.preventDefault(); play(); }
  });
}
function mapLegend() {
  const mark = (style, text) => el("span", {}, el("i", { style }), text);
  $("map-legend").replaceChildren(mark("border-color:var(--warn)", "fenced: being emptied"), mark("border:2px dashed var(--accent)", "booting"), mark("border-color:var(--bad)", "to be interrupted"), mark("background:var(--free)", "free GPU"), mark("background:var(--quiet)", "other work"), mark("background:var(--quiet);height:3px", "hourly price"),
    ...(D.deployment_names.length <= 30 ? D.deployment_names.map((name, d) => mark(`background:${hue(d)}`, name.replace(/^default\//, ""))) : []));
}

/* ---- page ---- */
function setTheme(theme) { document.documentElement.dataset.theme = theme; mapLegend(); if (panels.length) show(current); }
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
$("theme").onclick = () => setTheme(dark() ? "light" : "dark");
$("title").textContent = D.scenario;
$("description").textContent = D.description;
$("facts").textContent = `${D.seeds.length} episode${D.seeds.length > 1 ? "s" : ""} of ${fmt(D.horizon_h, D.horizon_h % 1 ? 2 : 0)} h · ${D.days} · ${D.traffic} · ${D.node_types.map((t) => `${t.name} ${fmt(t.usd_per_h, 2)} USD/h`).join(", ")}`;
tiles(); clusterMap(); mapLegend();
timeChart("nodes", 300, "nodes", (r) => r.num_nodes, (r) => r.bound_nodes, 0);
timeChart("cost", 260, "USD per hour", (r) => r.cost_usd_per_h, (r) => r.bound_usd_per_h, 1);
bars($("parts")); figures(); scatter("pareto-moves", "moves", "moves per episode"); scatter("pareto-unserved", "unserved_request_s", "unserved request-seconds per episode");
deployments(); published();
$("made-by").append(el("p", {}, "made by ", el("code", {}, D.made_by.command)), el("p", {}, `commit ${D.made_by.git_commit || "none"} · ${Object.entries(D.made_by.versions).map(([name, version]) => `${name} ${version}`).join(", ")}`));
if (RECORDED.length) buildPanels();
drawers.forEach((draw) => draw());
if (RECORDED.length) {  // begin where policies differ most
  const nodes = RECORDED.map((name) => D.recordings[name].num_nodes), gap = (tick) => Math.max(...nodes.map((n) => n[tick])) - Math.min(...nodes.map((n) => n[tick]));
  show(TICKS.reduce((best, tick, i) => gap(tick) > gap(TICKS[best]) ? i : best, 0));
}
let resized = null;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { drawers.forEach((draw) => draw()); show(current); }, 120); });
document.body.dataset.ready = "yes";
