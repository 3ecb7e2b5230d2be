// Numbers: of the head and of the token that are shown, and of what is under the pointer.

const PARTS = [
  ["nonsink_mass", "image", "var(--part-image)"],
  ["sink_mass", "image sinks", "var(--part-sink)"],
  ["text_mass", "text", "var(--part-text)"],
  ["bos_mass", "first token", "var(--part-bos)"],
  ["marker_mass", "markers", "var(--part-marker)"],
  ["class_mass", "class token", "var(--part-bos)"],
  ["register_mass", "registers", "var(--part-sink)"],
  ["elsewhere_mass", "no visual token", "var(--part-marker)"],
];
const N_LISTED = 5;

const headCard = document.getElementById("head"), tokenCard = document.getElementById("token");

function paintHead({ heads, layer, head, query, weights }) {
  // masses of a mean are means of masses; of the other numbers that is not so
  const value = (name, side = state.side) => {
    const values = mapOf(mapNamed(name), query, side);
    return heads.reduce((sum, [l, h]) => sum + values[l * N_HEADS + h], 0) / heads.length;
  };
  const parts = PARTS.map(([name, label, colour]) => {
    const known = name === "nonsink_mass" && mapNamed(name) < 0 ? "visual_mass" : name;
    return { label, colour, share: mapNamed(known) < 0 ? 0 : value(known) };
  });
  const title = element("div", "title"), name = element("b"), note = element("span", "quiet");
  name.textContent = nameOfHeads(heads);
  note.textContent = heads.length > 1 ? heads.map((each) => headName(...each)).join(" ") : isPinned(layer, head) ? "pinned" : "";
  title.append(name, note);
  if (heads.length === 1) title.append(choice(layer, head));
  const figures = element("div", "numbers"), masses = ["visual_mass", "nonsink_mass"];
  figures.append(...numbers(heads.length > 1 ? masses : [...masses, "concentration", "distance", "entropy"], value));
  refill(headCard, title, figures, composition(parts), mostAttended(weights, heads));
  headCard.dataset.head = nameOfHeads(heads);
  headCard.dataset.query = idOfQuery(query);
}

// whether the head is one of the chosen
function choice(layer, head) {
  const label = element("label", "check"), box = element("input");
  box.type = "checkbox";
  box.dataset.choose = "";
  box.checked = isChosen(layer, head);
  box.addEventListener("change", () => choose([layer, head]));
  label.append(box, "chosen");
  return label;
}

function numbers(names, value) {
  return names.filter((name) => mapNamed(name) >= 0).map((name) => {
    const made = element("span", "number");
    made.dataset.name = name;
    const label = element("span", "quiet"), shown = element("span");
    label.textContent = about.maps[mapNamed(name)].label;
    shown.textContent = SIDES.map((side) => three(value(name, side))).join(" → ");
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

function mostAttended(weights, heads) {
  const list = element("ol", "listed");
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, N_LISTED);
  for (const key of order) {
    const item = element("li"), button = element("button", "link"), note = element("span", "quiet"), value = element("span");
    button.type = "button";
    button.dataset.key = key;
    button.textContent = nameOfToken(key);
    note.textContent = `${about.positions[key] ?? ""}${isSinkOf(heads, key, state.side) ? " · sink" : ""}`;
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
  const place = placeOf.get(key);
  for (const drawing of drawings) if (place && about.panels[place.panel] === drawing.panel) outline(drawing.canvas.getContext("2d"), onStage(drawing, place.box), "#ffffff", 2, []);
  chips.get(key)?.classList.add("chosen");
}
headCard.addEventListener("pointerout", () => repaint());

function paintToken({ key, heads, layer, column }) {
  tokenCard.dataset.position = key === null ? "" : idOf(key);
  if (key === null) {
    tokenCard.replaceChildren(Object.assign(element("span", "quiet"), {
      textContent: ofTower
        ? "Hover a patch to see which heads attend to it; click for where it looks itself."
        : "Hover a word or a patch to see which heads attend to it; click to keep it.",
    }));
    return;
  }
  const title = element("div", "title"), name = element("b"), note = element("span", "quiet");
  name.textContent = nameOfToken(key);
  const place = placeOf.get(key), notes = about.positions[key] === null ? [] : [`${about.roles[key].replaceAll("_", " ")} at ${about.positions[key]}`];
  if (place && about.panels[place.panel].placed) {
    const [x0, y0, x1, y1] = place.box.map((edge) => Number(edge.toFixed(1)));
    notes.push(`pixels (${x0}, ${y0}) to (${x1}, ${y1})`);
  }
  if (isSink(layer, key)) notes.push(`sink in layer ${about.layers[layer]}`);
  if (key === state.key) notes.push("pinned");
  note.textContent = notes.join(" · ");
  title.append(name, note);
  const list = element("ol", "listed"), rank = state.change ? Math.abs : (value) => value;
  const order = [...column.keys()].filter((i) => !Number.isNaN(column[i])).sort((a, b) => rank(column[b]) - rank(column[a]));
  for (const i of order.slice(0, N_LISTED)) {
    const item = element("li"), button = element("button", "link"), value = element("span");
    button.type = "button";
    button.dataset.head = i;
    button.textContent = headName(Math.floor(i / N_HEADS), i % N_HEADS);
    value.textContent = three(column[i]);
    item.append(button, value);
    list.append(item);
  }
  const here = element("li"), value = Object.assign(element("span"), { textContent: SIDES.map((side) => three(meanWeights(state.query, heads, side)[key])).join(" → ") });
  here.dataset.name = "weight";
  here.append(Object.assign(element("span", "quiet"), { textContent: `now shown: ${nameOfHeads(heads)}` }), value);
  list.prepend(here);
  refill(tokenCard, title, ...saidBy(key, layer), list);
}

tokenCard.addEventListener("click", (event) => {
  const button = event.target.closest("[data-head]");
  if (button) pinHead([Math.floor(button.dataset.head / N_HEADS), button.dataset.head % N_HEADS]);
});

