// The page of a label review. Served: every verdict is sent to the server at once. As a self-contained file: verdicts
// stay in this browser until the reader saves them to a file. The number of elements does not depend on the list.
"use strict";

const LARGE = 336, MEDIUM = 224, SMALL = 84; // the largest side of a picture: in a wide window, in a narrow one, an example
const EXAMPLES = 6, TWINS = 3, STRIP = 5; // elements that are made once: examples of a class, duplicates, images on either side
const RETRY_MS = 2000;
const SHOWN_MATCHES = 9;
const DONE = { keep: "Kept", relabel: "Relabelled as", remove: "Removed", unsure: "Unsure" };
const MARKS = { keep: "✓", relabel: "→", remove: "✕", unsure: "?" };
const KEYS = [
  ["K", "keep the label"], ["S or Enter", "relabel as suggested"], ["0 to 9", "relabel as this class"],
  ["C", "relabel: type the name of a class"], ["R", "remove the image from the dataset"], ["U", "unsure"],
  ["Z", "undo the latest verdict"], ["← →", "previous, next image"], ["N", "next image without a verdict"],
  ["?", "show these keys"],
];

const $ = (id) => document.getElementById(id);
const byId = new Map(); // id: place in data.items
const mine = new Map(); // id: this reader's verdict that counts
const pending = []; // verdicts that the server has not confirmed
let unlisted = []; // verdicts in this browser about images that another file of this review lists
let data, log, list = [], at = 0, listName = "labels", parts, sending = false, stored = true;

start();

async function start() {
  const embedded = $("data");
  if (embedded) data = JSON.parse(embedded.textContent);
  else {
    const response = await fetch("data.json");
    data = await response.json();
  }
  data.items.forEach((item, place) => byId.set(item.id, place));
  log = data.served ? data.log : restore();
  for (const entry of log) mine.set(entry.id, entry);
  const first = ["differing", "labels", "duplicates"].find((name) => members(name).length > 0) ?? "labels";
  document.title = `Review of labels: ${data.review}`;
  $("title").textContent = data.review === data.dataset ? data.dataset : `${data.dataset}, ${data.review}`;
  size();
  parts = build();
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => { if (pending.length) event.preventDefault(); });
  openList(first);
  saved();
}

// ---------------------------------------------------------------- verdicts

function current() { return data.items[list[at]]; }

function give(verdict, label = null) {
  const item = current();
  if (!item) return;
  if (verdict === "relabel" && label === item.given) [verdict, label] = ["keep", null];
  const entry = { id: item.id, verdict, given: item.given, label, decides: item.others.length > 0 };
  log.push(entry);
  mine.set(item.id, entry);
  save(entry);
  if (at < list.length - 1) at += 1;
  show();
}

function undo() {
  const entry = log.pop();
  if (!entry) return;
  const former = log.findLast((other) => other.id === entry.id);
  if (former) mine.set(entry.id, former);
  else mine.delete(entry.id);
  const item = data.items[byId.get(entry.id)];
  save({ id: entry.id, verdict: "undo" });
  if (!list.includes(byId.get(entry.id))) openList(item.twins.length ? "duplicates" : "labels", false);
  at = list.indexOf(byId.get(entry.id));
  show();
}

function save(entry) {
  if (data.served) {
    pending.push(entry);
    send();
    return;
  }
  try {
    localStorage.setItem(storageKey(), JSON.stringify({ log: [...unlisted, ...log], who: $("who").value }));
    stored = true;
  } catch { stored = false; }
  saved();
}

async function send() {
  if (sending) return;
  sending = true;
  while (pending.length) {
    saved();
    try {
      const response = await fetch("verdicts", {
        method: "POST", body: JSON.stringify(pending[0]), keepalive: true,
        headers: { "Content-Type": "application/json" },
      });
      if (response.status >= 400 && response.status < 500) {
        problem(`Not saved: ${await response.text()}. Reload the page.`);
        break;
      }
      if (!response.ok) throw new Error(await response.text());
      pending.shift();
      problem("");
    } catch (error) {
      const reason = error instanceof TypeError ? "the server does not respond" : error.message.trim();
      problem(`${pending.length} verdicts are not saved: ${reason}. If you ended the server, start it again and repeat them.`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  sending = false;
  saved();
}

function storageKey() { return `label-review:${data.dataset}:${data.review}`; }

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(storageKey())) ?? { log: [], who: "" };
    $("who").value = kept.who;
    const isListed = ({ id, given }) => data.items[byId.get(id)]?.given === given;
    unlisted = kept.log.filter((entry) => !isListed(entry));
    return kept.log.filter(isListed);
  } catch { return []; }
}

