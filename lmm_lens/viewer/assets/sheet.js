// The sheet: many heads side by side, each over one picture.

const N_BEST = 12;
const FRAME_SHARE = 8; // milliseconds of each frame for thumbnails
const sheetBox = document.getElementById("sheet"), sheetOf = document.getElementById("sheet-of");
const sheetPanel = document.getElementById("sheet-panel");
const sheetPanels = drawings.filter((drawing) => drawing.keys.length && drawing.side === 0);
let thumbs = [];
let sheetIs = ""; // what the thumbnails were drawn for
let waiting = []; // those that are yet to be drawn

document.getElementById("sheet-section").hidden = sheetPanels.length === 0;
sheetPanels.forEach(({ panel }, i) => sheetPanel.append(new Option(panel.label, i)));
document.getElementById("sheet-panel-label").hidden = sheetPanels.length < 2;
sheetOf.append(new Option("the layer shown", "layer"), new Option(`the ${Math.min(N_BEST, N_PER_QUERY)} highest`, "best"));
sheetOf.append(new Option("the chosen heads", "chosen"));
if (marked.length) sheetOf.append(new Option("the outlined heads", "marked"));
about.layers.forEach((layer, i) => sheetOf.append(new Option(`layer ${layer}`, i)));
for (const select of [sheetOf, sheetPanel]) select.addEventListener("change", repaint);

const headsOfLayer = (layer) => about.heads.map((_, head) => [layer, head]).filter((each) => exists(...each));

function headsOfSheet() {
  const of = sheetOf.value;
  if (of === "layer") return headsOfLayer((state.head ?? cursor)[0]);
  if (of === "chosen") return state.chosen;
  if (of === "marked") return marked.filter((each) => exists(...each));
  if (of !== "best") return headsOfLayer(Number(of));
  const best = orderOfHeads().map((i) => [Math.floor(i / N_HEADS), i % N_HEADS]);
  return best.filter((each) => exists(...each)).slice(0, N_BEST);
}

function paintSheet() {
  if (!sheetPanels.length) return;
  const heads = headsOfSheet(), drawing = sheetPanels[sheetPanel.value || 0];
  const which = JSON.stringify([heads, sheetPanel.value]);
  if (sheetBox.dataset.which !== which) {
    sheetBox.dataset.which = which;
    thumbs = heads.map(buildThumb);
    const within = sheetBox.contains(document.activeElement);
    sheetBox.replaceChildren(...thumbs.map(({ figure }) => figure));
    if (within) sheetOf.focus();
    sheetBox.style.setProperty("--thumbs", Math.max(2, heads.length)); // few stand close, and are not too large
    if (!heads.length) sheetBox.textContent = "No head is chosen: shift and a click on the map, or the box under a thumbnail.";
  }
  const values = shownMap();
  const wide = thumbs.length ? thumbs[0].figure.clientWidth : 0;
  const is = JSON.stringify([which, wide, state.query, state.side, state.scale, state.overlay]);
  if (is !== sheetIs) paintInTurn(thumbs, wide, drawing);
  for (const { figure, canvas, box, value, head } of thumbs) {
    const name = headName(...head), number = three(values[head[0] * N_HEADS + head[1]]);
    value.textContent = number;
    box.checked = isChosen(...head);
    figure.classList.toggle("pinned", isPinned(...head));
    canvas.parentElement.setAttribute("aria-label", `${name}, ${about.maps[state.map].label} ${number}`);
  }
  sheetIs = is;
}

// some in each frame, so that many large ones keep nobody waiting for the rest of the page
function paintInTurn(all, wide, drawing) {
  const { query, side } = state, still = (waiting = [...all]);
  sheetBox.setAttribute("aria-busy", true);
  requestAnimationFrame(function some() {
    if (still !== waiting || closing.aborted) return; // others are asked for
    for (const until = performance.now() + FRAME_SHARE; still.length && performance.now() < until; ) {
      const { canvas, head } = still.shift();
      paintThumb(canvas, wide, drawing, head, query, side);
    }
    if (still.length) requestAnimationFrame(some);
    else sheetBox.setAttribute("aria-busy", false);
  });
}

function buildThumb(head) {
  const figure = element("figure", "thumb"), button = element("button"), canvas = element("canvas");
  const caption = element("figcaption"), label = element("label", "check"), box = element("input"), value = element("span");
  button.type = "button";
  button.append(canvas);
  button.addEventListener("click", (event) => (event.shiftKey ? choose(head) : pinHead(head)));
  box.type = "checkbox";
  box.setAttribute("aria-label", `choose ${headName(...head)}`);
  box.addEventListener("change", () => choose(head));
  label.append(box, headName(...head));
  caption.append(label, value);
  figure.append(button, caption);
  figure.dataset.head = headName(...head);
  return { figure, canvas, box, value, head };
}

function paintThumb(canvas, wide, drawing, head, query, side) {
  const { panel } = drawing, [x0, y0, x1, y1] = panel.extent, scale = wide / (x1 - x0);
  sizeCanvas(canvas, wide, (y1 - y0) * scale);
  const context = canvas.getContext("2d"), weights = weightsOf(query, ...head, side);
  const boxOf = ([left, top, right, bottom]) => [(left - x0) * scale, (top - y0) * scale, (right - left) * scale, (bottom - top) * scale];
  context.fillStyle = "#26282c";
  context.fillRect(0, 0, wide, (y1 - y0) * scale);
  if (drawing.picture?.complete) context.drawImage(drawing.picture, ...boxOf(panel.box));
  if (!state.overlay) return;
  context.fillStyle = `rgb(0 0 0 / ${DIMMED})`;
  context.fillRect(0, 0, wide, (y1 - y0) * scale);
  paintPatches(context, panel, boxOf, weights, fullColourAt(weights, [head], side));
  paintSinks(context, drawing, boxOf, [head], side);
}
