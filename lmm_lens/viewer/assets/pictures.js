// The pictures: each patch where it lies, its colour the attention it gets. The picture itself is dimmed under it.

const DIMMED = 0.18; // of a picture's light, under attention
const panelsBox = document.getElementById("panels");
const drawings = SIDES.flatMap((side) => about.panels.map((panel, index) => buildPanel(panel, index, side)));

function buildPanel(panel, index, side) {
  const [x0, y0, x1, y1] = panel.extent, width = x1 - x0, height = y1 - y0;
  const figure = element("figure", "panel"), stage = element("div", "stage"), canvas = element("canvas");
  const caption = element("figcaption"), name = element("span"), share = element("span", "share");
  const label = SIDES.length > 1 ? `${about.sides[side].label} · ${panel.label}` : panel.label;
  let picture = null;
  stage.style.aspectRatio = `${width} / ${height}`;
  figure.style.setProperty("--aspect", width / height);
  if (!panel.placed) figure.style.maxWidth = `${width}px`;
  if (panel.url) {
    picture = element("img");
    picture.alt = label;
    picture.src = panel.url;
    const [left, top, right, bottom] = panel.box;
    Object.assign(picture.style, {
      left: `${(100 * (left - x0)) / width}%`,
      top: `${(100 * (top - y0)) / height}%`,
      width: `${(100 * (right - left)) / width}%`,
      height: `${(100 * (bottom - top)) / height}%`,
    });
    picture.addEventListener("load", () => {
      picture.classList.toggle("small", picture.naturalWidth < 160);
      sheetIs = ""; // thumbnails have waited for it
      repaint();
    });
    stage.append(picture);
  }
  name.textContent = label;
  caption.append(name, share);
  if (panel.grids.length) {
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${label}; arrow keys move between patches`);
    listen(canvas, panel);
  }
  stage.append(canvas);
  figure.append(stage, caption);
  figure.dataset.panel = index;
  panelsBox.append(figure);
  const keys = panel.grids.flatMap((grid) => grid.keys);
  return { panel, side, label, figure, stage, canvas, picture, share, keys, scale: 1 };
}

// new contents, with the focus where it was
function refill(box, ...children) {
  const had = box.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
  box.replaceChildren(...children);
  if (!had) return;
  const same = (made) => Object.entries(had).every(([name, value]) => made.dataset[name] === value);
  [...box.querySelectorAll("button, input")].find(same)?.focus({ preventScroll: true });
}

function element(tag, name = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  return made;
}

const levelNames = [...new Set(about.panels.map((panel) => panel.level))].filter(Boolean);
document.querySelector("main").classList.toggle("with-strip", drawings.length > 4);
panelsBox.classList.toggle("strip", drawings.length > 4);
panelsBox.classList.toggle("single", drawings.length === 1);
if (!about.panels.length) panelsBox.textContent = "This prompt has no picture.";

function layOutPanels() {
  for (const drawing of drawings) {
    const { width, height } = drawing.stage.getBoundingClientRect();
    sizeCanvas(drawing.canvas, width, height);
    drawing.scale = width / (drawing.panel.extent[2] - drawing.panel.extent[0]);
  }
}

function onStage({ panel, scale }, [x0, y0, x1, y1]) {
  const [left, top] = panel.extent;
  return [(x0 - left) * scale, (y0 - top) * scale, (x1 - x0) * scale, (y1 - y0) * scale];
}

function paintPanels(shown) {
  const dark = { ...shown, theme: "dark" }; // a picture is a dark stage on either page
  drawings.forEach((drawing) => {
    drawing.figure.hidden = state.level !== "" && drawing.panel.level !== "" && drawing.panel.level !== state.level;
    if (!drawing.figure.hidden) paintPanel(drawing, dark);
  });
  panelsBox.classList.toggle("plain", !state.overlay);
  paintRamp("picture-legend", (t) => css("dark", t, overlayAlpha(t)), "#4d4d4d");
  const most = Math.max(...shown.weights);
  document.getElementById("picture-range").textContent = `0 to ${three(shown.top)}${most > shown.top ? " and more" : ""}`;
  document.getElementById("looks-head").textContent = nameOfHeads(shown.heads);
  document.getElementById("looks").textContent = `looking from ${nameOfQuery(shown.query)}`;
}

function paintPanel(drawing, { bySide, heads, top, key, query }) {
  const { panel, canvas, side } = drawing, context = canvas.getContext("2d"), weights = bySide[side];
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  let sum = 0;
  for (const each of drawing.keys) sum += weights[each];
  drawing.share.textContent = drawing.keys.length ? three(sum) : "";
  if (!state.overlay) return;
  paintPatches(context, panel, (box) => onStage(drawing, box), weights, top);
  paintMarkers(context, drawing, weights, top);
  paintSinks(context, drawing, (box) => onStage(drawing, box), heads, side);
  paintQuery(context, drawing, query);
  const place = key === null ? undefined : placeOf.get(key);
  if (place && about.panels[place.panel].source === panel.source) {
    const box = onStage(drawing, place.box), own = about.panels[place.panel] === panel; // else the same pixels, seen again
    outline(context, box, "#000000", own ? 4 : 2, []);
    outline(context, box, "#ffffff", own ? 2 : 1, own ? [] : [2, 2]);
  }
}

// each patch in the colour of its weight, where `boxOf` says that it lies
function paintPatches(context, panel, boxOf, weights, top) {
  for (const grid of panel.grids) {
    for (const each of grid.keys) {
      const t = Math.min(1, weights[each] / top), [x, y, w, h] = snapped(boxOf(placeOf.get(each).box));
      const gap = Math.min(w, h) > 9 ? 1 : 0; // the picture shows between large patches, small ones touch
      context.fillStyle = css("dark", t, panel.placed ? overlayAlpha(t) : 1);
      context.fillRect(x, y, w - gap, h - gap);
    }
    if (panel.grids.length > 1) outline(context, boxOf(frameOf(grid)), "rgb(255 255 255 / .45)", 1, []);
  }
}

function paintSinks(context, { keys }, boxOf, heads, side) {
  for (const each of keys) {
    if (!isSinkOf(heads, each, side)) continue;
    const box = inset(boxOf(placeOf.get(each).box), 1.5);
    outline(context, box, "#000000", 1.5, []); // black between white dashes: seen on every colour
    outline(context, box, "#ffffff", 1.5, [3, 3]);
  }
}

// a ring on the patch that looks
function paintQuery(context, drawing, query) {
  const place = placeOf.get(about.queries[query]);
  if (!place || about.panels[place.panel].source !== drawing.panel.source) return;
  const [x, y, w, h] = onStage(drawing, place.box);
  const thick = about.panels[place.panel] === drawing.panel ? 2 : 1; // else the same pixels, seen again
  for (const [colour, line] of [["#000000", 2 * thick], ["#ffffff", thick]]) {
    context.beginPath();
    context.arc(x + w / 2, y + h / 2, Math.max(4, Math.min(w, h) / 3), 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.stroke();
  }
}

const frameOf = ({ columns, rows }) => [columns[0][0], rows[0][0], columns.at(-1)[1], rows.at(-1)[1]];
// on whole pixels, so that patches neither overlap nor leave seams
function snapped([x, y, w, h]) {
  const left = Math.round(x), top = Math.round(y);
  return [left, top, Math.round(x + w) - left, Math.round(y + h) - top];
}

const inset = ([x, y, w, h], by) => [x + by, y + by, w - 2 * by, h - 2 * by];

function outline(context, box, colour, line, dash) {
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = line;
  context.strokeRect(...box);
  context.setLineDash([]);
}

// row breaks and newline vectors: a tick at the right edge of the patch before them
function paintMarkers(context, drawing, weights, top) {
  for (const each of drawing.keys) {
    const next = each + 1;
    if (about.roles[next] !== "marker" || !drawing.panel.placed) continue;
    const [x, y, w, h] = onStage(drawing, placeOf.get(each).box), t = Math.min(1, weights[next] / top);
    context.fillStyle = css("dark", t);
    context.fillRect(x + w - 3, y + 1, 3, h - 2);
    outline(context, [x + w - 3, y + 1, 3, h - 2], "rgb(255 255 255 / .6)", 0.5, []);
  }
}

function patchAt(event, canvas, panel) {
  const box = canvas.getBoundingClientRect(), [x0, y0, x1, y1] = panel.extent;
  const x = x0 + ((event.clientX - box.left) / box.width) * (x1 - x0);
  const y = y0 + ((event.clientY - box.top) / box.height) * (y1 - y0);
  for (const grid of panel.grids) {
    const holds = (at) => ([first, last]) => first <= at && at < last;
    const column = grid.columns.findIndex(holds(x)), row = grid.rows.findIndex(holds(y));
    const key = column < 0 || row < 0 ? undefined : grid.keys[row * grid.columns.length + column];
    if (key !== undefined) return key;
  }
  return null;
}

function listen(canvas, panel) {
  canvas.addEventListener("pointermove", (event) => {
    const key = patchAt(event, canvas, panel);
    if (key !== state.hoverKey) set({ hoverKey: key });
    if (key === null) hideTip();
    else showTip(event, tipOfToken(key));
  });
  canvas.addEventListener("pointerleave", () => { hideTip(); set({ hoverKey: null }); });
  canvas.addEventListener("click", (event) => { const key = patchAt(event, canvas, panel); if (key !== null) pinKey(key); });
  canvas.addEventListener("keydown", (event) => walkPatches(event, panel));
  canvas.addEventListener("blur", () => set({ hoverKey: null }));
}

function walkPatches(event, panel) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const keys = panel.grids.flatMap((grid) => grid.keys);
  const at = keys.includes(state.hoverKey) ? state.hoverKey : keys.includes(state.key) ? state.key : null;
  if (event.key === "Enter" && at !== null) return void (event.stopPropagation(), event.preventDefault(), pinKey(at));
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  if (at === null) return set({ hoverKey: keys[0] });
  // the patch whose box holds the point one step away, in whatever tile
  const [x0, y0, x1, y1] = placeOf.get(at).box, [down, right] = steps[event.key];
  const x = (x0 + x1) / 2 + right * (x1 - x0), y = (y0 + y1) / 2 + down * (y1 - y0);
  const next = keys.find((key) => { const b = placeOf.get(key).box; return b[0] <= x && x < b[2] && b[1] <= y && y < b[3]; });
  if (next !== undefined) set({ hoverKey: next });
}

