// The try-it page: choose or draw a picture, show the answer of the model, explain it, and correct it.

const SHOWN = 5; // classes before the button for all of them
const DRAWING_MILLISECONDS = 150; // after the last stroke, until the drawing is sent
const RETRY_MILLISECONDS = 2000; // to wait for a model
const KEY = "serve-key"; // in the tab's storage, until the tab is closed

const find = (id) => document.getElementById(id);
const canvas = find("canvas");
const pen = canvas.getContext("2d");

let model = null; // GET v1/model
let picture = null; // Blob that was sent last
let answer = null; // the response to it
let sent = 0; // number of the latest request: responses to earlier ones are dropped
let drawingTimer = 0;
let afterKey = null; // what to do again with the key

// ---- requests

function takeKeyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (found) {
    sessionStorage.setItem(KEY, found);
    history.replaceState(null, "", location.pathname + location.search); // not in the history, nor in a bookmark
  }
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not respond. Check that it runs, then try again.");
  }
  const content = await response.json().catch(() => null);
  if (response.ok) return content;
  const error = new Error(describeError(response.status, content));
  error.status = response.status;
  throw error;
}

function describeError(status, content) {
  if (typeof content?.error !== "string") return `The server responded with status ${status}.`;
  const { error, expected, found, remedy } = content;
  const lines = [error, expected && `expected: ${expected}`, found && `found: ${found}`, remedy && `try: ${remedy}`];
  return lines.filter(Boolean).join("\n");
}

// Run an action; show its error, or ask for the key that it needs and then run it again.
async function attempt(action, place = find("problem")) {
  place.hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.status === 401) {
      afterKey = () => attempt(action, place);
      sessionStorage.removeItem(KEY);
      find("key-form").hidden = false;
      find("key").focus();
    }
    place.textContent = error.message;
    place.hidden = false;
    place.classList.add("error");
  }
}

const query = () => (picture.inverted ? "?invert=true" : "");

function asForm(blob) {
  const form = new FormData();
  form.append("images", blob, blob.name ?? "drawing.png");
  return form;
}

// ---- the picture

async function send(blob, inverted) {
  const number = ++sent;
  picture = Object.assign(blob, { inverted });
  find("explanation").hidden = true;
  find("answer").ariaBusy = "true"; // it is about the picture before
  await attempt(async () => {
    if (!model) await loadModel();
    const start = performance.now();
    const received = await request(`v1/predict${query()}`, { method: "POST", body: asForm(blob) });
    if (number !== sent) return;
    answer = received;
    showAnswer(received, performance.now() - start);
  });
  if (number !== sent) return;
  find("answer").ariaBusy = "false";
  if (!find("problem").hidden) find("answer").hidden = true;
}

