// The map of heads: a row a layer, a column a head.

const map = document.getElementById("map");
const mapLayout = { left: 30, top: 4, right: 4, bottom: 18, width: 0, height: 0 };

// how much larger than at 14 px everything is
const zoom = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 14;

function layOutMap() {
  const by = zoom(), { left, top, right, bottom } = Object.assign(mapLayout, { left: 30 * by, bottom: 18 * by });
  const wide = document.getElementById("map-box").clientWidth - 8 - left - right; // 8: its padding
  mapLayout.width = Math.max(2, Math.min(56 * by, wide / N_HEADS));
  mapLayout.height = Math.max(4, Math.min(34 * by, mapLayout.width, (400 * by) / N_LAYERS));
  if (mapLayout.height < mapLayout.width / 3) mapLayout.height = mapLayout.width / 3;
  sizeCanvas(map, left + mapLayout.width * N_HEADS + right, top + mapLayout.height * N_LAYERS + bottom);
}

function sizeCanvas(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
}

function rangeOf(values) {
  let low = 0, high = 0;
  for (const value of values) if (Number.isFinite(value)) (low = Math.min(low, value)), (high = Math.max(high, value));
  if (state.change) high = Math.max(-low, high), low = -high; // none is in the middle
  return [low, high > low ? high : low + 1];
}

// the colour of a value on the map: of a share of its range, or of a change
function mapColour(theme, value, [low, high]) {
  return state.change ? changeCss(theme, value / high) : css(theme, (value - low) / (high - low));
}

function paintMap({ key, heads, layer, head, column, theme }) {
  const values = column ?? shownMap(), range = rangeOf(values);
  const context = map.getContext("2d"), { left, top, width, height } = mapLayout;
  const gap = width > 9 ? 1 : width > 5 ? 0.5 : 0;
  context.clearRect(0, 0, map.clientWidth, map.clientHeight);
  values.forEach((value, i) => {
    const x = left + width * (i % N_HEADS), y = top + height * Math.floor(i / N_HEADS);
    context.fillStyle = Number.isNaN(value) ? "transparent" : mapColour(theme, value, range);
    context.fillRect(x, y, width - gap, height - gap);
  });
  paintAxes(context);
  const ink = colourOf("--ink"), paper = colourOf("--paper");
  marked.forEach(([l, h]) => ring(context, l, h, ink, paper, 1, [2, 2]));
  state.chosen.forEach((each) => dot(context, ...each, ink, paper));
  if (heads.length === 1) ring(context, layer, head, ink, paper, isPinned(layer, head) ? 3 : 2, []);
  const chosen = about.maps[state.map];
  document.getElementById("metric").classList.toggle("idle", key !== null);
  document.getElementById("map-meaning").textContent = meaningOfMap(key);
  document.getElementById("map-range").textContent = rangeInWords(range);
  paintRamp("map-legend", (t) => mapColour(theme, range[0] + t * (range[1] - range[0]), range), colourOf("--paper"));
  map.setAttribute("aria-label", `Map of ${N_LAYERS} layers by ${N_HEADS} heads, at ${headName(layer, head)}`);
  map.setAttribute("aria-description", `${chosen.label} ${three(values[layer * N_HEADS + head])}`);
}

const marked = about.mark.map(([layer, head]) => [about.layers.indexOf(layer), about.heads.indexOf(head)]).filter((each) => Math.min(...each) >= 0);

function meaningOfMap(key) {
  const change = state.change ? "change of " : "";
  if (key !== null) return `${change}attention to ${fullName(key)} from ${nameOfQuery(state.query)}`;
  return `${change}${about.maps[state.map].meaning}`;
}

const rangeInWords = ([low, high]) => `${three(low).replace(/\.?0+$/, "") || 0} to ${three(high)}`;

function paintAxes(context) {
  const { left, top, width, height } = mapLayout;
  context.fillStyle = colourOf("--quiet");
  const by = zoom();
  context.font = `${10 * by}px ${getComputedStyle(document.body).fontFamily}`;
  const everyLayer = Math.ceil((13 * by) / height), everyHead = Math.ceil(((13 + 2 * String(N_HEADS).length) * by) / width);
  context.textAlign = "right";
  context.textBaseline = "middle";
  about.layers.forEach((layer, i) => i % everyLayer || context.fillText(layer, left - 6, top + height * (i + 0.5)));
  context.textAlign = "center";
  context.textBaseline = "top";
  const y = top + height * N_LAYERS + 4;
  about.heads.forEach((head, i) => i % everyHead || context.fillText(head, left + width * (i + 0.5), y));
}

function ring(context, layer, head, ink, paper, thickness, dash) {
  if (layer < 0 || head < 0) return;
  const { left, top, width, height } = mapLayout;
  const out = width < 12 ? 1.5 : 0.5; // around small cells, so that their colour stays to be seen
  const box = [left + width * head - out, top + height * layer - out, width + 2 * out - 1, height + 2 * out - 1];
  const scale = width < 12 ? 0.75 : 1;
  for (const [colour, line] of [[paper, (thickness + 2) * scale], [ink, thickness * scale]]) {
    context.setLineDash(colour === ink ? dash : []);
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(...box);
  }
  context.setLineDash([]);
}

// a chosen head
function dot(context, layer, head, ink, paper) {
  const { left, top, width, height } = mapLayout, size = Math.max(1.5, Math.min(width, height) / 7);
  context.beginPath();
  context.arc(left + width * (head + 0.5), top + height * (layer + 0.5), size, 0, 2 * Math.PI);
  context.fillStyle = ink;
  context.strokeStyle = paper;
  context.lineWidth = size / 2;
  context.fill();
  context.stroke();
}

function headAt(event) {
  const box = map.getBoundingClientRect();
  const head = Math.floor((event.clientX - box.left - mapLayout.left) / mapLayout.width);
  const layer = Math.floor((event.clientY - box.top - mapLayout.top) / mapLayout.height);
  const inside = layer >= 0 && head >= 0 && layer < N_LAYERS && head < N_HEADS && exists(layer, head);
  return inside ? [layer, head] : null;
}

map.addEventListener("pointermove", (event) => {
  const head = headAt(event);
  if (head === null || state.hoverHead === null || String(head) !== String(state.hoverHead)) set({ hoverHead: head });
  if (head === null) hideTip();
  else showTip(event, `${headName(...head)} · ${tipOfHead(head)}`);
});
map.addEventListener("pointerleave", () => { hideTip(); set({ hoverHead: null }); });
map.addEventListener("click", (event) => {
  const head = headAt(event);
  if (head) event.shiftKey ? choose(head) : pinHead(head);
});

function tipOfHead([layer, head]) {
  const i = layer * N_HEADS + head;
  if (state.key === null) return three(shownMap()[i]);
  return isAtHand(state.query) ? `${three(ofSides((side) => weightsOn(state.query, state.key, side))[i])} on the pinned token` : "";
}
