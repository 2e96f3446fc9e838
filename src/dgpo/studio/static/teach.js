// A person teaches a model: one group of pictures after the other, each answer kept before it counts as saved.

import { element, get, post, renew, say } from "./common.js";
import { Board, placeOf } from "./teach_board.js";
import { beforeAndNow, people, trainerSays, untilUpdate, updates, winRate } from "./teach_learned.js";

const AGAIN = 1000, STATUS = 2000, HOLD = 120_000; // milliseconds: asking again, status, holding what is shown
const KEY = "dgpo-who";
const byId = (id) => document.getElementById(id);
const root = byId("teach"), run = root.dataset.run, mode = byId("mode"), zoom = byId("zoom");
let who = recall(), current = null, status = null, sending = false;
let turn = 0; // what was asked for in an earlier one comes too late
let loading, following, ahead = []; // timers; the next group's pictures
const board = new Board(byId("pictures"), (answer) => send(answer), gone);

function recall() {
  try { return localStorage.getItem(KEY) ?? ""; } catch { return ""; }
}

function query(more = {}) {
  return new URLSearchParams({ run, who, ...more });
}

/** Ask for what to answer, again and again until there is something. */
async function load() {
  const mine = begin();
  try {
    const asked = await get(`/api/teach/next?${query()}`);
    if (mine !== turn) return;
    if (asked.group) show(asked, asked.group === current?.group ? board.answer() ?? {} : {});
    else wait(asked);
  } catch (error) {
    if (mine !== turn) return;
    saved(isAway(error) ? "The studio does not answer. It is asked again." : error.message);
    loading = setTimeout(load, 2 * AGAIN);
  }
}

function begin() {
  clearTimeout(loading);
  clearTimeout(following);
  return ++turn;
}

function show(asked, before = {}) {
  begin();
  const lost = byId("pictures").contains(document.activeElement);
  current = asked;
  if (before.ranks && board.mode !== "ranks") setMode("ranks");
  const isBest = board.mode === "best" && before.good?.length === 1 && !before.bad;
  if ((before.good || before.bad) && !isBest && board.mode !== "marks") setMode("marks");
  part("asking");
  const prompt = byId("prompt");
  if (prompt.textContent !== asked.prompt) prompt.textContent = asked.prompt;
  ask();
  left(asked.left);
  board.show(asked, before);
  if (zoom.open) enlarge();
  if (lost) prompt.focus();
  follow();
}

function ask() {
  const these = `these ${current.size} pictures`;
  const train = { marks: `Which of ${these} are good, and which are bad?`, best: `Which of ${these} is the best?`, ranks: `Rank ${these}: click the best first.` };
  byId("what").textContent = current.kind === "blind" ? "Which of the two is better?" : train[board.mode];
}

/** Hold what is shown, and load the pictures of what follows it. */
async function follow() {
  clearTimeout(following);
  const mine = turn;
  let soon = 2 * AGAIN;
  try {
    const next = await get(`/api/teach/next?${query({ after: current.group })}`);
    if (mine !== turn) return;
    if (next.group) {
      ahead = next.images.map((address) => Object.assign(new Image(), { src: address }));
      soon = HOLD;
    }
  } catch { /* what is shown can still be answered */ }
  if (mine === turn) following = setTimeout(follow, soon);
}

function wait({ waiting, left: rest }) {
  current = null;
  part("waiting");
  byId("why").textContent = `${waiting[0].toUpperCase()}${waiting.slice(1)}.`;
  left(rest);
  if (!document.hidden) loading = setTimeout(load, AGAIN);
}

/** One of the parts of the page; keys and status are beside. */
function part(name) {
  for (const id of ["naming", "asking", "waiting"]) byId(id).hidden = id !== name;
  byId("who").textContent = who;
  root.querySelector(".named").hidden = name === "naming";
  if (name === "naming") byId("name").focus();
}

function left(count) {
  byId("left").textContent = untilUpdate(count, status?.state);
}

function saved(text) {
  byId("saved").textContent = text;
}

/** Send until the server has it: what a person chose is not lost where the studio is away. */
async function send(choice) {
  if (!current || sending) return;
  if (!choice) { say("Mark a picture first; S says that all are the same, K skips."); return; }
  lock(true);
  const answer = { run, who, group: current.group, ...choice };
  try {
    const { next } = await stubbornly("/api/teach/answer", answer, "Your answer is kept here and sent again until it is saved.");
    saved("saved");
    if (next) show(next);
    else load();
  } catch (error) {
    saved(error.message);
    if ([404, 409].includes(error.status)) {
      say(error.message);
      await load();
    }
  } finally {
    lock(false);
    look();
  }
}

async function undo() {
  if (sending || !who) return;
  lock(true);
  try {
    const asked = await stubbornly("/api/teach/undo", { run, who }, "It is asked again.");
    saved("taken back");
    show(asked, asked.before);
    say("Your last answer is taken back. Answer it anew.");
  } catch (error) {
    say(error.message);
  } finally {
    lock(false);
    look();
  }
}

