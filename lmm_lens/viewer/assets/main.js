// Put together: controls, keys, and the first drawing.

const byId = (id) => document.getElementById(id);

about.maps.forEach((each, index) => byId("metric").append(new Option(each.label, index)));
levelNames.forEach((name) => byId("level").append(new Option(name, name)));
byId("heading").textContent = about.title;
fillFacts();
about.queries.forEach((key, query) => byId("query").append(new Option(ofTower ? nameOfQuery(query) : `${about.texts[key]} (${about.positions[key]})`, query)));
about.sides.forEach(({ label }, side) => byId("side").append(new Option(label, side)));
byId("side").append(new Option("change", "change"));
byId("query-label").hidden = about.queries.length < 2;
byId("side-label").hidden = SIDES.length < 2;
byId("level-label").hidden = levelNames.length < 2;
document.querySelector("#pictures .saves").hidden = drawings.length === 0;
byId("scale-label").hidden = !knowsSinks && !about.roles.includes("bos");
byId("sink-key").hidden = !knowsSinks;
byId("query").value = state.query;
byId("side").value = state.change ? "change" : state.side;
byId("metric").value = state.map;
byId("scale").value = state.scale;
byId("overlay").checked = state.overlay;
byId("scene").value = scene;
byId("steps").textContent = about.steps;
byId("marker-key").hidden = !about.roles.includes("marker");
byId("token-note").textContent = ofTower ? "the visual tokens that patches are part of" : about.queries.length > 1 ? "those with a dot show their own attention" : "";

// the model, the answer or the likeliest next tokens of each side, and where sinks and layers come from
function fillFacts() {
  const lines = [about.model];
  if (about.answer) lines.push(["answer ", [about.answer, ""]]);
  for (const { label, next } of about.sides) {
    if (next.length) lines.push([`${label ? `${label}: ` : ""}next token `, ...next.map(([text, chance]) => [text, chance < 0.005 ? " <0.01" : ` ${chance.toFixed(2)}`])]);
  }
  byId("facts").replaceChildren(...lines.map((line) => {
    const made = element("span"), [first, ...guesses] = [line].flat();
    made.append(first);
    guesses.forEach(([text, rest], i) => {
      const guess = element("span", "guess"), name = element("b");
      name.textContent = text;
      guess.append(name, rest);
      made.append(i ? ", " : "", guess);
    });
    return made;
  }));
  const rules = about.sides.map(({ label, sinkRule }) => `Sinks${label ? ` of “${label}”` : ""}: ${sinkRule}.`);
  byId("rules").replaceChildren(...[...new Set(rules), about.omitted].filter(Boolean).map((text) => Object.assign(element("span"), { textContent: text })));
}

byId("scene").addEventListener("change", (event) => {
  openOther(Number(event.target.value));
  document.getElementById("scene").focus();
});

// another batch row, with what is chosen; or the other part of the model, with what was chosen there
function openOther(number, changes = {}) {
  const { map: chosenMap, scale, overlay, theme: shade, head, chosen, mean, side, change, query } = state;
  const both = { overlay, theme: shade };
  if (partOf(number) === about.part) return openScene(number, { ...both, map: chosenMap, scale, head, chosen, mean, side, change });
  leftAt.set(scene, { map: chosenMap, scale, head, chosen, mean, query });
  openScene(number, { ...leftAt.get(number), ...both, ...changes, moved: true });
}
byId("side").addEventListener("change", (event) => {
  const change = event.target.value === "change";
  set({ change, side: change ? SIDES.length - 1 : Number(event.target.value) });
  if (state.head === null) cursor = bestHead();
});
byId("metric").addEventListener("change", (event) => {
  state.map = Number(event.target.value);
  if (state.head === null) cursor = bestHead();
  repaint();
});
byId("query").addEventListener("change", (event) => chooseQuery(Number(event.target.value)));
byId("level").addEventListener("change", (event) => { set({ level: event.target.value }); requestAnimationFrame(resized); });
byId("scale").addEventListener("change", (event) => set({ scale: event.target.value }));
byId("overlay").addEventListener("change", (event) => set({ overlay: event.target.checked }));
byId("theme").addEventListener("click", () => set({ theme: theme() === "dark" ? "light" : "dark" }));
byId("help-button").addEventListener("click", (event) => {
  const open = byId("help").hidden;
  byId("help").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", open);
});
systemDark.addEventListener("change", repaint, { signal: closing });

const ACTIONS = {
  ArrowUp: () => moveHead(-1, 0),
  ArrowDown: () => moveHead(1, 0),
  ArrowLeft: () => moveHead(0, -1),
  ArrowRight: () => moveHead(0, 1),
  n: () => moveInOrder(1),
  p: () => moveInOrder(-1),
  c: () => choose(state.hoverHead ?? state.head ?? cursor),
  m: () => set({ mean: !state.mean && state.chosen.length > 0 }),
  o: () => { byId("overlay").checked = !state.overlay; set({ overlay: !state.overlay }); },
  "[": () => stepQuery(-1),
  "]": () => stepQuery(1),
  Escape: () => {
    hideTip();
    set({ head: null, key: null, hoverHead: null, hoverKey: null });
    if (ofTower) chooseQuery(about.queries.length - 1);
  },
};

function stepQuery(step) {
  const next = state.query + step;
  if (next >= 0 && next < about.queries.length) chooseQuery(next);
}

function chooseQuery(query) {
  byId("query").value = query;
  const place = ofTower ? placeOf.get(about.queries[query]) : undefined; // thumbnails show what it looks at
  if (place) sheetPanel.value = sheetPanels.findIndex(({ panel }) => panel === about.panels[place.panel]);
  set({ query });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("select, input, textarea");
  if (typing && event.key !== "Escape") return;
  if (event.key === "Enter" && event.target === map) return pinHead(state.hoverHead ?? state.head ?? cursor);
  const action = ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}, { signal: closing });

painters.push(({ theme, heads, query, key }) => {
  const root = document.documentElement;
  root.dataset.theme = theme;
  Object.assign(root.dataset, {
    head: nameOfHeads(heads),
    part: about.part,
    query: idOfQuery(query),
    token: key === null ? "" : idOf(key),
    pinned: state.head ? headName(...state.head) : "",
    chosen: state.chosen.map((each) => headName(...each)).join(" "),
    map: about.maps[state.map].name,
  });
});
painters.push(paintMap, paintChosen, paintPanels, paintTokens, paintHead, paintToken, paintSheet);
painters.push(() => {
  if (document.documentElement.dataset.ready) return;
  document.documentElement.dataset.ready = "yes";
  performance.mark("ready");
  if (state.moved) tell(); // what is chosen in the part that is shown now
  LISTENER?.postMessage({ lmmLens: "ready" }, "*");
});

function resized() {
  layOutMap();
  layOutPanels();
  repaint();
}

const sizes = new ResizeObserver(resized);
sizes.observe(document.querySelector("main"));
closing.addEventListener("abort", () => sizes.disconnect());
resized();
