// The pictures of a question, and how they are marked: good and bad, the best one, or ranks.

import { element } from "./common.js";

const KEYS = "123456789abc"; // of the pictures
const LEAST = 132; // pixels of a picture's side
const SYMBOLS = { good: "✓", bad: "✗" };
const NEXT = { "": "good", good: "bad", bad: "" }; // what a click makes of a mark
const LABELS = { marks: ["good", "bad"], best: ["best"], ranks: ["rank"] };

export class Board {
  mode = "marks";
  locked = false;
  at = 0; // the picture that was last pointed at

  /** chosen: called with the answer where choosing sends it at once; broken: a picture cannot be loaded */
  constructor(place, chosen, broken) {
    this.place = place;
    this.chosen = chosen;
    this.broken = broken;
    this.tiles = [];
    this.clear();
    new ResizeObserver(() => this.lay()).observe(place.parentElement);
  }

  clear() {
    this.marks = this.tiles.map(() => "");
    this.order = []; // ranked pictures, the best first
  }

  show(question, before = {}) {
    this.question = question;
    this.place.classList.toggle("pixels", question.tiny);
    this.tiles = question.images.map((address, place) => this.tile(address, place));
    this.place.replaceChildren(...this.tiles);
    this.at = 0;
    this.take(before);
    this.lay();
  }

  /** Mark as an answer does. */
  take(answer) {
    this.clear();
    answer.good?.forEach((place) => { this.marks[place] = "good"; });
    answer.bad?.forEach((place) => { this.marks[place] = "bad"; });
    if (answer.ranks) this.order = this.marks.map((_, place) => place).sort((a, b) => answer.ranks[a] - answer.ranks[b]);
    this.draw();
  }

  turn(mode) {
    this.mode = mode;
    this.take({});
  }

  tile(address, place) {
    const image = element("img", { src: address, alt: "", draggable: "false" });
    image.addEventListener("error", () => this.broken());
    const picture = element("button", { type: "button", class: "picture" }, image, element("span", { class: "mark", "aria-hidden": "true" }));
    picture.addEventListener("click", () => this.pick(place, "click"));
    picture.addEventListener("contextmenu", (event) => { event.preventDefault(); this.pick(place, "bad"); });
    const buttons = [...new Set(Object.values(LABELS).flat())].map((label) => {
      const button = element("button", { type: "button", class: label, "aria-label": `picture ${place + 1}: ${label}` }, label);
      button.addEventListener("click", () => this.pick(place, label));
      return button;
    });
    const tile = element("figure", { class: "choice" }, picture, element("div", { class: "marking" }, element("kbd", {}, KEYS[place] ?? String(place + 1)), ...buttons));
    for (const kind of ["pointerenter", "focusin"]) tile.addEventListener(kind, () => { this.at = place; });
    return tile;
  }

  /** how: click, good, bad, best or rank; in a mode that has no such mark, what the mode has instead. */
  pick(place, how) {
    if (this.locked || place >= this.tiles.length) return;
    this.at = place;
    if (this.mode === "best") {
      if (how === "bad") return;
      this.take({ good: [place] });
      this.chosen(this.answer());
      return;
    }
    if (this.mode === "ranks") {
      const ranked = this.order.indexOf(place);
      if (ranked < 0) this.order.push(place);
      else this.order.splice(ranked, 1);
    } else {
      this.marks[place] = how === "click" ? NEXT[this.marks[place]] : this.marks[place] === how ? "" : how;
    }
    this.draw();
  }

  /** What to send; null where nothing is marked. Pictures that were not ranked share the last rank. */
  answer() {
    if (this.mode === "ranks") {
      if (!this.order.length) return null;
      return { ranks: this.marks.map((_, place) => (this.order.includes(place) ? this.order.indexOf(place) : this.order.length) + 1) };
    }
    const marked = (mark) => this.marks.flatMap((own, place) => (own === mark ? [place] : []));
    const [good, bad] = [marked("good"), marked("bad")];
    return good.length + bad.length ? { good, bad } : null;
  }

  said(place) {
    const rank = this.order.indexOf(place);
    return this.mode === "ranks" ? (rank < 0 ? "not ranked" : `rank ${rank + 1}`) : this.marks[place] || "not marked";
  }

  draw() {
    this.tiles.forEach((tile, place) => {
      const mark = this.mode === "ranks" ? "" : this.marks[place], rank = this.mode === "ranks" ? this.order.indexOf(place) : -1;
      tile.dataset.mark = rank >= 0 ? "rank" : mark;
      tile.querySelector(".mark").textContent = rank >= 0 ? String(rank + 1) : SYMBOLS[mark] ?? "";
      tile.querySelector(".picture").setAttribute("aria-label", `picture ${place + 1} of ${this.tiles.length}: ${this.said(place)}`);
      for (const button of tile.querySelectorAll(".marking button")) {
        button.hidden = !LABELS[this.mode].includes(button.className);
        const on = button.className === "rank" ? rank >= 0 : button.className === (mark === "good" && this.mode === "best" ? "best" : mark);
        button.setAttribute("aria-pressed", on);
      }
    });
  }

  /** As many columns as make the pictures largest, without scrolling where the window is large enough. */
  lay() {
    const count = this.tiles.length, width = this.place.parentElement.clientWidth, gap = 12, below = 46;
    if (!count || !width) return;
    const height = Math.max(300, window.innerHeight - this.place.getBoundingClientRect().top - window.scrollY - 76);
    const sides = this.tiles.map((_, index) => {
      const columns = index + 1, rows = Math.ceil(count / columns);
      return Math.min((width - gap * index) / columns, (height - gap * (rows - 1)) / rows - below);
    });
    const fit = Math.max(...sides), two = (width - gap) / 2;
    const [columns, side] = fit >= LEAST || fit >= two ? [sides.indexOf(fit) + 1, fit] : [2, two];
    this.place.style.setProperty("--columns", columns);
    this.place.style.setProperty("--side", `${Math.floor(Math.min(side, 640))}px`);
  }
}

/** The picture that a key stands for; the place of a digit counts, since with Shift it writes another sign. */
export function placeOf(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1];
  if (digit) return digit === "0" ? 9 : Number(digit) - 1;
  const key = event.key.toLowerCase();
  return key.length === 1 ? KEYS.indexOf(key) : -1;
}
