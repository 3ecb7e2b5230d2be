// What is pinned, hovered and chosen, and what follows from it.

const state = {
  query: about.queries.length - 1,
  map: 0,
  scale: about.sinks ? "nonsink" : "all",
  level: "",
  overlay: true,
  theme: null, // the system's until the button is pressed
  head: null, // pinned: [layer, head]
  hoverHead: null,
  key: null, // pinned token
  hoverKey: null,
  open: new Set(), // pieces of the sequence that are unfolded
};
let cursor = bestHead(); // the head shown while none is pinned or hovered
let scheduled = false;
const painters = [];

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => state.theme ?? (systemDark.matches ? "dark" : "light");

function set(changes) {
  Object.assign(state, changes);
  repaint();
}

function repaint() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const shown = whatIsShown();
    document.documentElement.setAttribute("aria-busy", shown === null);
    if (shown) painters.forEach((paint) => paint(shown));
  });
}

function orderOfHeads() {
  const values = mapOf(state.map, state.query);
  const rank = (i) => (Number.isNaN(values[i]) ? -Infinity : values[i]);
  return [...values.keys()].sort((a, b) => rank(b) - rank(a));
}

function bestHead() {
  const best = orderOfHeads()[0];
  return [Math.floor(best / N_HEADS), best % N_HEADS];
}

// null while the weights it needs are being unpacked
function whatIsShown() {
  const key = state.hoverKey ?? state.key;
  const query = key !== null && queryOfKey.has(key) ? queryOfKey.get(key) : state.query;
  const ready = [state.query, query].map((q) => atHand(q, repaint));
  if (ready.includes(false)) return null;
  const [layer, head] = state.hoverHead ?? state.head ?? cursor;
  const weights = weightsOf(query, layer, head);
  const column = key === null ? null : weightsOn(state.query, key);
  return { key, query, layer, head, weights, column, top: fullColourAt(weights, layer), theme: theme() };
}

// the weight of full colour: the largest, or the largest but for sinks and the first token
function fullColourAt(weights, layer) {
  let top = 0;
  weights.forEach((value, key) => {
    const parked = isSink(layer, key) || about.roles[key] === "bos";
    if (!(state.scale === "nonsink" && parked) && value > top) top = value;
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

function pinKey(key) {
  set({ key: state.key === key ? null : key });
}

