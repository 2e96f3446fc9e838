// What the pages share: asking the server, and saying what came of it.

let token = document.querySelector('meta[name="dgpo-token"]').content;
const said = document.getElementById("said");
let forget;

/** A studio that was started anew has another token. */
export function renew(given) {
  token = given;
}

/** Say something at the lower edge for some seconds; a screen reader reads it. */
export function say(text) {
  said.textContent = text;
  clearTimeout(forget);
  forget = setTimeout(() => { said.textContent = ""; }, 6000);
}

/** The JSON of an address. An error has the server's own words. */
export async function get(address) {
  return answered(await fetch(address, { headers: { Accept: "application/json" } }));
}

export async function post(address, body) {
  const headers = { "Content-Type": "application/json", "X-Dgpo-Token": token };
  return answered(await fetch(address, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered(response) {
  const value = await response.json().catch(() => ({ error: `the studio answered ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(value.error), { status: response.status });
  return value;
}

/** An element with attributes and children; texts are text, never markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== ""));
  return made;
}
