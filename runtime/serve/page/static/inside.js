// The panel beside the conversation: numbers, trees and times of one answer.

import { added, barAt, strip, timeBar } from "./bars.js";
import { byId } from "./svg.js";
import { description, drawTree } from "./tree.js";

const slider = byId("cycle");
let answer = null, cycle = 0, follows = true, waiting = false;

// Show an answer: `at` is one of its cycles, or the latest.
export function show(next, at = null) {
  answer?.mark(-1);
  answer = next;
  follows = at === null;
  cycle = at ?? 0;
  draw();
}

// The answer has grown. Drawn ten times a second, however many cycles came.
export function grown(which) {
  if (which === answer && !waiting) {
    waiting = true;
    setTimeout(() => { waiting = false; draw(); }, 100);
  }
}

slider.addEventListener("input", () => {
  cycle = slider.valueAsNumber - 1;
  follows = slider.value === slider.max;
  draw();
});
byId("strip").addEventListener("click", (event) => {
  if (!answer?.rounds.length) return;
  const box = byId("strip").getBoundingClientRect();
  cycle = barAt((event.clientX - box.left) / box.width, answer.rounds.length);
  follows = false;
  draw();
});

function draw() {
  const { rounds } = answer, { count, perCycle, accepted, speed } = answer.numbers;
  byId("count").textContent = count;
  byId("speed").textContent = speed === null ? "–" : speed.toFixed(speed < 100 ? 1 : 0);
  byId("per-cycle").textContent = perCycle === null ? "–" : perCycle.toFixed(2);
  byId("accepted").textContent = accepted === null ? "–" : `${Math.round(100 * accepted)} %`;
  slider.disabled = rounds.length === 0;
  if (rounds.length === 0) {
    for (const id of ["strip", "tree", "time"]) byId(id).replaceChildren();
    byId("caption").textContent = "No cycle yet.";
    return;
  }
  if (follows) cycle = rounds.length - 1;
  slider.max = rounds.length;
  slider.value = cycle + 1;
  slider.setAttribute("aria-valuetext", `cycle ${cycle + 1} of ${rounds.length}`);
  const round = rounds[cycle];
  byId("strip").replaceChildren(strip(rounds, cycle));
  byId("tree").replaceChildren(drawTree(round));
  byId("caption").textContent = `Cycle ${cycle + 1} of ${rounds.length}. ${description(round)}`;
  byId("time").replaceChildren(...timeBar(rounds.reduce((sums, each) => added(sums, each.ms), {}), rounds.length));
  answer.mark(cycle);
}
