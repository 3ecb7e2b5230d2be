// The data of a scene: what is said about it as JSON, weights as deflated bytes, unpacked when they are looked at. It has
// one side, or two: runs of the same prompt that are compared.

const N_LAYERS = about.layers.length, N_HEADS = about.heads.length, N_KEYS = about.positions.length;
const N_PER_QUERY = N_LAYERS * N_HEADS;

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const floatsOf = (base64) => new Float32Array(bytesOf(base64).buffer);

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const mapValues = about.sides.map((side) => side.values.map(floatsOf)); // of each map: query, layer, head
const SIDES = about.sides.map((_, side) => side);
const underway = new Map();

async function unpack(name) {
  const packed = document.getElementById(`weights-${name}`);
  const bytes = await inflated(bytesOf(packed.textContent));
  let levels = bytes;
  if (about.steps > 255) {
    const half = bytes.length / 2;
    levels = new Uint16Array(half);
    for (let i = 0; i < half; i++) levels[i] = bytes[i] * 256 + bytes[half + i];
  }
  weightsHeld.set(name, { levels, largest: floatsOf(document.getElementById(`largest-${name}`).textContent) });
  packed.textContent = ""; // it is held unpacked now
}

// true where the weights of a query are at hand; else they are fetched from the page, and `then` is called
function atHand(query, then) {
  const missing = SIDES.map((side) => `${scene}-${side}-${query}`).filter((name) => !weightsHeld.has(name));
  if (!missing.length) return true;
  for (const name of missing) if (!underway.has(name)) underway.set(name, unpack(name));
  Promise.all(missing.map((name) => underway.get(name))).then(then);
  return false;
}

const isAtHand = (query) => SIDES.every((side) => weightsHeld.has(`${scene}-${side}-${query}`));

function weight(query, layer, head, key, side = state.side) {
  const { levels, largest } = weightsHeld.get(`${scene}-${side}-${query}`), row = layer * N_HEADS + head;
  return largest[row] * (levels[row * N_KEYS + key] / about.steps) ** 2;
}

function weightsOf(query, layer, head, side) {
  return Float64Array.from({ length: N_KEYS }, (_, key) => weight(query, layer, head, key, side));
}

function weightsOn(query, key, side) {
  const found = new Float64Array(N_PER_QUERY);
  for (let i = 0; i < N_PER_QUERY; i++) found[i] = weight(query, Math.floor(i / N_HEADS), i % N_HEADS, key, side);
  return found;
}

function mapOf(index, query, side = state.side) {
  return mapValues[side][index].subarray(query * N_PER_QUERY, (query + 1) * N_PER_QUERY);
}

const mapNamed = (name) => about.maps.findIndex((each) => each.name === name);
const exists = (layer, head) => !Number.isNaN(mapOf(mapNamed("visual_mass"), 0, 0)[layer * N_HEADS + head]);
const headName = (layer, head) => `L${about.layers[layer]}H${about.heads[head]}`;
const nameOfHeads = (heads) => (heads.length === 1 ? headName(...heads[0]) : `mean of ${heads.length} heads`);

const isVisual = about.roles.map((role) => role === "image" || role === "video");
const sinkSets = about.sides.map((side) => side.sinks && side.sinks.map((keys) => new Set(keys)));
const knowsSinks = sinkSets.some((known) => known !== null);
const isSink = (layer, key, side = state.side) => sinkSets[side] !== null && sinkSets[side][layer].has(key);
const isSinkOf = (heads, key, side) => heads.some(([layer]) => isSink(layer, key, side));
const queryOfKey = new Map(about.queries.map((key, query) => [key, query]).filter(([key]) => key !== null));
const ofTower = about.part === "vision"; // its tokens are patches; a click on one makes it the query

// where each visual token lies: its panel, grid, row and column
const placeOf = new Map();
about.panels.forEach((panel, p) =>
  panel.grids.forEach((grid) =>
    grid.keys.forEach((key, i) => {
      const row = Math.floor(i / grid.columns.length), column = i % grid.columns.length;
      const [left, right] = grid.columns[column], [top, bottom] = grid.rows[row], box = [left, top, right, bottom];
      placeOf.set(key, { panel: p, grid: grid.name, row, column, box });
    }),
  ),
);

function three(value) {
  if (Number.isNaN(value)) return "none";
  if (!Number.isFinite(value)) return "∞";
  if (Math.abs(value) >= 5e-7 && Math.abs(value) < 0.0005) return value.toExponential(1).replaceAll("-", "−");
  return value.toFixed(3).replace("-", "−");
}

const severalGrids = about.panels.flatMap((panel) => panel.grids).length > 1;

// what a token is called; its position beside it tells it from others of the name
function nameOfToken(key) {
  if (about.positions[key] === null) return about.texts[key];
  if (!isVisual[key]) return `“${about.texts[key]}”`;
  const place = placeOf.get(key), grid = severalGrids ? `${place.grid} ` : "";
  return about.panels[place.panel].placed ? `${grid}patch ${place.row}, ${place.column}` : `${grid}token`;
}

const fullName = (key) => (about.positions[key] === null ? nameOfToken(key) : `${nameOfToken(key)} at ${about.positions[key]}`);
const nameOfQuery = (query) => about.queryNames[query] ?? fullName(about.queries[query]);
const idOf = (key) => about.positions[key] ?? about.roles[key]; // by which a token is found on the page
const idOfQuery = (query) => about.queryNames[query] ?? about.positions[about.queries[query]];

// the query of a token of the tower: its own, or that of the nearest patch of its grid that is one
function queryNear(key) {
  if (queryOfKey.has(key)) return queryOfKey.get(key);
  const place = placeOf.get(key);
  if (!place) return undefined;
  const far = (other) => Math.hypot(other.row - place.row, other.column - place.column);
  const same = [...queryOfKey.keys()].filter((each) => placeOf.get(each)?.panel === place.panel && placeOf.get(each).grid === place.grid);
  const nearest = same.sort((a, b) => far(placeOf.get(a)) - far(placeOf.get(b)))[0];
  return nearest === undefined ? undefined : queryOfKey.get(nearest);
}

