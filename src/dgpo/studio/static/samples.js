// The viewer for samples: pictures of one prompt and noise at every evaluation, by keyboard.

import { element, get, say } from "./common.js";

const viewer = document.getElementById("viewer");
const stage = document.getElementById("stage");
const BESIDE = 8; // columns of the grid where a prompt has one picture
const slider = document.getElementById("slider");
const at = { picture: 0, evaluation: 0, grid: false, before: false, zoom: false };
let samples = { prompts: [], each: 1, evaluations: [] };

const KEYS = {
  ArrowLeft: (shift) => { at.picture -= shift ? samples.each : 1; },
  ArrowRight: (shift) => { at.picture += shift ? samples.each : 1; },
  ArrowUp: () => { at.evaluation -= 1; },
  ArrowDown: () => { at.evaluation += 1; },
  Home: () => { at.evaluation = 0; },
  End: () => { at.evaluation = samples.evaluations.length - 1; },
  b: () => { at.before = !at.before; at.grid = false; },
  g: () => { at.grid = !at.grid; at.before = false; },
  z: () => { at.zoom = !at.zoom; },
  " ": () => { at.zoom = !at.zoom; },
  "[": () => { slider.value = Number(slider.value) - 5; },
  "]": () => { slider.value = Number(slider.value) + 5; },
  "?": () => { const keys = document.getElementById("keys"); keys.hidden = !keys.hidden; },
};

function press(key, shift = false) {
  if (!(key in KEYS) || !samples.evaluations.length) return false;
  KEYS[key](shift);
  show();
  return true;
}

function show() {
  const { prompts, each, evaluations } = samples;
  at.picture = Math.max(0, Math.min(at.picture, prompts.length * each - 1));
  at.evaluation = Math.max(0, Math.min(at.evaluation, evaluations.length - 1));
  const shown = evaluations[at.evaluation], prompt = Math.floor(at.picture / each);
  document.getElementById("prompt").textContent = prompts[prompt];
  document.getElementById("where").textContent = [
    `prompt ${prompt + 1} of ${prompts.length}`,
    each > 1 && !at.grid ? `picture ${(at.picture % each) + 1} of ${each}` : "",
    at.grid ? `${evaluations.length} evaluations` : `iteration ${shown.iteration}`,
    at.before ? `over iteration ${evaluations[0].iteration}` : "",
  ].filter(Boolean).join(" · ");
  stage.classList.toggle("zoomed", at.zoom);
  stage.classList.toggle("many", at.grid);
  document.getElementById("slide").hidden = !at.before;
  stage.replaceChildren(...(at.grid ? grid(prompt) : single(shown)));
  slide();
  tell(at.grid ? {} : shown.scores);
  for (const [key, on] of [["b", at.before], ["g", at.grid], ["z", at.zoom], ["?", !document.getElementById("keys").hidden]]) {
    viewer.querySelector(`[data-key="${key}"]`).setAttribute("aria-pressed", on);
  }
  history.replaceState(null, "", `#${at.picture},${shown.iteration}${at.grid ? ",grid" : ""}${at.before ? ",before" : ""}`);
}

function single(shown) {
  const mark = shown.marks[at.picture];
  const over = at.before ? picture(samples.evaluations[0], at.picture, "before") : null;
  return [element("figure", {}, element("div", { class: at.before ? "pane split" : "pane" }, picture(shown, at.picture, "after"), over), element("figcaption", {}, mark ?? ""))];
}

/** A row for each evaluation: the prompt's pictures, or where it has one only, also those of the next prompts. */
function grid(prompt) {
  const first = prompt * samples.each, last = samples.prompts.length * samples.each;
  const columns = samples.each > 1 ? samples.each : Math.min(BESIDE, last - first);
  const copies = [...Array(columns).keys()].map((copy) => first + copy);
  return samples.evaluations.map((evaluation, row) => {
    const tiles = copies.map((place) => {
      const mark = evaluation.marks[place];
      const button = element("button", { type: "button", class: "tile", "aria-label": `open iteration ${evaluation.iteration}: ${promptOf(place)}` }, picture(evaluation, place, ""), mark ? element("span", {}, mark) : "");
      button.addEventListener("click", () => { Object.assign(at, { picture: place, evaluation: row, grid: false }); show(); });
      return button;
    });
    return element("div", { class: "line" }, element("small", {}, `iteration ${evaluation.iteration}`), element("div", { class: "tiles" }, ...tiles));
  });
}

function picture(evaluation, place, role) {
  const alt = `${promptOf(place)}, iteration ${evaluation.iteration}`;
  return element("img", { src: evaluation.pictures[place], alt, class: role, loading: at.grid ? "lazy" : "eager" });
}

function promptOf(place) {
  return samples.prompts[Math.floor(place / samples.each)];
}

/** How far the picture from before covers the other one. */
function slide() {
  const over = stage.querySelector("img.before");
  if (!over) return;
  over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  over.parentElement.style.setProperty("--line-at", `${slider.value}%`);
}

function tell(scores) {
  const rows = Object.entries(scores).filter(([, values]) => values[at.picture] != null);
  document.getElementById("scores").replaceChildren(...rows.flatMap(([name, values]) => [
    element("dt", {}, name),
    element("dd", {}, Number(values[at.picture].toPrecision(3)).toString()),
  ]));
}

/** The place that the address names, else the last evaluation. */
function begin() {
  const [place, iteration, mode] = location.hash.slice(1).split(",");
  at.picture = Number(place) || 0;
  const found = samples.evaluations.findIndex((evaluation) => String(evaluation.iteration) === iteration);
  at.evaluation = found < 0 ? samples.evaluations.length - 1 : found;
  at.grid = mode === "grid";
  at.before = mode === "before";
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === slider && event.key.startsWith("Arrow")) return;
  if (event.target.tagName === "BUTTON" && event.key === " ") return;
  if (press(event.key, event.shiftKey)) event.preventDefault();
});
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) press(button.dataset.key);
});
stage.addEventListener("click", (event) => { if (event.target.tagName === "IMG" && !at.grid && !at.before) press("z"); });
slider.addEventListener("input", slide);

/** A running run gets more evaluations: they are added, and what is looked at stays. */
async function load(first) {
  try {
    const found = await get(`/api${viewer.dataset.address}/samples`);
    if (!first && found.evaluations.length === samples.evaluations.length) return;
    samples = found;
    document.getElementById("none").hidden = samples.evaluations.length > 0;
    if (!samples.evaluations.length) return;
    if (first) begin();
    show();
  } catch (error) {
    say(error.message);
  }
}

await load(true);
setInterval(() => { if (!document.hidden) load(samples.evaluations.length === 0); }, 5000);
