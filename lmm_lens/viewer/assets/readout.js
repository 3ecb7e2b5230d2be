// Numbers: of the head and of the token that are shown, and of what is under the pointer.

const PARTS = [
  ["nonsink_mass", "image", "var(--part-image)"],
  ["sink_mass", "image sinks", "var(--part-sink)"],
  ["text_mass", "text", "var(--part-text)"],
  ["bos_mass", "first token", "var(--part-bos)"],
  ["marker_mass", "markers", "var(--part-marker)"],
];
const N_LISTED = 5;

const headCard = document.getElementById("head"), tokenCard = document.getElementById("token");

function paintHead({ layer, head, query, weights }) {
  const at = layer * N_HEADS + head, value = (name) => mapOf(mapNamed(name), query)[at];
  const parts = PARTS.map(([name, label, colour]) => {
    const known = name === "nonsink_mass" && !about.sinks ? "visual_mass" : name;
    return { label, colour, share: mapNamed(known) < 0 ? 0 : value(known) };
  });
  const title = element("div", "title"), name = element("b"), note = element("span", "quiet");
  name.textContent = headName(layer, head);
  note.textContent = isPinned(layer, head) ? "pinned" : "";
  title.append(name, note);
  const figures = element("div", "numbers");
  figures.append(...numbers(["visual_mass", "nonsink_mass", "concentration", "entropy"], value));
  headCard.replaceChildren(title, figures, composition(parts), mostAttended(weights, layer));
  headCard.dataset.head = headName(layer, head);
  headCard.dataset.query = about.positions[about.queries[query]];
}

function numbers(names, value) {
  return names.filter((name) => mapNamed(name) >= 0).map((name) => {
    const made = element("span", "number");
    made.dataset.name = name;
    const label = element("span", "quiet"), shown = element("span");
    label.textContent = about.maps[mapNamed(name)].label;
    shown.textContent = three(value(name));
    made.append(label, shown);
    return made;
  });
}

function composition(parts) {
  const bar = element("div", "composition"), key = element("div", "keys quiet");
  for (const { label, colour, share } of parts) {
    if (!(share > 0)) continue;
    const slice = element("i"), entry = element("span"), swatch = element("i");
    slice.style.flexGrow = share;
    slice.style.background = swatch.style.background = colour;
    entry.append(swatch, `${label} ${three(share)}`);
    bar.append(slice);
    if (share >= 0.0005) key.append(entry);
  }
  const box = element("div");
  box.append(bar, key);
  return box;
}

function mostAttended(weights, layer) {
  const list = element("ol", "listed");
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, N_LISTED);
  for (const key of order) {
    const item = element("li"), button = element("button", "link"), note = element("span", "quiet"), value = element("span");
    button.type = "button";
    button.dataset.key = key;
    button.textContent = nameOfToken(key);
    note.textContent = `${about.positions[key]}${isSink(layer, key) ? " · sink" : ""}`;
    value.textContent = three(weights[key]);
    item.append(button, note, value);
    list.append(item);
  }
  return list;
}

headCard.addEventListener("pointerover", (event) => {
  const button = event.target.closest("[data-key]");
  if (button) markOnly(Number(button.dataset.key));
});
headCard.addEventListener("click", (event) => {
  const button = event.target.closest("[data-key]");
  if (button) pinKey(Number(button.dataset.key));
});

// outline a token without changing what is listed under the pointer
function markOnly(key) {
  const place = placeOf.get(key), drawing = place && drawings[place.panel];
  if (drawing) outline(drawing.canvas.getContext("2d"), onStage(drawing, place.box), "#ffffff", 2, []);
  chips.get(key)?.classList.add("chosen");
}
headCard.addEventListener("pointerout", () => repaint());

function paintToken({ key, layer, head, query, column }) {
  tokenCard.dataset.position = key === null ? "" : about.positions[key];
  if (key === null) {
    tokenCard.replaceChildren(Object.assign(element("span", "quiet"), {
      textContent: "Hover a word or a patch to see which heads attend to it; click to keep it.",
    }));
    return;
  }
  const title = element("div", "title"), name = element("b"), note = element("span", "quiet");
  name.textContent = nameOfToken(key);
  const place = placeOf.get(key), notes = [`${about.roles[key].replaceAll("_", " ")} at ${about.positions[key]}`];
  if (place && about.panels[place.panel].placed) {
    const [x0, y0, x1, y1] = place.box.map((edge) => Number(edge.toFixed(1)));
    notes.push(`pixels (${x0}, ${y0}) to (${x1}, ${y1})`);
  }
  if (isSink(layer, key)) notes.push(`sink in layer ${about.layers[layer]}`);
  if (key === state.key) notes.push("pinned");
  note.textContent = notes.join(" · ");
  title.append(name, note);
  const list = element("ol", "listed");
  const order = [...column.keys()].filter((i) => !Number.isNaN(column[i])).sort((a, b) => column[b] - column[a]);
  for (const i of order.slice(0, N_LISTED)) {
    const item = element("li"), button = element("button", "link"), value = element("span");
    button.type = "button";
    button.dataset.head = i;
    button.textContent = headName(Math.floor(i / N_HEADS), i % N_HEADS);
    value.textContent = three(column[i]);
    item.append(button, value);
    list.append(item);
  }
  const here = element("li"), value = Object.assign(element("span"), { textContent: three(weight(state.query, layer, head, key)) });
  here.dataset.name = "weight";
  here.append(Object.assign(element("span", "quiet"), { textContent: `now shown: ${headName(layer, head)}` }), value);
  list.prepend(here);
  tokenCard.replaceChildren(title, list);
}

tokenCard.addEventListener("click", (event) => {
  const button = event.target.closest("[data-head]");
  if (button) pinHead([Math.floor(button.dataset.head / N_HEADS), button.dataset.head % N_HEADS]);
});

// ---------------------------------------------------------------- under the pointer

const tip = document.getElementById("tip");

function tipOfToken(key) {
  const [layer, head] = state.hoverHead ?? state.head ?? cursor;
  const sink = isSink(layer, key) ? " · sink" : "";
  const value = unpacked.has(state.query) ? three(weight(state.query, layer, head, key)) : "";
  return `${fullName(key)} · ${value} in ${headName(layer, head)}${sink}`;
}

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 14 + width > innerWidth, low = event.clientY + 18 + height > innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX - width - 10 : event.clientX + 14)}px`;
  tip.style.top = `${low ? event.clientY - height - 8 : event.clientY + 18}px`;
}

function hideTip() {
  tip.hidden = true;
}

// ---------------------------------------------------------------- legends

function paintRamp(id, theme, isMap) {
  const canvas = document.getElementById(id), width = 96, height = 10;
  sizeCanvas(canvas, width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = isMap ? colourOf("--paper") : "#4d4d4d";
  context.fillRect(0, 0, width, height);
  for (let x = 0; x < width; x++) {
    const t = x / (width - 1);
    context.fillStyle = isMap ? css(theme, t) : css("dark", t, overlayAlpha(t));
    context.fillRect(x, 0, 1, height);
  }
}

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