function take(file) {
  if (!file) return;
  choose("file");
  const preview = find("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name;
  find("drop-text").textContent = file.name || "pasted picture";
  find("invert").file = file;
  send(file, find("invert").checked);
}

function choose(source) {
  const isDrawing = source === "drawing";
  find("tab-file").setAttribute("aria-pressed", String(!isDrawing));
  find("tab-drawing").setAttribute("aria-pressed", String(isDrawing));
  find("file-panel").hidden = isDrawing;
  find("drawing-panel").hidden = !isDrawing;
}

// ---- drawing, at the size of the model's images: what is drawn is what the model gets

const asColour = (ground) => `rgb(${Array.isArray(ground) ? ground.join(" ") : `${ground} ${ground} ${ground}`})`;
const isDark = () => [model.ground].flat().reduce((sum, value) => sum + value, 0) / [model.ground].flat().length < 128;

function clearDrawing() {
  pen.fillStyle = asColour(model.ground);
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function prepareCanvas() {
  canvas.width = model.width;
  canvas.height = model.height;
  canvas.style.aspectRatio = `${model.width} / ${model.height}`;
  find("colour-option").hidden = model.channels === 1;
  find("colour").value = isDark() ? "#ffffff" : "#000000";
  clearDrawing();
}

const place = (event) => [
  (event.offsetX / canvas.clientWidth) * canvas.width,
  (event.offsetY / canvas.clientHeight) * canvas.height,
];

function startStroke(event) {
  canvas.setPointerCapture(event.pointerId);
  const scale = Math.max(canvas.width, canvas.height) / 56;
  pen.lineWidth = Math.max(1, find("brush").value * scale);
  pen.lineCap = pen.lineJoin = "round";
  const ink = model.channels === 3 ? find("colour").value : isDark() ? "#ffffff" : "#000000";
  pen.strokeStyle = find("eraser").checked ? asColour(model.ground) : ink;
  pen.beginPath();
  pen.moveTo(...place(event));
  continueStroke(event);
}

function continueStroke(event) {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  pen.lineTo(...place(event));
  pen.stroke();
  clearTimeout(drawingTimer);
  drawingTimer = setTimeout(sendDrawing, DRAWING_MILLISECONDS);
}

function sendDrawing() {
  canvas.toBlob((blob) => send(blob, false), "image/png");
}

// ---- the answer

function cell(kind, ...content) {
  const made = document.createElement(kind);
  made.append(...content);
  return made;
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

// "Trouser 바지": the Korean name is muted
function nameParts(english, korean) {
  return korean ? [english, " ", Object.assign(cell("span", korean), { lang: "ko" })] : [english];
}

function showAnswer(received, milliseconds) {
  const [prediction] = received.predictions;
  const korean = new Map(model.answers.map((name, place) => [name, model.answers_ko[place]]));
  const rows = Object.entries(prediction.probabilities).sort((one, other) => other[1] - one[1]);
  find("hint").hidden = find("problem").hidden = true;
  find("answer").hidden = false;
  find("feedback-result").textContent = "";
  find("top-class").replaceChildren(...nameParts(prediction.class, prediction.class_ko));
  find("top-probability").textContent = percent(prediction.probability);
  find("probabilities").tBodies[0].replaceChildren(
    ...rows.map(([name, value], place) => {
      const title = cell("th", ...nameParts(name, korean.get(name)));
      title.scope = "row";
      const bar = Object.assign(cell("progress"), { max: 1, value });
      bar.setAttribute("aria-hidden", "true");
      const row = cell("tr", title, cell("td", bar), cell("td", percent(value)));
      row.hidden = place >= SHOWN;
      return row;
    }),
  );
  find("more").hidden = rows.length <= SHOWN;
  find("more").textContent = `Show all ${rows.length} classes`;
  find("facts").textContent = `Version ${received.version} of ${model.name}, model ${received.model.slice(0, 12)}; ` +
    `answered in ${milliseconds.toFixed(0)} ms`;
  find("label").value = "";
  if (received.version !== model.version) attempt(loadModel); // another version became the champion
}

// ---- the explanation: orange pixels speak for the class, blue ones against it

async function explain() {
  const number = sent;
  const received = await request(`v1/explain${query()}`, { method: "POST", body: asForm(picture) });
  if (number !== sent) return;
  drawSaliency(received.image, received.saliency);
  const name = received.class_ko ? `${received.class} (${received.class_ko})` : received.class;
  const text = `What speaks for ${name} is orange, what speaks against it is blue.`;
  find("saliency").setAttribute("aria-label", text);
  find("saliency-caption").textContent = `${text} The picture is as the model gets it, in grey.`;
  find("explanation").hidden = false;
}

function drawSaliency(image, saliency) {
  const drawing = find("saliency");
  const [height, width] = [saliency.length, saliency[0].length];
  Object.assign(drawing, { width, height });
  const context = drawing.getContext("2d");
  const pixels = context.createImageData(width, height);
  const largest = Math.max(...saliency.flat().map(Math.abs), 1e-9);
  for (let place = 0; place < width * height; place++) {
    const [row, column] = [Math.floor(place / width), place % width];
    const value = [image[row][column]].flat();
    const grey = value.length === 1 ? value[0] : 0.299 * value[0] + 0.587 * value[1] + 0.114 * value[2];
    const strength = saliency[row][column] / largest;
    const colour = strength > 0 ? [255, 120, 0] : [0, 110, 255];
    const share = 0.75 * Math.abs(strength);
    const mixed = colour.map((part) => part * share + grey * (1 - share));
    pixels.data.set([...mixed, 255], 4 * place);
  }
  context.putImageData(pixels, 0, 0);
}

// ---- the correction

async function sendFeedback() {
  const result = find("feedback-result");
  result.classList.remove("error");
  const content = {
    request_id: answer.request_id,
    index: 0,
    label: Number(find("label").value),
    who: find("who").value || undefined,
    picture: await asBase64(picture),
  };
  await request(`v1/feedback${query()}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  });
  const name = find("label").selectedOptions[0].textContent;
  result.textContent = `Saved: ${name}. It becomes training data when a person runs pipeline add-data --from-traffic.`;
  result.hidden = false;
}

function asBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The picture cannot be read again: choose it once more."));
    reader.readAsDataURL(blob);
  });
}

// ---- start

async function loadModel() {
  const former = model;
  model = await request("v1/model");
  const colours = model.channels === 3 ? "colour" : "grey";
  find("model").textContent =
    `${model.name}, version ${model.version}: ${model.classes.length} classes, ` +
    `${model.height} × ${model.width} pixels in ${colours}`;
  const options = model.classes.map((name, label) => {
    const korean = model.classes_ko[label];
    return new Option(korean ? `${name} (${korean})` : name, String(label));
  });
  find("label").replaceChildren(Object.assign(new Option("choose", ""), { disabled: true }), ...options);
  find("label").value = "";
  const isSameSize = former && former.width === model.width && former.height === model.height;
  if (!isSameSize) prepareCanvas();
}

// A server that was just started has no model yet: ask again until it has one.
async function waitForModel() {
  await attempt(loadModel);
  if (!model && find("key-form").hidden) setTimeout(waitForModel, RETRY_MILLISECONDS);
}

function start() {
  takeKeyFromAddress();
  find("tab-file").addEventListener("click", () => choose("file"));
  find("tab-drawing").addEventListener("click", () => choose("drawing"));
  find("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // the same file can be chosen again
  });
  find("preview").addEventListener("load", (event) => (event.target.hidden = false));
  find("preview").addEventListener("error", (event) => (event.target.hidden = true)); // TIFF: browsers do not show it
  find("invert").addEventListener("change", (event) => event.target.file && take(event.target.file));
  document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // otherwise the browser leaves the page
    find("drop").classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  canvas.addEventListener("pointerdown", (event) => model && startStroke(event));
  canvas.addEventListener("pointermove", continueStroke);
  find("clear").addEventListener("click", clearDrawing);
  find("more").addEventListener("click", () => {
    for (const row of find("probabilities").rows) row.hidden = false;
    find("more").hidden = true;
  });
  find("explain").addEventListener("click", async () => {
    find("explain").disabled = true;
    await attempt(explain);
    find("explain").disabled = false;
  });
  find("feedback").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(sendFeedback, find("feedback-result"));
  });
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, find("key").value);
    find("key").value = "";
    find("key-form").hidden = true;
    afterKey?.();
  });
  waitForModel();
}

start();
