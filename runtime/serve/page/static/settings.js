// The form's settings as fields of a request.

import { byId } from "./svg.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens"];

function json(id, name) {
  const text = byId(id).value.trim();
  if (!text) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    byId("settings").open = true;
    byId(id).focus();
    throw new Error(`${name}: this is no JSON: ${error.message}`, { cause: error });
  }
}

// Throws an Error that says which field is wrong.
export function settings() {
  const body = {};
  for (const name of NUMBERS) if (byId(name).value !== "") body[name] = byId(name).valueAsNumber;
  if (byId("policy").value) body.policy = byId("policy").value;
  const schema = json("schema", "JSON schema"), tools = json("tools", "Tools");
  if (schema !== undefined) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  if (tools !== undefined) body.tools = tools;
  return body;
}

export function conversation(turns) {
  const system = byId("system").value.trim();
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}
