// The page of a run: shown anew, part by part, whenever the server says that there is something new.

import { post, renew, say } from "./common.js";

const LEAST = 1000; // milliseconds between two looks; more where one takes long
const live = document.getElementById("live");
const address = live.dataset.address;
let stamp = live.dataset.stamp, source = null, looking = false, again = false;
const written = new WeakMap(); // element -> what the server wrote, whatever was opened or typed since
for (const part of live.children) written.set(part, part.outerHTML);

function listen() {
  if (source) return;
  source = new EventSource(`${address}/events`);
  source.onmessage = (event) => { if (event.data !== stamp) look(event.data); };
}

/** A hidden page listens to nothing: a browser has few connections to one server. */
function rest() {
  source?.close();
  source = null;
}

async function look(seen) {
  if (looking) { again = seen; return; }
  looking = true;
  const began = performance.now();
  try {
    const response = await fetch(`${address}/live`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const next = page.getElementById("live");
    if (!response.ok || !next) throw new Error(page.querySelector("main")?.innerText.trim() || "the run is gone");
    replace([...next.children]);
    stamp = next.dataset.stamp;
    renew(next.dataset.token);
  } catch (error) {
    say(error.message);
  }
  setTimeout(() => {
    looking = false;
    if (again && again !== stamp) look(again);
    again = false;
  }, Math.max(LEAST, 5 * (performance.now() - began)));
}

/** Parts that are as before stay, so that nothing flickers, no selection is lost and what was opened stays open. */
function replace(parts) {
  const focused = document.activeElement?.id;
  const old = [...live.children], opened = new Map(old.filter(folds).map((part) => [title(part), part.open]));
  const same = new Map(old.map((part) => [written.get(part), part]));
  const next = parts.map((part) => {
    const text = part.outerHTML, kept = same.get(text);
    same.delete(text);
    if (kept) return kept;
    const made = document.importNode(part, true);
    written.set(made, text);
    if (folds(made)) made.open = opened.get(title(made)) ?? made.open;
    return made;
  });
  old.filter((part) => !next.includes(part)).forEach((part) => part.remove());
  next.forEach((part, place) => {
    if (live.children[place] !== part) live.insertBefore(part, live.children[place] ?? null);
  });
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  scroll();
}

const folds = (part) => part.tagName === "DETAILS";
const title = (part) => part.querySelector("summary").textContent;

/** The console shows its last line. */
function scroll() {
  const lines = document.querySelector("#console pre");
  if (lines) lines.scrollTop = lines.scrollHeight;
}

live.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-request]");
  if (!button) return;
  button.disabled = true;
  try {
    const { meaning } = await post(`/api${address}/ask`, { request: button.dataset.request });
    say(`Asked: ${meaning}.`);
  } catch (error) {
    button.disabled = false;
    say(error.message);
  }
});
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
scroll();
listen();
