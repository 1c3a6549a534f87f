// The server as the page uses it: its OpenAI API, and its metrics.

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function failure(response) {
  const text = await response.text();
  try {
    return new Error(JSON.parse(text).error.message);
  } catch {
    return new Error(text || `${response.status} ${response.statusText}`);
  }
}

/** The model that is served, as /v1/models describes it. */
export async function servedModel(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data[0];
}

/** Counters by name, labels summed up. */
export async function metrics(key) {
  const response = await fetch("metrics", { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  const sums = {};
  for (const line of (await response.text()).split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? ([-+.\deE]+)/.exec(line);
    if (match) sums[match[1]] = (sums[match[1]] ?? 0) + Number(match[2]);
  }
  return sums;
}

/** Chunks of an answer. Aborting `signal` ends it, and the server stops computing. */
export async function* answer(request, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
  }
}
