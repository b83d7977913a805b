// Requests to this server: its errors as words, its key, its streams.

export class ApiProblem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let asking = null;

function key() {
  try { return sessionStorage.getItem("studio.key") ?? ""; } catch { return ""; }
}

/** Ask for the server's key, once however many requests need it. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    dialog.addEventListener("close", () => {
      asking = null;
      const given = document.getElementById("key-field").value;
      try { sessionStorage.setItem("studio.key", given); } catch { /* asked again next time */ }
      resolve(dialog.returnValue === "ok" && given !== "");
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function words(response) {
  let body = null;
  try { body = await response.json(); } catch { /* not JSON: the status says what there is */ }
  const error = body?.error ?? body?.detail;
  if (typeof error === "string") return error;
  if (Array.isArray(error)) return error.map((each) => each?.msg ?? "").join("; ");
  const text = error?.message ?? `the server answered ${response.status} ${response.statusText}`;
  return error?.hint ? `${text}: ${error.hint}` : text;
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem("the server does not answer: is it still running?");
  }
  if (response.status === 401 && (await askForKey())) return ask(path, options);
  if (!response.ok) throw new ApiProblem(await words(response), response.status);
  return response;
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

function posted(body, signal) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
}

export async function post(path, body, signal) {
  return (await ask(path, posted(body, signal))).json();
}

/** The events of a stream, as they come. Its errors are thrown like any other. */
export async function* stream(path, body, signal) {
  const response = await ask(path, posted(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += (value ?? "").replaceAll("\r\n", "\n");
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of done && rest ? [...events, rest] : events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (!data.length) continue;
      const text = data.join("\n");
      if (text === "[DONE]") return;
      const parsed = JSON.parse(text);
      if (parsed.error) throw new ApiProblem(parsed.error.message ?? "the server broke off");
      yield parsed;
    }
    if (done) return;
  }
}
