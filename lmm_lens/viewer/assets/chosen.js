// Chosen heads: a set beside the one head that is shown. Their mean can be shown, and whoever embeds the page is told.

const isChosen = (layer, head) => state.chosen.some(([l, h]) => l === layer && h === head);

// into the set, or out of it
function choose([layer, head]) {
  const rest = state.chosen.filter(([l, h]) => l !== layer || h !== head);
  setChosen(rest.length < state.chosen.length ? rest : [...rest, [layer, head]]);
}

function setChosen(heads) {
  set({ chosen: heads, mean: state.mean && heads.length > 0 });
}

const chosenBox = document.getElementById("chosen");

function paintChosen() {
  const any = state.chosen.length > 0;
  for (const made of chosenBox.querySelectorAll(".needs-chosen")) made.hidden = !any;
  document.getElementById("chosen-none").hidden = any;
  document.getElementById("mean").checked = state.mean;
  refill(document.getElementById("chosen-names"), ...state.chosen.map(chosenName));
}

function chosenName(head) {
  const made = element("button", "link");
  made.type = "button";
  made.textContent = made.dataset.name = headName(...head);
  made.addEventListener("click", () => pinHead(head));
  return made;
}

document.getElementById("mean").addEventListener("change", (event) => set({ mean: event.target.checked }));
document.getElementById("clear").addEventListener("click", () => {
  setChosen([]);
  map.focus();
});

// ---------------------------------------------------------------- the page that this one is in, if any

const LISTENER = window === parent ? null : parent;

// the chosen heads, or else the pinned one, by the model's own numbers
function tell() {
  const heads = state.chosen.length || !state.head ? state.chosen : [state.head];
  const numbers = heads.map(([layer, head]) => [about.layers[layer], about.heads[head]]);
  LISTENER?.postMessage({ lmmLens: "chosen", heads: numbers, part: about.part, turn: heard }, "*");
}

// choose heads by the model's own numbers; how many of them are there
function adopt(numbers) {
  const heads = numbers.map(([layer, head]) => [about.layers.indexOf(layer), about.heads.indexOf(head)]);
  const there = heads.filter((each) => Math.min(...each) >= 0 && exists(...each));
  Object.assign(state, { chosen: there, mean: state.mean && there.length > 0 });
  return there.length;
}

if (state.asked) adopt(state.asked);

addEventListener("message", ({ source, data }) => {
  if (source !== LISTENER || data?.lmmLens !== "choose") return;
  heard = data.turn ?? heard;
  const part = data.part ?? about.part, other = [...byId("scene").options].findIndex((_, number) => partOf(number) === part);
  if (part !== about.part && other >= 0) return openOther(other, { asked: data.heads });
  if (adopt(data.heads) < data.heads.length) tell(); // those that are not on this page; else it knows
  repaint();
}, { signal: closing });
