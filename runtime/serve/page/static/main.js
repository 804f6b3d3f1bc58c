// Wires the page together.

import { Answer, firstDifference } from "./answer.js";
import { ask, model, useKey } from "./api.js";
import { grown, show } from "./inside.js";
import { follow } from "./lanes.js";
import { conversation, settings } from "./settings.js";
import { byId, html } from "./svg.js";

const [log, message, send, stop] = ["log", "message", "send", "stop"].map(byId);
let turns = [], running = null;

const proving = () => location.hash === "#prove";
const limit = (error) => error.name === "AbortError";

function problem(error) {
  byId("problem").hidden = !error;
  byId("problem").textContent = error ? error.message : "";
  if (error?.status === 401 || error?.status === 403) byId("settings").open = true;
}

// Reads one answer to its end.
async function read(body, answer) {
  show(answer);
  for await (const event of ask(body, running.signal)) {
    answer.add(event);
    grown(answer);
    if (proving()) continue;
    log.scrollTop = log.scrollHeight;
  }
}

function told(answer) {
  const { count, perCycle } = answer.numbers;
  return `${count} tokens${perCycle === null ? "" : `, ${perCycle.toFixed(2)} a cycle`}`;
}

async function chat(text) {
  log.querySelector(".empty")?.remove();
  const question = log.appendChild(html("div", { class: "user" }, text));
  const element = html("div", { class: "answer" }), under = html("div", { class: "under quiet" });
  const article = log.appendChild(html("article", { "aria-label": "Answer" }, element, under));
  const answer = new Answer(element, show);
  const asked = [...turns, { role: "user", content: text }];
  message.value = "";
  try {
    await read({ ...settings(), messages: conversation(asked) }, answer);
    turns = [...asked, { role: "assistant", content: answer.text }];
  } catch (error) {
    if (!answer.tokens.length) { message.value = text; question.remove(); article.remove(); }
    else if (element.isConnected) turns = [...asked, { role: "assistant", content: answer.text }]; // it was stopped
    throw error;
  } finally {
    const inspect = html("button", { type: "button", class: "link" }, "show its cycles");
    inspect.addEventListener("click", () => show(answer));
    if (answer.calls.length) under.before(html("div", { class: "calls" }, JSON.stringify(answer.calls, null, 1)));
    if (answer.tokens.length) {
      under.append(told(answer), inspect);
      byId("said").textContent = `The answer has ended: ${told(answer)}.`;
    }
  }
}

async function prove(text) {
  const verdict = byId("verdict"), body = { ...settings(), messages: conversation([{ role: "user", content: text }]) };
  body.seed ??= crypto.getRandomValues(new Uint32Array(1))[0]; // sampled answers are the same only with the same seed
  const { policy, ...rest } = body;
  const [plain, fast] = [new Answer(byId("plain"), show), new Answer(byId("fast"), show)];
  verdict.className = "verdict";
  verdict.textContent = "Plainly …";
  await read({ ...rest, speculation: false }, plain);
  verdict.textContent = "With speculation …";
  await read(policy ? { ...rest, policy } : rest, fast);
  const at = firstDifference(plain, fast);
  verdict.classList.add(at < 0 ? "same" : "different");
  if (at >= 0) for (const answer of [plain, fast]) for (const token of answer.tokens.slice(at)) token.span.classList.add("differs");
  const [slow, quick] = [plain, fast].map((answer) => answer.stats?.tokens_per_second || answer.numbers.speed || 0);
  const speed = slow && quick ? ` ${(quick / slow).toFixed(2)} times as fast: ${quick.toFixed(1)} tokens/s against ${slow.toFixed(1)}.` : "";
  verdict.textContent = at < 0 ? `All ${plain.tokens.length} tokens are the same.${speed}` : `They differ from token ${at + 1} on.${speed}`;
}

async function submit() {
  const text = message.value.trim();
  if (!text || running) return;
  running = new AbortController();
  send.disabled = true;
  stop.disabled = false;
  problem(null);
  try {
    await (proving() ? prove(text) : chat(text));
  } catch (error) {
    if (!limit(error)) problem(error);
  } finally {
    running = null;
    send.disabled = false;
    stop.disabled = true;
  }
}

function view() {
  byId("chat-view").hidden = proving();
  byId("prove-view").hidden = !proving();
  byId("clear").hidden = proving();
  send.textContent = proving() ? "Run both" : "Send";
  byId(proving() ? "to-prove" : "to-chat").setAttribute("aria-current", "page");
  byId(proving() ? "to-chat" : "to-prove").removeAttribute("aria-current");
}

async function introduce() {
  try {
    const card = await model();
    byId("model").textContent = card.id;
    document.title = `resps · ${card.id}`;
    byId("policy").replaceChildren(byId("policy").options[0], ...card.resps.policies.map((name) => html("option", {}, name)));
  } catch (error) {
    problem(error);
  }
}

// What the browser remembers; nothing where it may not.
function remembered(theme) {
  try {
    if (theme !== undefined) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme") ?? "";
  } catch {
    return theme ?? "";
  }
}

function dress(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
stop.addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => { running?.abort(); turns = []; log.replaceChildren(); message.focus(); });
byId("depths").addEventListener("change", (event) => document.body.classList.toggle("show-depths", event.target.checked));
byId("key").addEventListener("change", (event) => { useKey(event.target.value); problem(null); introduce(); follow(); });
byId("theme").value = remembered();
byId("theme").addEventListener("change", (event) => dress(remembered(event.target.value)));
dress(byId("theme").value);
addEventListener("hashchange", view);
view();
introduce();
follow();