function download() {
  const who = $("who").value.trim();
  if (!who) {
    problem("Write your name first: it is recorded with every correction.");
    $("who").focus();
    return;
  }
  problem("");
  const verdicts = [...mine.values()].map(({ id, verdict, label }) => {
    const given = data.items[byId.get(id)].given;
    return label === null ? { id, given, verdict } : { id, given, verdict, label };
  });
  const content = { format: data.format, review: data.review, dataset: data.dataset, who, verdicts };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `verdicts-${data.review}-${who.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), RETRY_MS);
}

// ---------------------------------------------------------------- lists and moves

function members(name) {
  const is = {
    labels: (item) => item.twins.length === 0,
    duplicates: (item) => item.twins.length > 0,
    differing: (item) => item.differs,
    open: (item) => !mine.has(item.id),
  }[name];
  return data.items.flatMap((item, place) => (is(item) ? [place] : []));
}

function isOpen(place) {
  const item = data.items[place], verdict = mine.get(item.id);
  return !verdict || item.differs && !verdict.decides;
}

function openList(name, toFirst = true) {
  listName = name;
  list = members(name);
  const open = list.findIndex(isOpen);
  at = toFirst ? Math.max(open, 0) : at;
  show();
}

function move(step) {
  at = Math.min(Math.max(at + step, 0), Math.max(list.length - 1, 0));
  show();
}

function nextOpen() {
  const after = list.findIndex((place, index) => index > at && isOpen(place));
  const open = after >= 0 ? after : list.findIndex(isOpen);
  if (open >= 0) at = open;
  show();
}

// ---------------------------------------------------------------- keys

function onKey(event) {
  if (event.isComposing || event.altKey || $("chooser").open || $("keys").open || event.target === $("who")) return;
  // With a Korean keyboard, `key` is a jamo or "Process": the code of the key is that of the Latin letter.
  const key = /^[ -~]$/.test(event.key) || event.key.length > 1 && event.key !== "Process"
    ? event.key.toLowerCase() : event.code.replace(/^(Key|Digit)/, "").toLowerCase();
  if ((event.ctrlKey || event.metaKey) && key !== "z") return;
  const item = current();
  const label = data.classes.length <= 10 && /^[0-9]$/.test(key) ? Number(key) : null;
  const acts = {
    k: () => give("keep"), s: suggest, r: () => give("remove"), u: () => give("unsure"), z: undo, c: choose, n: nextOpen,
    enter: event.target instanceof HTMLButtonElement ? null : suggest,
    arrowleft: () => move(-1), arrowright: () => move(1), home: () => move(-list.length), end: () => move(list.length),
    "?": () => $("keys").showModal(),
  };
  const act = label === null ? acts[key] : label < data.classes.length && item ? () => give("relabel", label) : null;
  if (!act) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith("arrow")) act(); // a key that is held down gives one verdict
}

function suggest() {
  const item = current();
  if (item && item.suggested !== item.given) give("relabel", item.suggested);
}

function choose() {
  if (!current()) return;
  $("query").value = "";
  $("chooser").showModal();
  match();
}

function match() {
  const query = $("query").value.trim().toLowerCase().normalize("NFC");
  const rankName = (name) => (name === query ? 0 : name.startsWith(query) ? 1 : name.includes(query) ? 2 : 3);
  const rank = (label) => Math.min(...[data.classes[label], data.classes_ko[label] ?? "", String(label)]
    .map((name) => rankName(name.toLowerCase().normalize("NFC"))));
  const found = data.classes.map((_, label) => [rank(label), label]).filter(([place]) => place < 3);
  found.sort(([one, label], [other, second]) => one - other || label - second);
  $("matches").replaceChildren(...found.slice(0, SHOWN_MATCHES).map(([, label], place) => {
    const button = element("button", { type: "button" }, className(label));
    button.dataset.label = label;
    button.tabIndex = -1;
    const row = element("li", { className: place === 0 ? "chosen" : "" }, button);
    button.addEventListener("click", () => take(label));
    return row;
  }));
}

function take(label) {
  $("chooser").close();
  give("relabel", label);
}

function onChooserKey(event) {
  if (!$("chooser").open) return; // it keeps the focus for a moment
  event.stopPropagation(); // or the key that closes the chooser is one of the page, too
  if (event.isComposing) return;
  const rows = [...$("matches").children], chosen = rows.findIndex((row) => row.className === "chosen");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && rows.length) {
    rows[chosen].className = "";
    rows[(chosen + step + rows.length) % rows.length].className = "chosen";
  } else if (event.key === "Enter" && rows.length) take(Number(rows[chosen].firstChild.dataset.label));
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- elements, made once

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function className(label) {
  const korean = data.classes_ko[label];
  const more = korean ? [" ", element("span", { lang: "ko" }, korean)] : [];
  return element("span", { className: "class" }, data.classes[label], ...more);
}

function button(key, text, act, parent) {
  const made = element("button", { type: "button" }, element("kbd", {}, key), ...(text ? [" ", text] : []));
  made.addEventListener("click", () => { act(); made.blur(); }); // Enter means "as suggested" again
  parent.append(made);
  return made;
}

function figure(parent) {
  const image = element("img", { alt: "", decoding: "async" }), caption = element("figcaption");
  const made = element("figure", {}, image, caption);
  parent.append(made);
  return { made, image, caption };
}

function build() {
  const main = figure($("pictures"));
  const twins = Array.from({ length: TWINS }, () => figure($("pictures")));
  const more = element("p");
  $("pictures").append(more);
  const classes = ["Given", "Suggested"].map((role) => {
    const name = element("h2"), images = Array.from({ length: EXAMPLES }, () => element("img", { alt: "", decoding: "async" }));
    const row = element("section", { className: role.toLowerCase() }, name, element("div", { className: "examples" }, ...images));
    $("classes").append(row);
    return { role, row, name, images };
  });
  button("K", "Keep", () => give("keep"), $("actions"));
  const accept = button("S", "As suggested", suggest, $("actions"));
  button("R", "Remove", () => give("remove"), $("actions"));
  button("U", "Unsure", () => give("unsure"), $("actions"));
  button("Z", "Undo", undo, $("actions"));
  button("←", "", () => move(-1), $("actions")).ariaLabel = "Previous image";
  button("→", "", () => move(1), $("actions")).ariaLabel = "Next image";
  button("N", "Next unseen", nextOpen, $("actions"));
  const labels = data.classes.length <= 10
    ? data.classes.map((_, label) => button(String(label), className(label), () => give("relabel", label), $("labels"))) : [];
  button("C", "Other class …", choose, $("labels")).hidden = labels.length > 0;
  const strip = Array.from({ length: 2 * STRIP + 1 }, (_, place) => {
    const image = element("img", { alt: "", decoding: "async" }), mark = element("span");
    const made = element("button", { type: "button", className: place === STRIP ? "here" : "" }, image, mark);
    made.addEventListener("click", () => { move(place - STRIP); made.blur(); });
    $("strip").append(made);
    return { made, image, mark };
  });
  const names = { labels: "Labels", duplicates: "Duplicates", differing: "Readers differ", open: "Unseen" };
  const lists = Object.entries(names).map(([name, text]) => {
    const count = element("span"), made = element("button", { type: "button" }, `${text} `, count);
    made.addEventListener("click", () => { openList(name); made.blur(); });
    $("lists").append(made);
    return { name, made, count };
  });
  const rows = KEYS.filter(([key]) => key !== "0 to 9" || labels.length);
  const entries = rows.flatMap(([key, text]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, text)]);
  $("keys").append(element("h2", {}, "Keys"), element("dl", {}, ...entries));
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => $("keys").close());
  $("keys").append(close);
  $("help").addEventListener("click", () => { $("keys").showModal(); $("help").blur(); });
  $("query").addEventListener("input", match);
  $("query").addEventListener("keydown", onChooserKey);
  $("sending").hidden = data.served;
  $("download").addEventListener("click", () => { download(); $("download").blur(); });
  $("who").addEventListener("change", () => { if (!data.served) save(); });
  return { main, twins, more, classes, accept, labels, strip, lists };
}

function size() {
  const side = Math.max(data.height, data.width), root = document.documentElement.style;
  for (const [name, most] of [["large", LARGE], ["medium", MEDIUM], ["small", SMALL]]) {
    const exact = most / side, isPixels = exact >= 2, scale = isPixels ? Math.floor(exact) : exact; // whole pixels
    root.setProperty(`--${name}-width`, `${Math.round(data.width * scale)}px`);
    root.setProperty(`--${name}-height`, `${Math.round(data.height * scale)}px`);
    document.documentElement.classList.toggle(`${name}-pixels`, isPixels);
  }
}

// ---------------------------------------------------------------- showing

function picture(place) { return data.pictures ? data.pictures[place] : `pictures/${place}.png`; }

function draw(image, place, alt = "") {
  image.hidden = place === undefined;
  if (place === undefined) return;
  const source = picture(place);
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = alt;
}

function percent(share) { return `${(100 * share).toFixed(share > 0.995 && share < 1 ? 1 : 0)} %`; }

function splitName(split) { return split === "test" ? "Test image" : "Training image"; }

function describe({ verdict, label }) { return label === null ? DONE[verdict] : `${DONE[verdict]} ${data.classes[label]}`; }

function describeWithin(verdict) { return describe(verdict).replace(/^./, (letter) => letter.toLowerCase()); }

function show() {
  const item = current();
  $("main").hidden = !item;
  $("empty").hidden = !!item;
  counts();
  if (!item) { $("empty").textContent = "There is no image in this list."; return; }
  draw(parts.main.image, item.picture, `labelled ${data.classes[item.given]}`);
  const row = item.row === null ? "" : ` ${item.row}`;
  parts.main.caption.textContent = `${splitName(item.split)}${row}`;
  parts.main.caption.title = item.id;
  $("pictures").classList.toggle("pairs", item.twins.length > 0);
  parts.twins.forEach(({ made, image, caption }, place) => {
    const twin = item.twins[place];
    made.hidden = !twin;
    draw(image, twin?.picture, "duplicate");
    if (twin) {
      caption.replaceChildren(`${splitName(twin.split)}, labelled `, className(twin.label));
      const other = mine.get(twin.id);
      if (other) caption.append(`: ${describeWithin(other)}`);
    }
  });
  const rest = item.twins.length - TWINS;
  parts.more.textContent = rest > 0 ? `and ${rest} more duplicates` : "";
  const isDone = !list.some(isOpen);
  $("place").textContent = `${at + 1} of ${list.length}` + (isDone ? ": every image of this list has a verdict" : "");
  $("reason").textContent = item.reason;
  parts.classes.forEach(({ role, row: section, name, images }, place) => {
    const label = place === 0 ? item.given : item.suggested;
    section.hidden = place === 1 && item.suggested === item.given;
    const sure = place === 1 ? [element("span", { className: "sure" }, percent(item.confidence))] : [];
    name.replaceChildren(element("span", { className: "role" }, role), " ", className(label), " ", ...sure);
    images.forEach((image, which) => draw(image, item.examples[label]?.[which]));
  });
  parts.accept.disabled = item.suggested === item.given;
  const verdict = mine.get(item.id);
  $("verdict").textContent = verdict ? describe(verdict) : "No verdict yet";
  $("verdict").className = verdict?.verdict ?? "";
  $("others").hidden = item.others.length === 0;
  const said = item.others.map((other) => `${other.who}: ${describeWithin(other)}`).join("; ");
  const differs = item.differs && !verdict?.decides;
  $("others").textContent = differs ? `Readers differ. ${said}. Your next verdict decides.` : `${said}.`;
  $("others").className = differs ? "differs" : "";
  parts.labels.forEach((made, label) => {
    made.classList.toggle("given", label === item.given);
    made.classList.toggle("suggested", label === item.suggested && label !== item.given);
    made.classList.toggle("chosen", verdict?.label === label);
  });
  parts.strip.forEach(({ made, image, mark }, place) => {
    const other = data.items[list[at + place - STRIP]], about = other && mine.get(other.id);
    made.classList.toggle("absent", !other);
    made.disabled = !other;
    draw(image, other?.picture);
    mark.textContent = about ? MARKS[about.verdict] : "";
    mark.className = about?.verdict ?? "";
  });
  for (const ahead of [1, 2]) { // the pictures of the next images are in the browser's cache when they are shown
    const next = data.items[list[at + ahead]];
    if (!next || data.pictures) continue;
    const twins = next.twins.slice(0, TWINS).map((twin) => twin.picture);
    for (const place of [next.picture, ...twins, ...Object.values(next.examples).flat()]) new Image().src = picture(place);
  }
}

function counts() {
  const total = data.items.length, done = mine.size, by = { keep: 0, relabel: 0, remove: 0, unsure: 0 };
  for (const { verdict } of mine.values()) by[verdict] += 1;
  $("counts").textContent = `${done} of ${total} seen: ${by.keep} kept, ${by.relabel} relabelled, ${by.remove} removed, ${by.unsure} unsure`;
  $("bar").style.width = `${total ? (100 * done) / total : 0}%`;
  for (const { name, made, count } of parts.lists) {
    const size = name === "open" ? total - done : (counts[name] ??= members(name).length);
    count.textContent = size;
    made.hidden = size === 0 && ["duplicates", "differing"].includes(name);
    made.setAttribute("aria-current", String(name === listName));
  }
}

function saved() {
  if (data.served) $("saved").textContent = pending.length ? `Saving ${pending.length} …` : `Saved, as ${data.who}`;
  else if (!stored) $("saved").textContent = "This browser does not keep the verdicts: save them to a file before you close the page.";
  else $("saved").textContent = mine.size ? "Kept in this browser" : "";
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}
