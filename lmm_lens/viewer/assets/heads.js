// The map of heads: a row a layer, a column a head.

const map = document.getElementById("map");
const mapLayout = { left: 30, top: 4, bottom: 18, width: 0, height: 0 };

function layOutMap() {
  const wide = document.getElementById("map-box").clientWidth - mapLayout.left - 2;
  mapLayout.width = Math.max(2, Math.min(56, wide / N_HEADS));
  mapLayout.height = Math.max(4, Math.min(34, mapLayout.width, 400 / N_LAYERS));
  if (mapLayout.height < mapLayout.width / 3) mapLayout.height = mapLayout.width / 3;
  sizeCanvas(map, mapLayout.left + mapLayout.width * N_HEADS + 2, mapLayout.top + mapLayout.height * N_LAYERS + mapLayout.bottom);
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
  return [low, high > low ? high : low + 1];
}

function paintMap({ key, layer, head, column, theme }) {
  const values = column ?? mapOf(state.map, state.query), [low, high] = rangeOf(values);
  const context = map.getContext("2d"), { left, top, width, height } = mapLayout;
  const gap = width > 9 ? 1 : width > 5 ? 0.5 : 0;
  context.clearRect(0, 0, map.clientWidth, map.clientHeight);
  values.forEach((value, i) => {
    const x = left + width * (i % N_HEADS), y = top + height * Math.floor(i / N_HEADS);
    context.fillStyle = Number.isNaN(value) ? "transparent" : css(theme, (value - low) / (high - low));
    context.fillRect(x, y, width - gap, height - gap);
  });
  paintAxes(context);
  const ink = colourOf("--ink"), paper = colourOf("--paper");
  about.mark.forEach(([l, h]) => ring(context, about.layers.indexOf(l), about.heads.indexOf(h), ink, paper, 1, [2, 2]));
  ring(context, layer, head, ink, paper, isPinned(layer, head) ? 3 : 2, []);
  const chosen = about.maps[state.map];
  document.getElementById("metric").classList.toggle("idle", key !== null);
  document.getElementById("map-meaning").textContent =
    key === null ? chosen.meaning : `attention to ${fullName(key)} from ${fullName(about.queries[state.query])}`;
  document.getElementById("map-range").textContent = `${three(low).replace(/\.?0+$/, "") || 0} to ${three(high)}`;
  paintRamp("map-legend", theme, 1);
  map.setAttribute("aria-label", `Map of ${N_LAYERS} layers by ${N_HEADS} heads, at ${headName(layer, head)}`);
  map.setAttribute("aria-description", `${chosen.label} ${three(values[layer * N_HEADS + head])}`);
}

function paintAxes(context) {
  const { left, top, width, height } = mapLayout;
  context.fillStyle = colourOf("--quiet");
  context.font = `10px ${getComputedStyle(document.body).fontFamily}`;
  const everyLayer = Math.ceil(13 / height), everyHead = Math.ceil((13 + 2 * String(N_HEADS).length) / width);
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
  const key = state.key, value = head && (key === null ? mapOf(state.map, state.query)[head[0] * N_HEADS + head[1]] : null);
  if (head === null) hideTip();
  else showTip(event, `${headName(...head)} · ${value === null ? `${three(weight(state.query, ...head, key))} on the pinned token` : three(value)}`);
});
map.addEventListener("pointerleave", () => { hideTip(); set({ hoverHead: null }); });
map.addEventListener("click", (event) => { const head = headAt(event); if (head) pinHead(head); });

