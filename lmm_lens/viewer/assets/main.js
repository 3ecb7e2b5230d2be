// Put together: controls, keys, and the first drawing.

const byId = (id) => document.getElementById(id);

about.maps.forEach((each, index) => byId("metric").append(new Option(each.label, index)));
levelNames.forEach((name) => byId("level").append(new Option(name, name)));
byId("scale").value = state.scale;
byId("scale-label").hidden = !about.sinks && !about.roles.includes("bos");
byId("sink-key").hidden = !about.sinks;
byId("marker-key").hidden = !about.roles.includes("marker");
byId("token-note").textContent = about.queries.length > 1 ? "those with a dot show their own attention" : "";

byId("metric").addEventListener("change", (event) => {
  state.map = Number(event.target.value);
  if (state.head === null) cursor = bestHead();
  repaint();
});
byId("query").addEventListener("change", (event) => set({ query: Number(event.target.value) }));
byId("level").addEventListener("change", (event) => { set({ level: event.target.value }); requestAnimationFrame(resized); });
byId("scale").addEventListener("change", (event) => set({ scale: event.target.value }));
byId("overlay").addEventListener("change", (event) => set({ overlay: event.target.checked }));
byId("theme").addEventListener("click", () => set({ theme: theme() === "dark" ? "light" : "dark" }));
byId("help-button").addEventListener("click", (event) => {
  const open = byId("help").hidden;
  byId("help").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", open);
});
systemDark.addEventListener("change", repaint);

const ACTIONS = {
  ArrowUp: () => moveHead(-1, 0),
  ArrowDown: () => moveHead(1, 0),
  ArrowLeft: () => moveHead(0, -1),
  ArrowRight: () => moveHead(0, 1),
  n: () => moveInOrder(1),
  p: () => moveInOrder(-1),
  o: () => { byId("overlay").checked = !state.overlay; set({ overlay: !state.overlay }); },
  "[": () => stepQuery(-1),
  "]": () => stepQuery(1),
  Escape: () => { hideTip(); set({ head: null, key: null, hoverHead: null, hoverKey: null }); },
};

function stepQuery(step) {
  const next = state.query + step;
  if (next < 0 || next >= about.queries.length) return;
  byId("query").value = next;
  set({ query: next });
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
});

painters.push(({ theme, layer, head, query, key }) => {
  const root = document.documentElement;
  root.dataset.theme = theme;
  Object.assign(root.dataset, {
    head: headName(layer, head),
    query: about.positions[about.queries[query]],
    token: key === null ? "" : about.positions[key],
    pinned: state.head ? headName(...state.head) : "",
    map: about.maps[state.map].name,
  });
});
painters.push(paintMap, paintPanels, paintTokens, paintHead, paintToken);
painters.push(() => {
  if (document.documentElement.dataset.ready) return;
  document.documentElement.dataset.ready = "yes";
  performance.mark("ready");
});

function resized() {
  layOutMap();
  layOutPanels();
  repaint();
}

new ResizeObserver(resized).observe(document.querySelector("main"));
resized();
