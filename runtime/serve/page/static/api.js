// Requests to the server: one answer as a stream, the model's card, and the events.

let key = "";
export const user = `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`; // tells our requests from others' on /events

export function useKey(text) { key = text.trim(); }

class ServerError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(`../${path}`, { ...options, headers });
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new ServerError(response.status, body?.error);
  }
  return response;
}

// The objects of a stream of server-sent events, until [DONE] or its end.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

export async function model() {
  return (await (await call("v1/models")).json()).data[0];
}

// Events of one chat answer; each has the round that made it.
export async function* ask(body, signal) {
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify({ ...body, stream: true, rounds: true, user }), signal });
  for await (const event of events(response)) {
    if (event.error) throw new ServerError(500, event.error);
    yield event;
  }
}

// Messages about all lanes, until the signal.
export async function* watch(signal) {
  yield* events(await call(`events?user=${user}`, { signal }));
}
