// Small drawings of numbers: guesses a cycle, rows a pass, and where time goes.

import { html, svg } from "./svg.js";

const NAMES = { read: "reading prompts", draft: "draft", verify: "verify", commit: "accept and commit", between: "other" };

// A bar for each cycle: what was guessed, what was kept of it, and the model's own token below. `here`: the one that is shown.
export function strip(rounds, here) {
  const step = Math.min(14, 400 / Math.max(rounds.length, 1)), most = Math.max(4, ...rounds.map((round) => round.tree.texts.length));
  const high = 40 / most, drawing = svg("svg", { class: "strip", viewBox: "0 0 400 44", preserveAspectRatio: "none", "aria-hidden": "true" });
  rounds.forEach((round, at) => {
    const x = at * step, width = Math.max(step - Math.min(2, step / 4), 0.5), kept = round.path.length - 1;
    const bar = (name, from, count) => count && drawing.append(svg("rect", { class: name, x, width, y: 42 - (from + count) * high, height: count * high }));
    bar("guessed", 1, round.tree.texts.length - 1);
    bar(`kept ${round.tree.source}`, 1, kept);
    bar("own", 0, 1);
    if (at === here) drawing.append(svg("rect", { class: "here", x: x - 1, y: 0.6, width: width + 2, height: 42.8 }));
  });
  return drawing;
}

// Rows of the last passes.
export function rowBars(passes) {
  const most = Math.max(4, ...passes.map((each) => each.rows)), drawing = svg("svg", { class: "strip", viewBox: "0 0 400 44", preserveAspectRatio: "none", "aria-hidden": "true" });
  passes.forEach((each, at) => {
    const bar = (name, y, height) => drawing.append(svg("rect", { class: name, x: at * 6.6, width: 5, y, height }));
    const all = (each.rows / most) * 40, tokens = (each.rounds.reduce((sum, round) => sum + round.tokens, 0) / most) * 40;
    bar("guessed", 42 - all, all);
    bar("kept", 42 - tokens, tokens);
  });
  return drawing;
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
