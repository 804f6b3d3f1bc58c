// Draws the tree of one cycle: the root on the left, a column for each depth. The accepted path is the first line.

import { svg } from "./svg.js";

const LETTER = 7.25, LINE = 26, HEIGHT = 20, GAP = 20, TOP = 20;

// White space is shown, and long texts are cut.
export function shown(text) {
  const visible = text.replace(/^ /, "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
  return visible.length > 10 ? `${visible.slice(0, 9)}…` : visible;
}

// The nodes in rows and columns. The target's own token after the accepted path is a node, too.
function placed(round) {
  const accepted = new Set(round.path), last = round.path.at(-1);
  const nodes = round.tree.texts.map((text, at) => ({
    text, parent: round.tree.parents[at], children: [], depth: 0,
    kind: at === 0 ? "root" : accepted.has(at) ? "accepted" : "rejected",
  }));
  nodes.forEach((node, at) => {
    if (at === 0) return;
    const above = nodes[node.parent];
    node.depth = above.depth + 1;
    above.children[node.kind === "accepted" ? "unshift" : "push"](at);
  });
  const own = round.tokens.at(-1);
  if (own?.from === "target") {
    nodes.push({ text: own.text, parent: last, children: [], depth: nodes[last].depth + 1, kind: "own" });
    nodes[last].children.unshift(nodes.length - 1);
  }
  let row = 0;
  const place = (at) => {
    nodes[at].row = row;
    nodes[at].children.forEach((child, order) => { if (order > 0) row += 1; place(child); });
  };
  place(0);
  return { nodes, rows: row + 1 };
}

export function drawTree(round) {
  const { nodes, rows } = placed(round);
  const columns = Math.max(round.asked.depth + 1, ...nodes.map((node) => node.depth + 1));
  const widths = Array.from({ length: columns }, (_, depth) =>
    Math.max(26, ...nodes.filter((node) => node.depth === depth).map((node) => shown(node.text).length * LETTER + 14)));
  const lefts = widths.map((_, depth) => 2 + widths.slice(0, depth).reduce((sum, width) => sum + width + GAP, 0));
  const width = lefts.at(-1) + widths.at(-1) + 2, height = TOP + rows * LINE;
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description(round) });
  for (let depth = 0; depth < columns; depth += 1) {
    const label = svg("text", { class: "column", x: lefts[depth], y: 11 });
    label.textContent = depth === 0 ? "root" : String(depth);
    drawing.append(label);
  }
  const middle = (node) => TOP + node.row * LINE + HEIGHT / 2;
  for (const node of nodes) {
    if (node.parent < 0) continue;
    const above = nodes[node.parent];
    const [x, y] = [lefts[above.depth] + shown(above.text).length * LETTER + 14, middle(above)];
    const [toX, toY] = [lefts[node.depth], middle(node)];
    const line = `M${x} ${y}C${toX - GAP / 2} ${y} ${toX - GAP / 2} ${toY} ${toX} ${toY}`;
    drawing.append(svg("path", { class: node.kind === "rejected" ? "edge" : "edge kept", d: line }));
  }
  for (const node of nodes) {
    const text = shown(node.text);
    const label = svg("text", { x: lefts[node.depth] + 7, y: middle(node) + 4.2 });
    label.textContent = text;
    const box = svg("rect", { x: lefts[node.depth], y: middle(node) - HEIGHT / 2, width: text.length * LETTER + 14, height: HEIGHT, rx: 5 });
    drawing.append(svg("g", { class: `node ${node.kind} ${round.tree.source}` }, box, label));
  }
  return drawing;
}

const SOURCES = { draft: "drafted", lookup: "looked up", forced: "forced by the grammar" };

export function description(round) {
  const guesses = round.tree.texts.length - 1, kept = round.path.length - 1;
  const { nodes, depth, width } = round.asked;
  if (guesses === 0) return nodes > 1 ? "Nothing was guessed in this cycle; the model chose one token." : "No tree was asked for; the model chose one token.";
  return `Asked for: ${nodes} nodes, depth ${depth}, width ${width}. Verified: the root and ${guesses} ${SOURCES[round.tree.source]}; `
    + `${kept} accepted, ${guesses - kept} rejected. Then came the model’s own token.`;
}
