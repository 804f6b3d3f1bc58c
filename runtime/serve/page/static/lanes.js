// What all lanes of the server do, from its stream of events. Closed while the page is not seen.

import { watch } from "./api.js";
import { added, dots, rowBars, timeBar } from "./bars.js";
import { byId, html } from "./svg.js";

const RECENT = 60, SECONDS = 5000;
let passes = [], last = new Map(), recent = [], running = null;

function time(cycles) {
  let ended = null;
  return cycles.reduce((sums, each) => {
    const own = Object.values(each.ms).reduce((sum, part) => sum + part, 0);
    const gap = ended === null ? 0 : Math.max(0, each.at - own - ended);
    ended = each.at;
    return added(sums, { ...each.ms, between: gap < 200 ? gap : 0 }); // a longer one is a pause, not a part of a cycle
  }, {});
}

const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;

function draw({ state, cycles }) {
  for (const cycle of cycles) for (const round of cycle.rounds) last.set(round.request, round);
  recent = [...recent, ...cycles];
  recent = recent.filter((each) => each.at > recent.at(-1).at - SECONDS);
  passes = [...passes, ...cycles.filter((each) => each.rows)].slice(-RECENT);
  const lanes = state.replicas.reduce((sum, each) => sum + each.lanes, 0), all = state.replicas.flatMap((each) => each.running);
  last = new Map(all.filter((each) => last.has(each.request)).map((each) => [each.request, last.get(each.request)]));
  const pass = passes.at(-1), waiting = state.waiting ? `, ${state.waiting} waiting` : "", lost = state.dropped ? ` ${state.dropped} cycles were not shown.` : "";
  byId("pass").textContent = `${all.length} of ${lanes} in use${waiting}.${pass && all.length ? ` Last pass: ${counted(pass.rows, "row")} for ${counted(pass.rounds.length, "request")}.` : ""}${lost}`;
  byId("rows").replaceChildren(...(passes.length ? [rowBars(passes)] : []));
  byId("lanes").replaceChildren(...all.map((each) => lane(each, last.get(each.request))));
  const rounds = recent.filter((each) => each.rows).length;
  if (rounds) byId("server-time").replaceChildren(...timeBar(time(recent), rounds));
}

function lane(request, round) {
  const name = html("span", request.own ? { class: "own" } : {}, request.own ? "yours" : `request ${request.request ?? ""}`);
  const told = request.tokens ? `${request.prompt} + ${request.tokens} tokens` : `reading ${request.prompt} tokens`;
  return html("li", {}, name, html("span", { class: "quiet" }, told), ...(round ? [dots(round)] : []));
}

// Connect now, again after failures, and whenever the page is seen again.
export async function follow() {
  running?.abort();
  running = null;
  if (document.hidden) return;
  const own = (running = new AbortController());
  try {
    for await (const message of watch(own.signal)) draw(message);
    byId("pass").textContent = "The server has closed the stream.";
  } catch (error) {
    if (own.signal.aborted) return;
    byId("pass").textContent = error.message;
    if (error.status === 401 || error.status === 403) return; // the key's field calls again
  }
  setTimeout(() => running === own && follow(), 3000);
}
document.addEventListener("visibilitychange", follow);
