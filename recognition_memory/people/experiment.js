// The experiment in the browser: study with repeat detection, a two-alternative test, and the data file at the end.
//
//   start form ──▶ plan (order, repeats, sides: from seed and participant) ──▶ jsPsych: study, breaks, test ──▶ file
//
// What a person sees is in page.html, what is shown and for how long comes as JSON from page.py (element "page"), and
// data.py reads the file that leaves here. Times are milliseconds; response times count from a picture's onset.
"use strict";

const page = JSON.parse(document.getElementById("page").textContent);
const { settings } = page;
// ?speed=20 shortens all times for trying the page out. The file says so, and is not read as data of a person.
const speed = Math.max(1, Number(new URLSearchParams(location.search).get("speed")) || 1);
const fast = (ms) => Math.round(ms / speed);
const byId = (id) => document.getElementById(id);

/** Everything that one participant sees, in order; it follows from the page's seed and the participant's number. */
function plan(participant, random) {
  const set = page.sets[(participant - 1) % page.sets.length];
  random.setSeed(`${settings.seed}:${participant}`);
  const once = random.shuffle([
    ...set.fillers.map((picture) => ({ picture, kind: "filler" })),
    ...set.pairs.map((pair) => ({ picture: pair.seen, kind: "tested" })),
  ]);
  // The studied picture is as often on the left as on the right.
  const sides = random.shuffle(set.pairs.map((_, k) => (k % 2 ? "left" : "right")));
  const test = random.shuffle(set.pairs).map((pair, k) => ({ ...pair, side: sides[k] }));
  return { study_set: set.name, study: withRepeats(once, random), test };
}

/** The list with some fillers shown once more, 1, 2, 4, ... pictures after the first time; tested pictures never. */
function withRepeats(once, random) {
  const last = once.length - 1;
  const fillers = once.flatMap((item, k) => (item.kind === "filler" && k < last ? [k] : []));
  const lags = new Map(); // place in `once` -> number of pictures between the two times
  for (const k of random.shuffle(fillers).slice(0, settings.repeats)) {
    const allowed = settings.lags.filter((lag) => lag <= last - k);
    lags.set(k, random.shuffle(allowed)[0]);
  }
  const study = [];
  const waiting = []; // repeats to come, the next one first
  let next = 0;
  while (next <= last || waiting.length) {
    if (waiting.length && (waiting[0].due <= study.length || next > last)) {
      const { picture, place } = waiting.shift();
      study.push({ picture, kind: "repeat", lag: study.length - place - 1 });
    } else {
      const place = study.length;
      if (lags.has(next)) waiting.push({ picture: once[next].picture, place, due: place + lags.get(next) + 1 });
      waiting.sort((a, b) => a.due - b.due);
      study.push(once[next]);
      next += 1;
    }
  }
  return study;
}

function run(participant) {
  const jsPsych = initJsPsych({ display_element: "experiment", on_finish: () => finish(jsPsych, record) });
  const { study_set, study, test } = plan(participant, jsPsych.randomization);
  const record = {
    contract: settings.data_contract,
    page: page.hash,
    headcam: page.headcam,
    manifest: page.manifest,
    settings,
    participant,
    study_set,
    speed,
    window: [innerWidth, innerHeight],
    started: new Date().toISOString(),
    planned: { study: study.length, test: test.length },
    study: [],
    test: [],
  };
  byId("start").hidden = true;
  byId("bar").hidden = false;
  addEventListener("beforeunload", askBeforeLeaving);
  jsPsych.run([
    ...withBreaks(study, (item, k) => studyTrial(item, k, study.length, record), jsPsych),
    pause(byId("test-instructions").innerHTML, ["Begin the test"], jsPsych),
    ...withBreaks(test, (pair, k) => testTrial(pair, k, test.length, record), jsPsych),
  ]);
}

function studyTrial(item, position, total, record) {
  const repeat = item.kind === "repeat";
  return trial({
    stimulus: () => image(item.picture, "a picture to study"),
    choices: ["Seen before"],
    button_html: (label) => `<button class="wide">${label} <kbd>space</kbd></button>`,
    prompt: '<p class="feedback" role="status"></p>',
    stimulus_duration: fast(settings.study_ms),
    trial_duration: fast(settings.study_ms + settings.isi_ms),
    response_ends_trial: false,
    on_load: () => {
      showProgress("Study", position, total);
      keys = { " ": 0 };
      const button = choiceButton(0);
      if (settings.feedback) button.addEventListener("click", () => feedback(repeat));
    },
    on_finish: ({ response, rt }) =>
      record.study.push({
        position,
        picture: item.picture,
        kind: item.kind,
        lag: item.lag ?? null, // pictures between the two showings
        pressed: response !== null,
        rt_ms: rt,
      }),
  });
}

