// What a taught run has learned so far, in words and in pictures.

import { element, get } from "./common.js";

const PROMPTS = 6; // that are shown before and now
const percent = (value) => Math.round(100 * value);
const signed = (value) => `${percent(value)}\u00a0%`; // with its sign on one line
const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
let samples = { prompts: [], each: 1, evaluations: [] }, stamp = "";

/** left: a phrase such as "3 more answers until the model learns again". */
export function untilUpdate(left, state) {
  if (state === "finished") return "The run is finished.";
  return left ? `${many(left, "more answer")} until the model learns again.` : "Enough answers: the model learns next.";
}

export function trainerSays(status) {
  const code = status.resume ? element("code", {}, status.resume) : "";
  if (status.state === "finished") return ["The run is finished ", status.why, ". Answers are kept while there are groups, but nothing learns from them unless it goes on with more --iterations: ", code];
  if (!status.running) return ["No process trains this run: ", status.state, " ", status.why, ". Answers are kept, and learned from when it goes on: ", code];
  return status.learning ? ["The model learns from the answers right now. Go on choosing."] : [];
}

export function updates({ updates: done, last, each }) {
  if (!last) return `Nothing yet: the first update comes after ${many(each, "answer")}.`;
  const row = last.metrics ?? {}, earned = row["train/score/human"], took = row["time/update"];
  const said = [
    `${many(done, "update")} done.`,
    `The ${last.metrics ? "last" : "present"} one ${last.metrics ? "took" : "takes"} ${many(last.new, "new group")} and ${many(last.earlier, "earlier one")}`,
    earned == null ? "" : `, whose pictures earned ${earned.toFixed(2)} on average (good 1, bad −1)`,
    took == null ? "." : `; it took ${took.toFixed(took < 10 ? 1 : 0)} s.`,
  ];
  return `${said[0]} ${said.slice(1).join("")}`;
}

export function winRate({ win_rate: { share, low, high, of }, comparisons, step, compares }) {
  const every = `Told after every ${step} comparisons, so that none gives its answer away.`;
  if (!of && !comparisons && !compares) return "This run makes no comparisons: human.blind_every is 0, or all its prompts train.";
  if (!of) return comparisons ? `${many(comparisons, "comparison")} answered. ${every}` : "Now and then you are asked which of two pictures is better. Then it says here how often the trained model won.";
  const verdict = low > 0.5 ? "It is preferred to the base model." : high < 0.5 ? "The base model is preferred." : "That is too few, or too even, to tell which is better.";
  return `Of ${many(of, "comparison")} the trained model won ${Number((share * of).toFixed(1))}: ${signed(share)}, between ${percent(low)} and ${signed(high)}. ${verdict}`;
}

/** Lines. */
export function people({ people: all, agreement }) {
  const lines = Object.entries(all).map(([who, { answers, seconds, consistency }]) => {
    const again = consistency?.of ? `; asked again, ${signed(consistency.share)} of ${many(consistency.of, "pair")} as before` : "";
    return `${who}: ${many(answers, "answer")}, ${seconds.toFixed(1)} s each${again}`;
  });
  const { share, low, high, of } = agreement;
  if (of) lines.push(`Different people: ${signed(share)} of ${many(of, "pair")} alike, between ${percent(low)} and ${signed(high)}`);
  return lines.length ? lines : ["Nobody has answered yet."];
}

/** Fixed prompts at the first and the last evaluation; not the one that is just compared. */
export async function beforeAndNow(address, status, compared) {
  if (status.samples !== stamp) {
    samples = await get(`/api${address}/samples`);
    stamp = status.samples;
  }
  const [first, last] = [samples.evaluations[0], samples.evaluations.at(-1)];
  if (!first || first === last) return [];
  const shown = samples.prompts.map((prompt, place) => [prompt, place]).filter(([prompt]) => prompt !== compared).slice(0, PROMPTS);
  return shown.map(([prompt, place]) => {
    const pictures = [[first, "before"], [last, "now"]].map(([evaluation, when]) => element("div", { class: samples.tiny ? "pixels" : "" },
      element("img", { src: evaluation.pictures[place * samples.each], alt: `${when}: ${prompt}`, loading: "lazy" }),
      element("small", {}, `${when}, iteration ${evaluation.iteration}`)));
    return element("figure", {}, element("figcaption", {}, prompt), element("div", { class: "pair" }, ...pictures));
  });
}
