// One answer: its tokens as text, and the cycles that made them.

import { html } from "./svg.js";

const WORDS = { target: "the model’s own token", draft: "drafted, accepted at depth", lookup: "looked up, accepted at depth", forced: "forced by the grammar, at depth" };

export class Answer {
  // `element`: where the tokens go. `pick`: called with (answer, cycle) when a token is chosen by mouse.
  constructor(element, pick) {
    this.element = element;
    this.rounds = [];
    this.tokens = [];
    this.text = "";
    this.calls = [];
    this.stats = null;
    element.replaceChildren();
    element.addEventListener("click", (event) => {
      const cycle = event.target.dataset?.cycle;
      if (cycle) pick(this, Number(cycle));
    });
  }

  add(event) {
    const delta = event.choices[0]?.delta ?? {}, round = event.resps?.round;
    this.text += delta.content ?? "";
    this.stats = event.resps?.stats ?? this.stats;
    for (const call of delta.tool_calls ?? []) this.addCall(call);
    if (round?.tree) this.rounds.push(round);
    if (round) for (const token of round.tokens) this.addToken(token, round.tree ? this.rounds.length - 1 : undefined);
    else if (delta.content) this.element.append(delta.content);
  }

  addToken(token, cycle) {
    const [, space, word] = token.text.match(/^( *)(.*)$/s); // the space before a word is not marked
    const span = html("span", { class: `token ${token.from}`, "data-depth": token.depth }, word || space);
    span.title = WORDS[token.from] + (token.depth ? ` ${token.depth}` : "");
    if (cycle !== undefined) span.dataset.cycle = cycle;
    this.tokens.push({ ...token, cycle, span });
    this.element.append(word ? space : "", span);
  }

  addCall(piece) {
    const call = (this.calls[piece.index ?? 0] ??= { name: "", arguments: "" });
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }

  // Marks the tokens of one cycle.
  mark(cycle) {
    for (const token of this.tokens) token.span.classList.toggle("chosen", token.cycle === cycle);
  }

  // Tokens a cycle, guesses that were accepted, and tokens a second after the first token.
  get numbers() {
    const came = this.rounds.reduce((sum, round) => sum + round.tokens.length, 0);
    const guessed = this.rounds.reduce((sum, round) => sum + round.tree.texts.length - 1, 0);
    const kept = this.rounds.reduce((sum, round) => sum + round.path.length - 1, 0);
    const time = this.rounds.reduce((sum, round) => sum + round.ms.draft + round.ms.verify + round.ms.commit + round.ms.between, 0);
    return {
      count: this.tokens.length,
      perCycle: this.rounds.length ? came / this.rounds.length : null,
      accepted: guessed ? kept / guessed : null,
      speed: time ? (1000 * came) / time : null,
    };
  }
}

// Where two answers begin to differ, by token; -1 if they do not.
export function firstDifference(one, other) {
  for (let at = 0; at < Math.max(one.tokens.length, other.tokens.length); at += 1) {
    if (one.tokens[at]?.id !== other.tokens[at]?.id) return at;
  }
  return -1;
}
