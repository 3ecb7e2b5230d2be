// The sequence: words as chips tinted by the attention they get, pictures folded into one chip, markers as ticks.

const tokensBox = document.getElementById("tokens");
const chips = new Map(); // key -> its element, as far as it is unfolded
const folded = []; // [element, keys, share] of the chips of pictures

about.pieces.forEach((piece, index) => tokensBox.append(...(piece.kind === "visual" ? foldedChip(piece, index) : plainChips(piece))));

const keysOf = (piece) => Array.from({ length: piece.last - piece.first + 1 }, (_, i) => piece.first + i);

function plainChips(piece) {
  return Array.from({ length: piece.last - piece.first + 1 }, (_, i) => chip(piece.first + i));
}

function chip(key) {
  const role = about.roles[key], made = element("button", `chip ${role}`);
  made.type = "button";
  made.dataset.key = key;
  made.dataset.position = idOf(key);
  made.tabIndex = -1;
  const small = role === "marker" || isVisual[key];
  if (!small) made.textContent = about.texts[key];
  made.setAttribute("aria-label", small ? `${fullName(key)}${role === "marker" ? ", a marker" : ""}` : about.texts[key]);
  if (queryOfKey.has(key)) made.classList.add("query");
  chips.set(key, made);
  return made;
}

function foldedChip(piece, index) {
  const head = element("button", "fold"), share = element("span", "share"), body = element("div", "cells");
  head.type = "button";
  head.dataset.piece = index;
  head.setAttribute("aria-expanded", "false");
  head.append(piece.label.split(",")[0], share);
  head.title = piece.label;
  body.hidden = true;
  head.addEventListener("click", () => {
    const open = head.getAttribute("aria-expanded") !== "true";
    if (open && !body.childElementCount) unfold(piece, body);
    head.setAttribute("aria-expanded", open);
    body.hidden = !open;
    repaint();
  });
  folded.push({ head, share, first: piece.first, last: piece.last });
  return [head, body];
}

// the cells of a picture, in its own rows where they are known
function unfold(piece, body) {
  let line = element("div", "line"), before = null;
  body.append(line);
  for (const key of keysOf(piece)) {
    const place = placeOf.get(key);
    if (place && before && place.row !== before.row) body.append((line = element("div", "line")));
    if (place) before = place;
    line.append(chip(key));
  }
}

function paintTokens({ weights, top, heads, key, theme }) {
  for (const [each, made] of chips) {
    const t = Math.min(1, weights[each] / top);
    const tinted = t > 0.004;
    made.style.backgroundColor = tinted ? css(theme, t) : "";
    made.style.color = tinted ? inkOn(theme, t) : "";
    made.classList.toggle("sink", isSinkOf(heads, each, state.side));
    made.classList.toggle("chosen", each === key);
    made.setAttribute("aria-pressed", each === state.key);
  }
  for (const { head, share, first, last } of folded) {
    let sum = 0;
    for (let each = first; each <= last; each++) sum += weights[each];
    share.textContent = three(sum);
    head.classList.toggle("chosen", key !== null && key >= first && key <= last);
  }
  const first = chips.get(state.key ?? about.queries[state.query]);
  if (first && !tokensBox.contains(document.activeElement)) {
    tokensBox.querySelectorAll('.chip[tabindex="0"]').forEach((made) => (made.tabIndex = -1));
    first.tabIndex = 0; // one stop for Tab; arrows go on from there
  }
}

const keyOfEvent = (event) => {
  const made = event.target.closest(".chip");
  return made ? Number(made.dataset.key) : null;
};

tokensBox.addEventListener("pointerover", (event) => {
  const key = keyOfEvent(event);
  if (key !== state.hoverKey) set({ hoverKey: key });
  if (key === null) hideTip();
  else showTip(event, tipOfToken(key));
});
tokensBox.addEventListener("pointerleave", () => { hideTip(); set({ hoverKey: null }); });
tokensBox.addEventListener("click", (event) => { const key = keyOfEvent(event); if (key !== null) pinKey(key); });
tokensBox.addEventListener("focusin", (event) => set({ hoverKey: event.target.matches(":focus-visible") ? keyOfEvent(event) : state.hoverKey }));
tokensBox.addEventListener("focusout", () => set({ hoverKey: null }));
tokensBox.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const stops = [...tokensBox.querySelectorAll(".chip, .fold")].filter((made) => made.offsetParent !== null);
  stops[stops.indexOf(document.activeElement) + step]?.focus({ focusVisible: true });
});

