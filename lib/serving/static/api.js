// Talking to the server: one key, errors as sentences, and server-sent events over fetch (EventSource cannot send a key).

let key = sessionStorage.getItem("key") ?? "";
export const setKey = (value) => sessionStorage.setItem("key", (key = value));

export class ApiError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export async function call(path, body, signal) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET", signal, body: body && JSON.stringify(body),
    headers: { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) },
  });
  if (response.ok) return response;
  const payload = await response.json().catch(() => null);
  throw new ApiError(response.status, payload?.error?.message ?? `the server answered ${response.status}`);
}

export async function* events(path, body, signal) {
  const reader = (await call(path, body, signal)).body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
        const data = JSON.parse(part.slice(6));
        if (data.error) throw new ApiError(500, data.error.message);
        yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});  // left early: hang up, so that the server stops working on it
  }
}
