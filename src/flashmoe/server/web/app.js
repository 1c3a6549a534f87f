// The chat page: one conversation, kept in this tab.

import { answer, servedModel } from "./api.js";
import { Charts } from "./charts.js";
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const KEPT = "flashmoe.chat";
let messages = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
let running = null;

const key = () => $("key").value;

function keep() {
  sessionStorage.setItem(KEPT, JSON.stringify(messages));
}

function addTurn(kind, text = "") {
  const turn = document.createElement("div");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  $("log").append(turn);
  scroll();
  return turn;
}

function scroll() {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 200) log.scrollTop = log.scrollHeight;
}

/** One answer on the page: reasoning, text, progress of the prompt, figures. */
class AnswerView {
  constructor() {
    this.turn = addTurn("assistant");
    this.text = "";
    this.reasoning = "";
    this.progress = this.add("progress");
    this.progress.removeAttribute("value");
    this.thinking = this.add("details", "thinking");
    this.thinking.hidden = true;
    this.thought = document.createElement("div");
    this.thinking.append(Object.assign(document.createElement("summary"), { textContent: "Thinking" }), this.thought);
    this.body = this.add("div");
    this.notes = this.add("div", "notes");
  }

  add(name, className = "") {
    const node = document.createElement(name);
    node.className = className;
    this.turn.append(node);
    return node;
  }

  show(chunk) {
    if (chunk.prompt_progress) this.showProgress(chunk.prompt_progress);
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.reasoning_content) this.showReasoning(delta.reasoning_content);
    if (delta.content) this.showText(delta.content);
    if (chunk.choices?.[0]?.finish_reason === "length") this.note("cut at the most tokens");
    if (chunk.timings && chunk.choices.length) this.showFigures(chunk);
    scroll();
  }

  showProgress({ total, processed }) {
    this.progress.max = total;
    this.progress.value = processed;
    $("status").textContent = `reading the prompt: ${processed} of ${total} tokens`;
  }

  showReasoning(text) {
    this.answering();
    this.thinking.hidden = false;
    this.reasoning += text;
    this.thought.textContent = this.reasoning;
  }

  showText(text) {
    this.answering();
    this.text += text;
    this.body.replaceChildren(...markdown(this.text));
  }

  answering() {
    this.progress.hidden = true;
    $("status").textContent = "answering";
  }

  showFigures({ timings, flashmoe }) {
    const parts = [`${timings.predicted_n} tokens`, `${timings.predicted_per_second.toFixed(1)} tok/s`];
    if (timings.cache_n) parts.push(`${timings.cache_n} prompt tokens reused`);
    if (flashmoe?.hit_rate != null) parts.push(`${(100 * flashmoe.hit_rate).toFixed(0)} % cache hits`);
    if (flashmoe?.gb_read != null) parts.push(`${flashmoe.gb_read.toFixed(2)} GB read`);
    this.note(parts.join(" · "));
  }

  note(text) {
    this.notes.textContent += (this.notes.textContent ? " · " : "") + text;
  }

  end() {
    this.progress.hidden = true;
  }
}

function request() {
  const system = $("system").value.trim();
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: Number($("temperature").value),
    max_tokens: Number($("max-tokens").value),
    chat_template_kwargs: { enable_thinking: $("thinking").checked },
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  };
}

async function send(text) {
  const conversation = messages; // "New chat" starts another one while this answer ends
  conversation.push({ role: "user", content: text });
  addTurn("user", text);
  const view = new AnswerView();
  busy(new AbortController());
  try {
    for await (const chunk of answer(request(), key(), running.signal)) view.show(chunk);
  } catch (error) {
    if (error.name === "AbortError") view.note("stopped");
    else refuse(conversation, text, error);
  } finally {
    view.end();
    if (view.text) conversation.push({ role: "assistant", content: view.text });
    keep();
    busy(null);
  }
}

/** A message that was not answered goes back to where it was typed. */
function refuse(conversation, text, error) {
  addTurn("error", error.message);
  if (conversation.at(-1)?.role === "user") conversation.pop();
  $("input").value ||= text;
}

function busy(controller) {
  running = controller;
  $("stop").hidden = !controller;
  $("send").hidden = Boolean(controller);
  $("status").textContent = controller ? "waiting" : "";
  if (!controller) $("input").focus();
}

function showFacts(model) {
  $("model").textContent = model.id;
  document.title = `${model.id} · flashmoe`;
  const rows = [["context", model.context_length], ...Object.entries(model.flashmoe ?? {})];
  $("facts").replaceChildren(...rows.filter(([, value]) => value != null && typeof value !== "object").flatMap(fact));
}

function fact([name, value]) {
  const dt = Object.assign(document.createElement("dt"), { textContent: name.replaceAll("_", " ") });
  return [dt, Object.assign(document.createElement("dd"), { textContent: String(value) })];
}

async function connect() {
  try {
    showFacts(await servedModel(key()));
  } catch (error) {
    $("model").textContent = error.message;
  }
}

function submit(event) {
  event.preventDefault();
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  send(text);
}

function startNew() {
  running?.abort();
  messages = [];
  keep();
  $("log").replaceChildren();
}

function toggleSide() {
  const side = $("side");
  side.hidden = !side.hidden;
  $("toggle").setAttribute("aria-expanded", String(!side.hidden));
}

$("form").addEventListener("submit", submit);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", startNew);
$("toggle").addEventListener("click", toggleSide);
$("key").addEventListener("change", connect);
for (const { role, content } of messages) {
  const turn = addTurn(role, role === "user" ? content : "");
  if (role === "assistant") turn.append(...markdown(content));
}
if (matchMedia("(max-width: 50rem)").matches) toggleSide();
connect();
new Charts().run(key);
