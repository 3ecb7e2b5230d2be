// What is pinned, hovered and chosen, and what follows from it.

const state = {
  query: about.queries.length - 1,
  side: SIDES.length - 1, // of two runs, the one that words, cards and thumbnails show
  change: false, // the map of heads shows what has changed between them
  map: 0,
  scale: knowsSinks ? "nonsink" : "all",
  level: "",
  overlay: true,
  theme: null, // the system's until the button is pressed
  head: null, // pinned: [layer, head]
  hoverHead: null,
  key: null, // pinned token
  hoverKey: null,
  chosen: [], // heads, each [layer, head]
  mean: false, // show the mean of these
  ...kept,
};
let cursor = state.head ?? bestHead(); // the head shown while none is pinned or hovered
let scheduled = false;
const painters = [];

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => state.theme ?? (systemDark.matches ? "dark" : "light");

function set(changes) {
  Object.assign(state, changes);
  if ("head" in changes || "chosen" in changes) tell();
  repaint();
}

function repaint() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    if (closing.aborted) return; // weights that come late, of a scene that was left, paint nothing
    const shown = whatIsShown();
    document.documentElement.setAttribute("aria-busy", shown === null);
    if (shown) painters.forEach((paint) => paint(shown));
  });
}

// of the side that is shown, or what has changed between the two
function ofSides(of) {
  if (!state.change) return of(state.side);
  const [before, after] = SIDES.map(of);
  return after.map((value, i) => value - before[i]);
}

function shownMap() {
  return ofSides((side) => mapOf(state.map, state.query, side));
}

function orderOfHeads() {
  const values = shownMap();
  const rank = (i) => (Number.isNaN(values[i]) ? -Infinity : state.change ? Math.abs(values[i]) : values[i]);
  return [...values.keys()].sort((a, b) => rank(b) - rank(a));
}

function bestHead() {
  const best = orderOfHeads()[0];
  return [Math.floor(best / N_HEADS), best % N_HEADS];
}

function headsShown() {
  if (state.hoverHead) return [state.hoverHead];
  return state.mean && state.chosen.length ? state.chosen : [state.head ?? cursor];
}

function meanWeights(query, heads, side) {
  const sum = weightsOf(query, ...heads[0], side);
  for (const head of heads.slice(1)) weightsOf(query, ...head, side).forEach((value, key) => (sum[key] += value));
  return sum.map((value) => value / heads.length);
}

// null while the weights it needs are being unpacked
function whatIsShown() {
  const key = state.hoverKey ?? state.key;
  const query = !ofTower && key !== null && queryOfKey.has(key) ? queryOfKey.get(key) : state.query;
  const ready = [state.query, query].map((q) => atHand(q, repaint));
  if (ready.includes(false)) return null;
  const heads = headsShown(), [layer, head] = heads[0];
  const bySide = SIDES.map((side) => meanWeights(query, heads, side)), weights = bySide[state.side];
  const column = key === null ? null : ofSides((side) => weightsOn(state.query, key, side));
  const top = Math.max(...SIDES.map((side) => fullColourAt(bySide[side], heads, side))); // one scale for both sides
  return { key, query, heads, layer, head, bySide, weights, column, top, theme: theme() };
}

// the weight of full colour: the largest, or the largest but for sinks and the first token; in the tower of its patches
function fullColourAt(weights, heads, side) {
  let top = 0;
  weights.forEach((value, key) => {
    const parked = state.scale === "nonsink" && (isSinkOf(heads, key, side) || about.roles[key] === "bos");
    const nowhere = about.positions[key] === null;
    if (!parked && !nowhere && value > top) top = value;
  });
  return top || 1;
}

function moveHead(down, right) {
  const [layer, head] = state.head ?? cursor;
  let next = [layer, head];
  do {
    next = [next[0] + down, next[1] + right];
    if (next[0] < 0 || next[1] < 0 || next[0] >= N_LAYERS || next[1] >= N_HEADS) return;
  } while (!exists(...next));
  goToHead(next);
}

function goToHead(next) {
  cursor = next;
  set({ head: state.head === null ? null : next, hoverHead: null });
}

function moveInOrder(step) {
  const order = orderOfHeads(), [layer, head] = state.head ?? cursor;
  const at = order.indexOf(layer * N_HEADS + head) + step;
  if (at >= 0 && at < order.length) goToHead([Math.floor(order[at] / N_HEADS), order[at] % N_HEADS]);
}

const isPinned = (layer, head) => state.head !== null && state.head[0] === layer && state.head[1] === head;

function pinHead(head) {
  const same = isPinned(...head);
  cursor = head;
  set({ head: same ? null : head });
}

// in the tower the patch becomes the query, or all patches do again
function pinKey(key) {
  const query = ofTower ? queryNear(key) : undefined;
  if (query !== undefined) return chooseQuery(query === state.query ? about.queries.length - 1 : query);
  set({ key: state.key === key ? null : key });
}