function lock(on) {
  sending = board.locked = on;
  root.setAttribute("aria-busy", on);
  if (on) saved("saving…");
}

async function stubbornly(address, body, meanwhile) {
  let renewed = false;
  for (;;) {
    try {
      return await post(address, body);
    } catch (error) {
      if (error.status === 403 && !renewed) {
        renewed = true;
        await renewToken();
      } else if (isAway(error)) {
        saved(`The studio does not answer. ${meanwhile}`);
        await new Promise((done) => { setTimeout(done, AGAIN); });
      } else {
        throw error;
      }
    }
  }
}

const isAway = (error) => error.status === undefined;

/** A studio that was started anew has another token, which its pages have. */
async function renewToken() {
  const response = await fetch(location.pathname).catch(() => null);
  const page = new DOMParser().parseFromString(await response?.text() ?? "", "text/html");
  const token = page.querySelector('meta[name="dgpo-token"]')?.content;
  if (token) renew(token);
}

function gone() {
  saved("A picture of this group cannot be loaded.");
  if (sending) return;
  const mine = begin();
  loading = setTimeout(() => { if (mine === turn) load(); }, AGAIN);
}

async function look() {
  if (!who) return;
  try {
    status = await get(`/api/teach/status?${new URLSearchParams({ run })}`);
    byId("learned").hidden = false;
    if (current || !byId("waiting").hidden) left(status.left);
    set("trainer", trainerSays(status));
    set("updates", [updates(status)]);
    set("win-rate", [winRate(status)]);
    set("people", people(status).map((line) => element("span", { class: "line" }, line)));
    const pairs = await beforeAndNow(root.dataset.address, status, current?.kind === "blind" ? current.prompt : null);
    set("pairs", pairs);
    byId("before-after").hidden = !pairs.length;
  } catch (error) {
    set("trainer", [isAway(error) ? "The studio does not answer. It is asked again." : error.message]);
  }
}

/** Only where it is another text: a screen reader reads what is put into a live region. */
function set(id, parts) {
  const made = element("div", {}, ...parts);
  if (byId(id).innerHTML !== made.innerHTML) byId(id).replaceChildren(...made.childNodes);
}

function setMode(name) {
  mode.value = name;
  board.turn(name);
  if (current) ask();
}

function enlarge(step = 0) {
  if (!current) return;
  board.at = (board.at + step + current.size) % current.size;
  byId("zoomed").src = current.images[board.at];
  byId("zoomed").alt = `picture ${board.at + 1}: ${current.prompt}`;
  byId("zoomed").className = current.tiny ? "pixels" : "";
  byId("zoom-mark").textContent = `picture ${board.at + 1}: ${board.said(board.at)}`;
  if (!zoom.open) zoom.showModal();
}

const KEYS = {
  Enter: () => send(board.answer()),
  s: () => send({ same: true }),
  k: () => send({ skip: true }),
  u: undo,
  m: () => setMode(mode.options[(mode.selectedIndex + 1) % mode.options.length].value),
  " ": () => (zoom.open ? zoom.close() : enlarge()),
  ArrowLeft: () => zoom.open && enlarge(-1),
  ArrowRight: () => zoom.open && enlarge(1),
  "?": () => {
    byId("keys").hidden = !byId("keys").hidden;
    root.querySelector('[data-key="?"]').setAttribute("aria-pressed", !byId("keys").hidden);
  },
};

function press(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, place = placeOf(event);
  if (current && place >= 0) {
    board.pick(place, event.shiftKey ? "bad" : "good");
    if (zoom.open) enlarge();
    return true;
  }
  if (!(key in KEYS)) return false;
  if (key.startsWith("Arrow") && !zoom.open) return false;
  KEYS[key]();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !byId("naming").hidden) return;
  if (event.target.matches("input, select")) return;
  const itsOwn = event.target.closest("button:not(.picture), a");
  if (itsOwn && ["Enter", " "].includes(event.key)) return;
  if (event.repeat && !event.key.startsWith("Arrow")) { event.preventDefault(); return; }
  if (press(event)) event.preventDefault();
});
root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (event.detail) button.blur(); // after a click of the mouse, Enter sends
  if (button.dataset.key) KEYS[button.dataset.key]();
});
mode.addEventListener("change", () => { setMode(mode.value); mode.blur(); });
zoom.addEventListener("click", () => zoom.close());
byId("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("name").value.trim();
  if (!name) return;
  who = name;
  byId("name").blur(); // or a quick key still goes to it
  try { localStorage.setItem(KEY, who); } catch { /* it is asked again the next time */ }
  current = null;
  load();
  look();
});
byId("rename").addEventListener("click", () => {
  begin();
  byId("name").value = who;
  part("naming");
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !who) return;
  look();
  if (!current && byId("naming").hidden) load();
});

if (who) load();
else part("naming");
look();
setInterval(() => { if (!document.hidden) look(); }, STATUS);