function testTrial(pair, position, total, record) {
  const shown = pair.side === "left" ? [pair.seen, pair.unseen] : [pair.unseen, pair.seen];
  return trial({
    stimulus: "<p>Which of the two did you study?</p>",
    choices: ["left", "right"],
    button_html: (side, k) =>
      `<button class="choice" aria-label="the ${side} picture">${image(shown[k], "")}<kbd>${"FJ"[k]}</kbd></button>`,
    post_trial_gap: fast(settings.test_gap_ms),
    on_load: () => {
      showProgress("Test", position, total);
      keys = { f: 0, j: 1, arrowleft: 0, arrowright: 1 };
    },
    on_finish: ({ response, rt }) => {
      const { condition, number } = pair;
      const correct = ["left", "right"][response] === pair.side;
      record.test.push({ position, condition, pair: number, seen_side: pair.side, correct, rt_ms: rt });
    },
  });
}

/** Trials of `items` with a pause after every `break_every` of them. */
function withBreaks(items, makeTrial, jsPsych) {
  return items.flatMap((item, k) => {
    const one = makeTrial(item, k);
    if (k === 0 || k % settings.break_every) return [one];
    const text = `<h2>A break</h2><p>${k} of ${items.length} done. Rest your eyes as long as you like.</p>`;
    return [pause(text, ["Continue", "Stop here and save"], jsPsych), one];
  });
}

function pause(text, choices, jsPsych) {
  const wait = fast(700); // a late press that was meant for the last picture must not end the pause
  return trial({
    stimulus: text,
    choices,
    button_html: (label, k) => `<button class="${k ? "quiet" : "main"}">${label}</button>`,
    button_layout: "flex",
    enable_button_after: wait,
    on_load: () => {
      keys = {};
      setTimeout(() => choiceButton(0)?.focus(), wait + 20);
    },
    on_finish: ({ response }) => {
      if (response === 1 && confirm("Stop here? You cannot go on later.")) jsPsych.abortExperiment();
    },
  });
}

const trial = (parameters) => ({
  type: jsPsychHtmlButtonResponse,
  save_trial_parameters: { stimulus: false }, // pictures stay out of jsPsych's own table
  ...parameters,
});

const image = (key, alt) => `<img src="${page.pictures[key]}" alt="${alt}" decoding="sync" draggable="false">`;

const choiceButton = (k) => document.querySelector(`#experiment button[data-choice="${k}"]`);

/** Say at once whether a press was right: in words as well as in colour. */
function feedback(right) {
  const place = document.querySelector("#experiment .feedback");
  place.textContent = right ? "✓ Yes, you have seen it" : "✗ No, this one is new";
  place.className = `feedback ${right ? "right" : "wrong"}`;
}

function showProgress(part, position, total) {
  byId("part").textContent = `${part}: ${position + 1} of ${total}`;
  byId("done").max = total;
  byId("done").value = position;
}

let keys = {}; // key in lower case -> which button of the trial it presses
addEventListener("keydown", (event) => {
  const button = choiceButton(keys[event.key.toLowerCase()]);
  if (!button) return;
  event.preventDefault(); // no scrolling, and no second click by the browser where the button has the focus
  if (!event.repeat && !button.disabled) button.click();
});

const askBeforeLeaving = (event) => event.preventDefault();

function finish(jsPsych, record) {
  record.complete = record.study.length === record.planned.study && record.test.length === record.planned.test;
  record.finished = new Date().toISOString();
  record.interruptions = jsPsych.data.getInteractionData().filter({ event: "blur" }).count();
  const text = JSON.stringify(record);
  const name = `memory-${record.participant}-${record.started.slice(0, 10)}.json`;
  removeEventListener("beforeunload", askBeforeLeaving);
  for (const id of ["bar", "experiment"]) byId(id).hidden = true;
  byId("end").hidden = false;
  byId("stopped").hidden = record.complete;
  byId("file").textContent = name;
  byId("data").value = text;
  byId("copy").addEventListener("click", () => {
    byId("data").select();
    document.execCommand("copy"); // the newer way is refused to pages that were opened from a file
    byId("copied").textContent = "Copied.";
  });
  const link = byId("download");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run(byId("participant").valueAsNumber);
});
if (speed > 1) byId("fast").hidden = false;
