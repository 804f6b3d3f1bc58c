// Small drawings of numbers: guesses a cycle, rows a pass, and where time goes.

import { html, svg } from "./svg.js";

const NAMES = { read: "reading prompts", draft: "draft", verify: "verify", commit: "accept and commit", between: "other" };

// Bars of equal width; each kind is one path, so that long answers stay cheap to draw.
class Bars {
  constructor(count, most, widest) {
    this.step = Math.min(widest, 400 / Math.max(count, 1));
    this.high = 40 / Math.max(4, most);
    this.paths = new Map();
  }

  add(kind, at, from, count) {
    if (count <= 0) return;
    const [x, width] = [at * this.step, Math.max(this.step - Math.min(2, this.step / 4), 0.5)];
    const piece = `M${x} ${42 - from * this.high}v${-count * this.high}h${width}v${count * this.high}z`;
    this.paths.set(kind, (this.paths.get(kind) ?? "") + piece);
  }

  drawn() {
    const paths = [...this.paths].map(([kind, d]) => svg("path", { class: kind, d }));
    return svg("svg", { class: "strip", viewBox: "0 0 400 44", preserveAspectRatio: "none", "aria-hidden": "true" }, ...paths);
  }
}

const WIDEST = 14;
// Which bar of how many is at a place from 0 to 1.
export const barAt = (place, count) => Math.min(count - 1, Math.floor((place * 400) / Math.min(WIDEST, 400 / count)));

// A bar for each cycle: the model's own token below, what was guessed, and what was kept of it. `here`: the one that is shown.
export function strip(rounds, here) {
  const bars = new Bars(rounds.length, Math.max(...rounds.map((round) => round.tree.texts.length)), WIDEST);
  rounds.forEach((round, at) => bars.add("guessed", at, 1, round.tree.texts.length - 1));
  rounds.forEach((round, at) => { bars.add(`kept ${round.tree.source}`, at, 1, round.path.length - 1); bars.add("own", at, 0, 1); });
  bars.add("here", here, 0, 41 / bars.high);
  return bars.drawn();
}

// Rows of the last passes, and the tokens that came of them.
export function rowBars(passes) {
  const bars = new Bars(60, Math.max(...passes.map((each) => each.rows)), WIDEST);
  passes.forEach((each, at) => bars.add("guessed", at, 0, each.rows));
  passes.forEach((each, at) => bars.add("kept", at, 0, each.rounds.reduce((sum, round) => sum + round.tokens, 0)));
  return bars.drawn();
}

// The rows of one request in the last pass.
export function dots(round) {
  const drawing = svg("svg", { class: "dots", width: 300, height: 10, role: "img", "aria-label": `${round.nodes} rows, ${round.accepted} guesses accepted` });
  for (let at = 0; at < Math.min(round.nodes, 25); at += 1) {
    const name = at === 0 ? "own" : at <= round.accepted ? `kept ${round.source}` : "guessed";
    drawing.append(svg("rect", { class: name, x: 0.5 + at * 12, y: 0.5, width: 9, height: 9, rx: 2 }));
  }
  return drawing;
}

// Milliseconds a cycle, by part, as one bar and a list of the same order.
export function timeBar(parts, cycles) {
  const bar = html("div", { class: "bar", "aria-hidden": "true" }), list = html("ul", { class: "parts" });
  const sum = Object.values(parts).reduce((total, each) => total + each, 0);
  for (const [name, total] of Object.entries(parts)) {
    if (name === "read" && total === 0) continue;
    const piece = html("span", { class: `part-${name}` });
    piece.style.flexGrow = total;
    bar.append(piece);
    list.append(html("li", {}, html("i", { class: `part-${name}` }), `${NAMES[name]} `, html("b", {}, `${(total / cycles).toFixed(1)} ms`), ` ${Math.round((100 * total) / sum)} %`));
  }
  return [bar, list];
}

export function added(sums, parts) {
  for (const [name, value] of Object.entries(parts)) sums[name] = (sums[name] ?? 0) + value;
  return sums;
}
