// The list of runs: what has changed since the last answer is asked for again and again.

import { element, get, say } from "./common.js";

const EVERY = 2000;
const list = document.getElementById("runs");
const filter = document.getElementById("filter");
const compare = document.getElementById("compare");
const runs = new Map(); // name -> its summary
const items = new Map(); // name -> its element
const chosen = new Set(); // names to compare, in the order of choice
let now = "", away = false, waiting;

async function look() {
  clearTimeout(waiting);
  let soon = EVERY;
  try {
    const answer = await get(`/api/runs?since=${encodeURIComponent(now)}`);
    if (now.split("-")[0] !== answer.now.split("-")[0]) forgetAll(); // the studio was started anew
    now = answer.now;
    answer.gone.forEach(forget);
    for (const run of answer.runs) {
      runs.set(run.name, run);
      show(run);
    }
    if (answer.runs.length || answer.gone.length) sort();
    count(answer.unread);
    if (answer.unread) soon = 0;
    if (away) say("The studio is there again.");
    away = false;
  } catch (error) {
    if (!away) say(`The studio does not answer: ${error.message}. It is asked again.`);
    away = true;
  }
  if (!document.hidden) waiting = setTimeout(look, soon);
}

function forget(name) {
  items.get(name)?.remove();
  items.delete(name);
  runs.delete(name);
  chosen.delete(name);
}

function forgetAll() {
  [...runs.keys()].forEach(forget);
}

/** Put a run's element in place of its former one. */
function show(run) {
  const made = item(run), old = items.get(run.name);
  const focused = old?.contains(document.activeElement) ? document.activeElement.className : null;
  if (old) old.replaceWith(made);
  else list.append(made);
  items.set(run.name, made);
  made.hidden = !matches(run);
  if (focused) made.querySelector(`.${focused}`)?.focus();
}

function item(run) {
  const tick = element("input", { type: "checkbox", class: "choose", "aria-label": `compare ${run.name}` });
  tick.checked = chosen.has(run.name);
  tick.addEventListener("change", () => choose(run.name, tick.checked));
  const thumbnail = run.thumbnail
    ? element("img", { src: run.thumbnail, alt: "", loading: "lazy", width: 56, height: 56 })
    : element("span", { class: "no-picture" });
  const about = [run.model, run.algorithm].filter(Boolean).join(", ");
  const title = run.title === run.name ? "" : element("small", {}, run.title);
  const name = element("a", { href: run.address, class: "open" }, run.name);
  const teach = run.teach ? element("a", { href: run.teach, class: "teach", "aria-label": `teach ${run.name}` }, "Teach") : "";
  const first = element("div", { class: "who" }, name, title, element("small", {}, about), teach);
  const alarm = run.alarm ? element("span", { class: "state alarm", title: "the last evaluation: a trained score rose while a watched one fell" }, "alarm") : "";
  const state = element("div", {}, element("span", { class: `state ${run.state}` }, run.state), " ", alarm);
  const why = run.state === "running" ? run.left : run.state === "finished" ? "" : run.why;
  const second = element("div", { class: "how" }, state, element("small", { title: run.why }, why || ""), element("small", {}, run.note || ""));
  return element("li", { class: "card run" }, tick, thumbnail, first, second, progress(run), scores(run));
}

function progress(run) {
  if (!run.iterations) return element("div", { class: "far" });
  const bar = element("progress", { max: run.iterations, value: Math.min(run.iteration, run.iterations), "aria-label": "iterations done" });
  return element("div", { class: "far" }, bar, element("small", {}, `${run.iteration} / ${run.iterations}`));
}

/** Two that the run trains on and two that it only watches. */
function scores(run) {
  const all = run.scores || [], some = [true, false].flatMap((trained) => all.filter((score) => score.trained === trained).slice(0, 2));
  const rows = some.flatMap(({ name, value, change }) => [
    element("dt", {}, name),
    element("dd", {}, value, change ? element("small", {}, ` ${change}`) : ""),
  ]);
  return element("dl", { class: "last" }, ...rows);
}

/** Running ones first, then the newest. */
function sort() {
  const rank = (run) => [run.state === "running" ? 0 : 1, -(run.updated || 0)];
  const ordered = [...runs.values()].sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1] || a.name.localeCompare(b.name));
  ordered.forEach((run, place) => {
    const its = items.get(run.name);
    if (list.children[place] !== its) list.insertBefore(its, list.children[place] ?? null);
  });
}

function matches(run) {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = [run.name, run.title, run.model, run.algorithm, run.state].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function count(unread) {
  const shown = [...runs.values()].filter(matches).length;
  const rest = unread ? `, ${unread} more are being read` : "";
  document.getElementById("count").textContent = `${shown} of ${runs.size}${rest}`;
  document.getElementById("empty").hidden = runs.size + unread > 0;
}

function choose(name, yes) {
  if (yes) chosen.add(name);
  else chosen.delete(name);
  compare.disabled = chosen.size < 2;
  compare.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
}

compare.addEventListener("click", () => {
  location.href = `/compare?${[...chosen].map((name) => `run=${encodeURIComponent(name)}`).join("&")}`;
});
filter.addEventListener("input", () => {
  for (const [name, its] of items) its.hidden = !matches(runs.get(name));
  count(0);
});
filter.form.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
